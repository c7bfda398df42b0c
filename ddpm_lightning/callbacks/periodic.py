"""Callbacks that act every so many optimizer steps and once more at the end of training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ddpm_lightning.errors import InputError


class Periodic(Callback, ABC):
    """Calls :meth:`run` every so many optimizer steps and at the end of training.

    Args:
        every_n_steps: Optimizer steps from one time to the next.
    """

    def __init__(self, every_n_steps: int) -> None:
        if every_n_steps < 1:
            raise InputError(f"{type(self).__name__}(every_n_steps={every_n_steps}): at least 1")
        self.every_n_steps = every_n_steps
        self._last_step = 0

    @abstractmethod
    def run(self, trainer: Trainer, module: LightningModule, step: int) -> None:
        """Act after this many optimizer steps. Called on every process."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin behind the step that was saved, for a save comes last in its step."""
        self._last_step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Act at optimizer-step boundaries; micro-batches in between share their step."""
        if trainer.global_step % self.every_n_steps == 0:
            self._run_once(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Act on the final weights, unless that has been done."""
        self._run_once(trainer, pl_module)

    def _run_once(self, trainer: Trainer, module: LightningModule) -> None:
        step = trainer.global_step
        if step != self._last_step and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._last_step = step
            self.run(trainer, module, step)
