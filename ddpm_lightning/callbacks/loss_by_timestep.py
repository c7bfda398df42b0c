"""Where on the noise axis the loss falls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ddpm_lightning.module import DiffusionModule


class LossByTimestep(Callback):
    """Logs the loss in four equal ranges of t, in training and (raw and EMA) in validation.

    The mean loss soon looks flat while some levels still improve. Range 1 is next to the data.
    Tags: train/loss_q1 … train/loss_q4, val/loss_q1 …, val/loss_ema_q1 ….

    Args:
        bins: Number of ranges.
    """

    def __init__(self, bins: int = 4) -> None:
        self.bins = bins
        self._sums: dict[str, Tensor] = {}
        self._logged_step = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any
    ) -> None:
        """Collect on the device; log when the trainer logs."""
        self._add(pl_module, outputs, {"train/loss": outputs["per_sample"]})
        step = trainer.global_step
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and step % every == 0 and step != self._logged_step:
            self._logged_step = step
            self._log(trainer, "train")

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any
    ) -> None:
        """Collect raw and EMA losses."""
        losses = {f"val/{name}": outputs[name] for name in ("loss", "loss_ema")}
        self._add(pl_module, outputs, losses)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the validation losses, summed over processes."""
        self._log(trainer, "val")

    def _add(
        self, module: LightningModule, outputs: Mapping[str, Tensor], losses: dict[str, Tensor]
    ) -> None:
        assert isinstance(module, DiffusionModule)
        t = outputs["t"]
        bin_of = (t - 1) * self.bins // module.schedule.T
        for name, loss in losses.items():
            if name not in self._sums:
                self._sums[name] = torch.zeros(2, self.bins, device=t.device)
            self._sums[name][0].index_add_(0, bin_of, loss.float())
            self._sums[name][1].index_add_(0, bin_of, torch.ones_like(loss, dtype=torch.float))

    def _log(self, trainer: Trainer, split: str) -> None:
        metrics = {}
        for name in [name for name in self._sums if name.startswith(split)]:
            total, count = trainer.strategy.reduce(self._sums.pop(name), reduce_op="sum")
            for i, (loss, n) in enumerate(zip(total.tolist(), count.tolist(), strict=True)):
                if n:
                    metrics[f"{name}_q{i + 1}"] = loss / n
        if not trainer.sanity_checking:
            for logger in trainer.loggers:
                logger.log_metrics(metrics, trainer.global_step)
