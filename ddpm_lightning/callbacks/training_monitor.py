"""Gradient norm, EMA decay and speed of a training, and its final metrics."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from typing_extensions import override

from ddpm_lightning.module import DiffusionModule

FINAL = ("val/loss_ema", "fid", "fd", "swd")
"""Metrics shown in TensorBoard's HPARAMS tab, where they were measured."""


class TrainingMonitor(Callback):
    """Logs gradient norm, EMA decay and speed; the hyper-parameters with the final metric.

    Tags, whenever the trainer logs: train/grad_norm, the 2-norm of all gradients before clipping;
    train/ema_decay, by which the average just moved and which rises during its warm-up;
    train/images_per_second, of wall time since the last log, pictures and metrics included. At
    the end TensorBoard's HPARAMS page gets the last val/loss_ema and fid, fd or swd; place it
    behind the callbacks that measure these at the end, as the command line does.
    """

    def __init__(self) -> None:
        self._since = 0, 0.0

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = trainer.global_step, time.perf_counter()

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, DiffusionModule)
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
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and final:
                logger.log_hyperparams(dict(pl_module.hparams), final, step=trainer.global_step)

    @staticmethod
    def _logs_after(trainer: Trainer, step: int) -> bool:
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        return bool(every) and step % every == 0
