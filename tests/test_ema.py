"""The moving average of the weights, against numpy."""

import numpy as np
import pytest
import torch
from torch import nn

from ddpm_lightning import EMA
from ddpm_lightning.batch import Condition, DataSpec
from ddpm_lightning.errors import InputError
from ddpm_lightning.networks import Network


class Small(Network):
    def __init__(self, data: DataSpec = DataSpec((3,)), out_channels: int = 2) -> None:
        super().__init__()
        self.layer = nn.Linear(3, out_channels)
        self.norm = nn.BatchNorm1d(out_channels)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x, c_noise, condition=Condition()):
        return self.dropout(self.norm(self.layer(x)))


def following(net, kind=EMA, **settings):
    ema = kind(**settings)
    ema.follow(net)
    return ema


def randomised(net):
    for parameter in net.parameters():
        nn.init.normal_(parameter.data)
    return net


def weights(net):
    return {name: p.detach().double().numpy().copy() for name, p in net.named_parameters()}


def assert_equal(a, b):
    assert all(map(np.array_equal, weights(a).values(), weights(b).values()))


# Decay


@pytest.mark.parametrize(
    ("step", "decay"),
    # (1 + n)/(10 + n) passes 0.9999 at n = 89,990.
    [(0, 0.1), (1, 2 / 11), (8, 0.5), (990, 0.991), (89_989, 89_990 / 89_999), (89_991, 0.9999)],
)
def test_the_decay_warms_up_to_its_final_value(step, decay):
    assert EMA().decay_at(step) == pytest.approx(decay, rel=1e-12)


@pytest.mark.parametrize("settings", [{"decay": 1.5}, {"decay": 1.0}, {"start": -1}])
def test_a_setting_out_of_range_is_refused(settings):
    ((name, value),) = settings.items()
    with pytest.raises(InputError, match=f"{name}={value}"):
        EMA(**settings)


# Update


@pytest.mark.parametrize("warmup", [True, False])
def test_the_average_is_numpys(warmup):
    net = randomised(Small())
    ema = following(net, decay=0.7, warmup=warmup)
    expected = weights(net)
    for n in range(20):
        ema.update(randomised(net), n)
        decay = min(0.7, (1 + n) / (10 + n)) if warmup else 0.7
        expected = {k: decay * expected[k] + (1 - decay) * w for k, w in weights(net).items()}
    for name, average in weights(ema.net).items():
        np.testing.assert_allclose(average, expected[name], rtol=1e-5, atol=1e-6)


def test_until_its_start_the_average_equals_the_weights_and_then_warms_up():
    net = randomised(Small())
    ema = following(net, start=100)
    for step in (0, 1, 99):
        ema.update(randomised(net), step)
        assert_equal(net, ema.net)
    assert [ema.decay_at(step) for step in (100, 108)] == [0.1, 0.5]


def test_running_statistics_are_copied_and_not_averaged():
    net = Small()
    ema = following(net, decay=0.5, warmup=False)
    for step in range(3):
        net(3 + torch.randn(64, 3), torch.zeros(64))
        ema.update(net, step)
    assert net.norm.running_mean.abs().max() > 0.1
    for name, buffer in net.named_buffers():
        assert torch.equal(ema.net.get_buffer(name), buffer)


class Mean(EMA):
    """The plain mean of all weights so far."""

    def decay_at(self, step):
        return step / (step + 1)


def test_another_kind_of_average_is_a_subclass():
    net, seen = Small(), []
    mean = following(net, Mean)
    for step in range(5):
        mean.update(randomised(net), step)
        seen.append(weights(net)["layer.weight"])
    average = weights(mean.net)["layer.weight"]
    np.testing.assert_allclose(average, np.mean(seen, axis=0), rtol=1e-5, atol=1e-6)


# A frozen copy


def test_the_average_is_frozen_and_in_evaluation_mode_beside_the_network_that_it_leaves_alone():
    parent = nn.Module()
    parent.net = randomised(Small())
    parent.ema = following(parent.net, decay=0.5, warmup=False)
    before = weights(parent.net)
    for train in (parent.train, parent.ema.train):
        train()
        assert parent.net.training
        assert not any(module.training for module in parent.ema.modules())
    parent.net(torch.ones(4, 3), torch.zeros(4)).sum().backward()
    parent.ema.update(parent.net, 0)
    assert all(map(np.array_equal, before.values(), weights(parent.net).values()))
    assert all(p.requires_grad for p in parent.net.parameters())
    assert all(not p.requires_grad and p.grad is None for p in parent.ema.parameters())


@pytest.mark.parametrize("cast", [nn.Module.bfloat16, nn.Module.half])
@pytest.mark.parametrize("before", [True, False], ids=["cast before", "cast after"])
def test_the_average_keeps_float32_when_the_network_is_cast(cast, before):
    parent = nn.Module()
    parent.net = cast(Small()) if before else Small()
    parent.ema = following(parent.net, decay=0.5, warmup=False)
    start = weights(parent.ema.net)["layer.weight"]
    cast(parent)
    assert parent.net.layer.weight.dtype != torch.float32
    floating = [t for t in parent.ema.state_dict().values() if t.is_floating_point()]
    assert {t.dtype for t in floating} == {torch.float32}
    assert np.array_equal(weights(parent.ema.net)["layer.weight"], start)
    parent.ema.update(randomised(parent.net), 0)
    expected = 0.5 * (start + weights(parent.net)["layer.weight"])
    np.testing.assert_allclose(
        weights(parent.ema.net)["layer.weight"], expected, rtol=1e-5, atol=1e-7
    )


def test_the_checkpoint_holds_the_averaged_network_and_nothing_else():
    net = Small()
    assert list(following(net).state_dict()) == [f"net.{name}" for name in net.state_dict()]
