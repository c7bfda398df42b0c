"""What a training step costs beside its mathematics: numbers that are read, and the kernels."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LearningRateMonitor
from torch.utils._python_dispatch import TorchDispatchMode

from ddpm_lightning.callbacks import LossByTimestep, StepProgressBar, TrainingMonitor
from tests.small import fit, logging_trainer, tiny_data, tiny_module

READ = torch.ops.aten._local_scalar_dense.default


class Reads(TorchDispatchMode):
    """Keeps the numbers that are read from tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[float] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        value = func(*args, **(kwargs or {}))
        if func is READ:
            self.seen.append(value)
        return value


class OfOneStep(Callback):
    """Watches from the end of the second step to that of the third."""

    def __init__(self) -> None:
        self.reads = Reads()
        self.norm = 0.0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == 2:
            self.reads.__enter__()
        if trainer.global_step == 3:
            self.reads.__exit__(None, None, None)
            self.norm = pl_module.gradients.norm


def test_a_step_reads_no_number_but_the_norm_of_the_gradients(tmp_path):
    watch = OfOneStep()
    bar = StepProgressBar(seconds=math.inf)
    usual = [LossByTimestep(), LearningRateMonitor(), TrainingMonitor(), bar]
    one = logging_trainer(tmp_path, 4, [watch, *usual], enable_progress_bar=True)
    one.fit(tiny_module(), tiny_data())
    assert watch.reads.seen == [watch.norm]


def test_a_bar_of_our_own_shows_the_loss_of_the_step(tmp_path):
    bar = StepProgressBar()
    module = tiny_module()
    one = logging_trainer(tmp_path, 2, [bar], enable_progress_bar=True)
    one.fit(module, tiny_data())
    assert bar.get_metrics(one, module)["train/loss"] == float(module.last_means["train/loss"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_the_fused_kernel_trains_as_the_plain_one(tmp_path, kind):
    plain, fused = (
        fit(tmp_path / name, 4, optimizer=partial(kind, lr=1e-3, **settings))
        for name, settings in {"plain": {"fused": False}, "fused": {}}.items()
    )
    assert not plain.optimizers().param_groups[0]["fused"]
    assert fused.optimizers().param_groups[0]["fused"]
    for ours, theirs in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("settings", [{"foreach": True}, {"foreach": False}, {"fused": False}])
def test_how_the_optimizer_steps_stays_as_it_is_stated(tmp_path, settings):
    module = fit(tmp_path, 1, optimizer=partial(torch.optim.Adam, **settings))
    assert not module.optimizers().param_groups[0]["fused"]


@pytest.mark.slow
@pytest.mark.parametrize(("before", "now"), [({}, {"fused": False}), ({"fused": False}, {})])
def test_a_run_that_goes_on_steps_as_it_says_itself(tmp_path, before, now):
    fit(tmp_path, 3, optimizer=partial(torch.optim.Adam, **before))
    module = fit(tmp_path, 6, resume=True, optimizer=partial(torch.optim.Adam, **now))
    assert bool(module.optimizers().param_groups[0]["fused"]) == (now == {})
