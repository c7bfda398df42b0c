"""What a run saves can be loaded and gone on from, whatever its parts keep."""

from __future__ import annotations

import collections
import math
from functools import partial

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from ddpm_lightning import EMA, DiffusionModule
from ddpm_lightning.callbacks import RunCheckpoint
from ddpm_lightning.checkpoint import KEY
from ddpm_lightning.checkpoint_structure import check_structure
from ddpm_lightning.configurable import check_arguments
from ddpm_lightning.diffusion import MSE, LossSecondMoment
from ddpm_lightning.errors import InputError
from ddpm_lightning.integrity import digests_of, plain_digest, walk
from ddpm_lightning.networks import UNet
from ddpm_lightning.run_folder import last_checkpoint
from tests.small import TinyUNet, assert_same_weights, fit, image_spec, tiny_data, trainer
from tests.test_whole_checkpoints import altered, emptied

SMALL = {"channels": 8, "multipliers": [1, 2], "blocks": 1, "attention_levels": [1], "groups": 4}
Point = collections.namedtuple("Point", "x y")


class Rotary(UNet):
    """A network with a large number that is no size."""

    def __init__(self, data, out_channels, theta: float = 1e9, period: int = 1_000_000):
        super().__init__(data, out_channels, **SMALL)


class Counting(UNet):
    """A network that keeps plain data beside its weights."""

    def __init__(self, data, out_channels):
        super().__init__(data, out_channels, **SMALL)
        self.calls = 0

    def forward(self, *arguments, **named):
        self.calls += self.training
        return super().forward(*arguments, **named)

    def get_extra_state(self):
        return {"calls": self.calls}

    def set_extra_state(self, state):
        self.calls = state["calls"]


class Unused(UNet):
    """A network with a parameter that gets no gradient."""

    def __init__(self, data, out_channels):
        super().__init__(data, out_channels, **SMALL)
        self.unused = nn.Parameter(torch.randn(3))


class Filled(MSE):
    def __init__(self, fill: float = math.nan, fills: tuple[float, ...] = (math.nan,)):
        super().__init__()


class Latent(DiffusionModule):
    """A module that leaves the weights of a frozen part out of its checkpoints."""

    strict_loading = False

    def __init__(self, data, **arguments):
        super().__init__(data, **arguments)
        self.vae = nn.Linear(1000, 1000).requires_grad_(False)

    def on_save_checkpoint(self, checkpoint):
        super().on_save_checkpoint(checkpoint)
        for name in [name for name in checkpoint["state_dict"] if name.startswith("vae.")]:
            del checkpoint["state_dict"][name]


class Keeper(Callback):
    def __init__(self, kept):
        self.kept = kept

    def state_dict(self):
        return {"kept": self.kept}

    def load_state_dict(self, state):
        self.kept = state["kept"]


@pytest.fixture
def content(tiny_checkpoint):
    checkpoint = torch.load(tiny_checkpoint, weights_only=True)
    own = checkpoint[KEY]
    return {**checkpoint, KEY: {key: own[key] for key in own if key != "digests"}}


def test_a_large_number_that_is_no_size_can_be_loaded(tmp_path):
    fit(tmp_path, 3, net=Rotary)
    assert type(DiffusionModule.load_from_checkpoint(last_checkpoint(tmp_path)).net) is Rotary


def test_numbers_of_a_schedule_are_not_multiplied_with_one_another(content):
    timesteps = LossSecondMoment(history=10).describe()
    content["hyper_parameters"]["timesteps"] = timesteps
    content["hyper_parameters"]["schedule"]["init_args"] |= {"T": 2000, "sigma_max": 1348.0}
    content["hyper_parameters"]["schedule"]["init_args"]["own"] = 100_000
    check_structure(content)


def test_a_table_that_cannot_be_is_refused(content):
    content["hyper_parameters"]["timesteps"] = LossSecondMoment(history=10**6).describe()
    with pytest.raises(InputError, match="no table has so many entries"):
        check_structure(content)


def test_a_number_too_long_for_its_description_is_refused(content):
    content["hyper_parameters"]["ema"]["init_args"]["start"] = 10**30
    with pytest.raises(InputError, match=r"\['start'\] is a number of 100 bits"):
        check_structure(content)


@pytest.mark.slow
def test_a_network_goes_on_with_the_plain_data_it_keeps(tmp_path):
    fit(tmp_path / "cut", 3, net=Counting)
    module = fit(tmp_path / "cut", 5, net=Counting, resume=True)
    whole = fit(tmp_path / "whole", 5, net=Counting)
    assert module.net.calls == whole.net.calls > 0
    loaded = DiffusionModule.load_from_checkpoint(last_checkpoint(tmp_path / "cut"))
    assert loaded.net.calls == module.net.calls


def test_a_format_that_is_no_number_is_refused(tmp_path, tiny_checkpoint):
    def edit(checkpoint):
        checkpoint[KEY]["format"] = torch.zeros(3)

    with pytest.raises(InputError, match="is damaged: its format is"):
        DiffusionModule.load_from_checkpoint(altered(tiny_checkpoint, tmp_path, edit))


def test_a_weight_that_is_no_tensor_is_refused(tmp_path, tiny_checkpoint):
    def edit(checkpoint):
        checkpoint["state_dict"]["net.out.bias"] = [0.0]

    with pytest.raises(InputError, match=r"do not fit the network: net\.out\.bias is \[0\.0\]"):
        DiffusionModule.load_from_checkpoint(altered(tiny_checkpoint, tmp_path, edit))


@pytest.mark.parametrize(
    "kept",
    [
        collections.defaultdict(int, {"a": 1}),
        Point(1, 2),
        {np.int64(3): 1.0},
        {np.int64(3)},
        {(1, (np.int64(3),)): 1.0},
        torch.eye(3).to_sparse(),
        torch.zeros(1).expand(8),
        torch.zeros(2, device="meta"),
    ],
    ids=lambda kept: type(kept).__name__,
)
def test_what_would_not_be_read_is_refused_when_it_is_saved(kept):
    with pytest.raises(InputError, match=r"\['kept'\]"):
        digests_of({"kept": kept})


@pytest.mark.slow
@pytest.mark.parametrize(
    "kept",
    [
        np.random.default_rng(0).bit_generator.state,
        collections.Counter("aab"),
        collections.OrderedDict(a=1),
        {(1, "a"): {True, None}},
    ],
    ids=lambda kept: type(kept).__name__,
)
def test_what_a_callback_keeps_is_given_back(tmp_path, kept):
    fit(tmp_path, 3, Keeper(kept))
    keeper = Keeper(None)
    fit(tmp_path, 4, keeper, resume=True)
    assert keeper.kept == kept


@pytest.mark.slow
def test_a_long_list_has_an_end():
    plain_digest({"kept": list(range(2_000_001))})


def test_a_list_repeated_in_itself_has_none():
    bomb: list = [0]
    for _ in range(40):
        bomb = [bomb, bomb]
    with pytest.raises(InputError, match="repeated without end"):
        list(walk(bomb))


@pytest.mark.slow
@pytest.mark.parametrize("ema", [EMA(0.0), EMA(0.9, start=100)], ids=["decay 0", "start"])
@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.Adam])
def test_an_optimizer_without_its_state_is_refused_whatever_the_average(tmp_path, optimizer, ema):
    arguments = {"optimizer": partial(optimizer, lr=1e-3), "ema": ema}
    fit(tmp_path, 3, **arguments)
    path = altered(last_checkpoint(tmp_path), tmp_path, emptied)
    with pytest.raises(InputError, match="in the checkpoint's optimizer is missing"):
        fit(tmp_path / "other", 4, resume=path, **arguments)


def test_a_parameter_without_gradient_needs_no_state_in_half_precision(tmp_path):
    run = {"precision": "bf16-true", "callbacks": [RunCheckpoint(3)]}
    fit(tmp_path, 3, net=Unused, run=run)
    assert fit(tmp_path, 4, net=Unused, run=run, resume=True).trainer.global_step == 4


@pytest.mark.slow
def test_a_module_may_leave_frozen_weights_out(tmp_path):
    def train(steps, resume):
        torch.manual_seed(0)
        module = Latent(image_spec(num_classes=10), net=TinyUNet)
        path = last_checkpoint(tmp_path) if resume else None
        trainer(tmp_path, steps).fit(module, tiny_data(), ckpt_path=path, weights_only=True)
        return module

    train(3, resume=False)
    module = train(6, resume=True)
    loaded = Latent.load_from_checkpoint(last_checkpoint(tmp_path))
    assert_same_weights(loaded.net, module.net)


def test_a_default_that_is_no_number_fits():
    check_arguments(Filled, Filled().plain_arguments())
    check_arguments(Filled, {"fill": float("nan"), "fills": [float("nan")]})
