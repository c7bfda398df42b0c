"""Gradient norm, EMA decay and speed of a training, and its final metrics."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from ddpm_lightning.callbacks.hyper_parameters import FINAL
from ddpm_lightning.trackers import trackers_of
from ddpm_lightning.trained import TrainedModule


class TrainingMonitor(Callback):
    """Logs gradient norm, EMA decay and speed, and the final metrics.

    Tags, whenever the trainer logs: train/grad_norm, the 2-norm of all gradients before clipping;
    train/ema_decay, by which the average just moved and which rises during its warm-up;
    train/images_per_second, of wall time since the last log, pictures and metrics included. At
    the end final/val/loss_ema and final/fid, fd or swd are logged once more; place it behind the
    callbacks that measure these at the end, as the command line does.
    """

    def __init__(self) -> None:
        self._since = 0, 0.0

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = trainer.global_step, time.perf_counter()

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, TrainedModule)
        step, now = trainer.global_step, time.perf_counter()
        first, start = self._since
        if not self._logs_after(trainer, step) or step == first:
            return
        norm = pl_module.gradients.norm
        trainer.callback_metrics["train/grad_norm"] = torch.tensor(norm)
        metrics = {
            "train/grad_norm": norm,
            "train/ema_decay": pl_module.ema.decay_at(step - 1),
        }
        size = getattr(getattr(trainer, "datamodule", None), "global_batch_size", None)
        if size is not None:
            metrics["train/images_per_second"] = (step - first) * size / (now - start)
        self._since = step, now
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        final = {
            f"final/{name}": float(trainer.callback_metrics[name])
            for name in FINAL
            if name in trainer.callback_metrics
        }
        if final and trainer.is_global_zero:
            for tracker in trackers_of(trainer):
                tracker.finish(final, trainer.global_step)

    @staticmethod
    def _logs_after(trainer: Trainer, step: int) -> bool:
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        return bool(every) and step % every == 0
