"""The loss by noise level."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from torch import Tensor
from typing_extensions import override

from ddpm_lightning.callbacks.sharing import of_all_ranks, of_this_rank
from ddpm_lightning.diffusion.schedules import Schedule
from ddpm_lightning.errors import InputError
from ddpm_lightning.module import DiffusionModule
from ddpm_lightning.plots.figure import new_figure, write_figure
from ddpm_lightning.trackers import show


class LossByTimestep(Callback):
    """Logs the loss in four equal ranges of t, in training and (raw and EMA) in validation.

    The mean loss soon looks flat while some levels still improve. Range 1 is next to the data.
    Tags: train/loss_q1 … train/loss_q4, val/loss_q1 …, val/loss_ema_q1 …. Each validation also
    draws the loss against t and against log SNR, as loss_by_timestep.png in the run folder and
    val/loss_by_timestep in the loggers: the levels and the noise are the same every time.

    Args:
        bins: Number of ranges.
        curve: Number of ranges of the picture; 0: no picture.
    """

    def __init__(self, bins: int = 4, curve: int = 20) -> None:
        if bins < 1 or curve < 0:
            raise InputError(f"LossByTimestep(bins={bins}, curve={curve}): at least 1 and 0")
        self.bins = bins
        self.curve = curve
        self._sums: dict[str, Tensor] = {}
        self._saved: dict[str, Tensor] = {}
        self._logged_step = 0

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(bins=self.bins)

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        window = {
            name: of_all_ranks(sums, trainer)
            for name, sums in self._sums.items()
            if name.startswith("train")
        }
        checkpoint["callbacks"][self.state_key] = {"window": window}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        window = state_dict.get("window")
        if not isinstance(window, dict) or not all(map(torch.is_tensor, window.values())):
            raise InputError("the checkpoint's window of LossByTimestep is no tensors by name")
        self._saved = window

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        saved, self._saved = self._saved, {}
        self._sums = {
            name: of_this_rank(sums, trainer).to(pl_module.device) for name, sums in saved.items()
        }
        self._logged_step = trainer.global_step

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any
    ) -> None:
        self._add(pl_module, outputs, {"train/loss": outputs["per_sample"]})
        step = trainer.global_step
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and step % every == 0 and step != self._logged_step:
            self._logged_step = step
            self._log(trainer, "train")

    @override
    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any
    ) -> None:
        losses = {f"val/{name}": outputs[name] for name in ("loss", "loss_ema")}
        self._add(pl_module, outputs, losses)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DiffusionModule)
        by_level = self._log(trainer, "val")
        if not self.curve or trainer.sanity_checking or not trainer.is_global_zero:
            return
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        figure = draw_losses(
            {name: in_ranges(sums, self.curve) for name, sums in by_level.items()},
            pl_module.schedule,
            f"loss by noise level, validation at step {trainer.global_step}",
        )
        file = Path(trainer.default_root_dir) / "loss_by_timestep.png"
        write_figure(file, figure)
        show(trainer, "val/loss_by_timestep", file, trainer.global_step)

    def _add(
        self, module: LightningModule, outputs: Mapping[str, Tensor], losses: dict[str, Tensor]
    ) -> None:
        assert isinstance(module, DiffusionModule)
        level = outputs["t"].ceil().long()  # a real time counts for the level above it
        for name, loss in losses.items():
            if name not in self._sums:
                self._sums[name] = torch.zeros(2, module.schedule.T, device=level.device)
            self._sums[name][0].index_add_(0, level - 1, loss.float())
            self._sums[name][1].index_add_(0, level - 1, torch.ones_like(loss, dtype=torch.float))

    def _log(self, trainer: Trainer, split: str) -> dict[str, Tensor]:
        """Log the means by range; give the sums and counts of all processes by level, [2, T]."""
        by_level = {
            name: trainer.strategy.reduce(self._sums.pop(name), reduce_op="sum").cpu()
            for name in [name for name in self._sums if name.startswith(split)]
        }
        metrics = {
            f"{name}_q{i + 1}": mean
            for name, sums in by_level.items()
            for i, mean in enumerate(in_ranges(sums, self.bins))
            if not math.isnan(mean)
        }
        if not trainer.sanity_checking:
            for logger in trainer.loggers:
                logger.log_metrics(metrics, trainer.global_step)
        return by_level


def in_ranges(by_level: Tensor, count: int) -> list[float]:
    """Average losses over equal ranges of the levels.

    Args:
        by_level: [2, T] sums and counts at t = 1…T.
        count: Number of ranges.

    Returns:
        The means, from the data upwards; NaN where nothing was counted.
    """
    T = by_level.shape[1]
    sums = by_level.new_zeros(2, count)
    sums.index_add_(1, torch.arange(T) * count // T, by_level)
    return (sums[0] / sums[1]).tolist()


def draw_losses(curves: dict[str, list[float]], schedule: Schedule, title: str = "") -> Figure:
    """Draw losses over the noise axis twice: against t/T and against log SNR.

    Args:
        curves: By name, means over equal ranges of the levels.
        schedule: The forward process.
        title: What stands above both.
    """
    figure = new_figure(9, 3.5)
    figure.suptitle(title, fontsize=10)
    left, right = figure.subplots(1, 2, sharey=True)
    log_snr = 2 * (schedule.alpha.log() - schedule.sigma.log())
    for name, losses in curves.items():
        middles = [(i + 0.5) / len(losses) for i in range(len(losses))]
        left.plot(middles, losses, ".-", label=name)
        levels = torch.tensor([max(1, round(share * schedule.T)) for share in middles])
        right.plot(log_snr[levels].tolist(), losses, ".-", label=name)
    left.set(xlabel="t / T", ylabel="loss")
    right.set(xlabel="log SNR (data on the right)")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    return figure
