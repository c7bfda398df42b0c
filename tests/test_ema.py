"""The moving average of the weights, against numpy."""

import numpy as np
import pytest
import torch
from torch import nn

from ddpm_lightning.ema import EMA
from ddpm_lightning.errors import InputError
from ddpm_lightning.networks import Network


class Small(Network):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(2)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x, c_noise, y=None):
        return self.dropout(self.norm(self.layer(x)))


def randomised(net):
    for parameter in net.parameters():
        nn.init.normal_(parameter.data)
    return net


def weights(net):
    return {name: p.detach().double().numpy().copy() for name, p in net.named_parameters()}


# Decay


@pytest.mark.parametrize(
    ("step", "decay"),
    # (1 + n)/(10 + n) passes 0.9999 at n = 89,990.
    [(0, 0.1), (1, 2 / 11), (8, 0.5), (990, 0.991), (89_989, 89_990 / 89_999), (89_991, 0.9999)],
)
def test_the_decay_warms_up_to_its_final_value(step, decay):
    assert EMA(Small()).decay_at(step) == pytest.approx(decay, rel=1e-12)


@pytest.mark.parametrize("step", [0, 1, 10, 10**6])
def test_without_warm_up_the_decay_is_constant(step):
    assert EMA(Small(), 0.99, warmup=False).decay_at(step) == 0.99


def test_before_its_start_the_average_copies_and_then_warms_up():
    ema = EMA(Small(), start=100)
    assert [ema.decay_at(step) for step in (0, 99, 100, 108)] == [0, 0, 0.1, 0.5]


# Update


@pytest.mark.parametrize("warmup", [True, False])
def test_the_average_is_numpys(warmup):
    net = randomised(Small())
    ema = EMA(net, decay=0.7, warmup=warmup)
    expected = weights(net)
    for n in range(20):
        randomised(net)
        ema.update(net, n)
        decay = min(0.7, (1 + n) / (10 + n)) if warmup else 0.7
        expected = {k: decay * expected[k] + (1 - decay) * w for k, w in weights(net).items()}
    for name, average in weights(ema.net).items():
        np.testing.assert_allclose(average, expected[name], rtol=1e-5, atol=1e-6)


def test_until_its_start_the_average_equals_the_weights():
    net = randomised(Small())
    ema = EMA(net, start=3)
    for step in range(3):
        ema.update(randomised(net), step)
        assert all(map(np.array_equal, weights(net).values(), weights(ema.net).values()))
    ema.update(randomised(net), 3)
    assert not any(map(np.array_equal, weights(net).values(), weights(ema.net).values()))


def test_a_network_that_stands_still_is_its_own_average():
    net = randomised(Small())
    ema = EMA(net, decay=0.9, warmup=False)
    for step in range(5):
        ema.update(net, step)
    for name, average in weights(ema.net).items():
        np.testing.assert_allclose(average, weights(net)[name], rtol=1e-6)


def test_small_differences_are_not_lost_at_a_long_horizon():
    # One float32 step towards 1 at decay 0.9999 is 1e-4: far above float32, far below bf16.
    net = Small()
    nn.init.zeros_(net.layer.weight.data)
    ema = EMA(net, warmup=False)
    nn.init.ones_(net.layer.weight.data)
    for step in range(100):
        ema.update(net, step)
    np.testing.assert_allclose(weights(ema.net)["layer.weight"], 1 - 0.9999**100, rtol=1e-4)


def test_buffers_are_not_averaged():
    net = Small()
    ema = EMA(net, decay=0.5, warmup=False)
    net.norm.running_mean.fill_(8)
    ema.update(net, 0)
    assert ema.net.norm.running_mean.tolist() == [0, 0]


def test_the_network_followed_is_not_touched():
    net = randomised(Small())
    ema = EMA(net, decay=0.5, warmup=False)
    before = weights(randomised(net))
    ema.update(net, 0)
    assert all(map(np.array_equal, before.values(), weights(net).values()))
    assert net.training
    assert all(p.requires_grad for p in net.parameters())


# A frozen copy


def test_the_average_is_frozen():
    net = Small()
    ema = EMA(net)
    assert not any(p.requires_grad for p in ema.parameters())
    net(torch.ones(4, 3), torch.zeros(4)).sum().backward()
    ema.update(net, 0)
    assert all(p.grad is None and p.grad_fn is None for p in ema.parameters())


def test_the_average_is_always_in_evaluation_mode():
    parent = nn.Module()
    parent.net, parent.ema = Small(), EMA(Small())
    parent.train()
    assert parent.net.training
    assert not any(module.training for module in parent.ema.net.modules())
    parent.ema.train()
    assert not any(module.training for module in parent.ema.net.modules())


@pytest.mark.parametrize("cast", [nn.Module.bfloat16, nn.Module.half])
def test_the_average_keeps_its_precision_when_the_network_is_cast(cast):
    parent = nn.Module()
    parent.net = Small()
    parent.ema = EMA(parent.net, decay=0.5, warmup=False)
    before = weights(parent.ema.net)
    cast(parent)
    assert parent.net.layer.weight.dtype != torch.float32
    assert {p.dtype for p in parent.ema.parameters()} == {torch.float32}
    assert all(map(np.array_equal, before.values(), weights(parent.ema.net).values()))
    parent.ema.update(randomised(parent.net), 0)
    expected = 0.5 * (before["layer.weight"] + weights(parent.net)["layer.weight"])
    np.testing.assert_allclose(weights(parent.ema.net)["layer.weight"], expected, rtol=1e-5)


def test_the_average_moves_with_the_module_around_it():
    parent = nn.Module()
    parent.ema = EMA(Small())
    parent.to("meta")
    assert {p.device.type for p in parent.ema.parameters()} == {"meta"}


def test_the_checkpoint_holds_the_averaged_network_and_nothing_else():
    net = Small()
    assert list(EMA(net).state_dict()) == [f"net.{name}" for name in net.state_dict()]


def test_the_average_describes_itself_as_the_network_it_follows():
    net = Small()
    assert EMA(net).net.describe() == net.describe()


def test_decay_outside_zero_to_one_is_refused():
    with pytest.raises(InputError, match=r"ema_decay=1\.5"):
        EMA(Small(), decay=1.5)
