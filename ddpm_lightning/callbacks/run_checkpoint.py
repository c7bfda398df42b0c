"""Checkpoints of a run: <run folder>/checkpoints/last.ckpt."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from lightning.pytorch.utilities.exceptions import SIGTERMException
from tqdm.auto import tqdm
from typing_extensions import override

from ddpm_lightning.callbacks.periodic import Periodic
from ddpm_lightning.checkpoint import read_checkpoint
from ddpm_lightning.errors import InputError
from ddpm_lightning.files import PARTIAL
from ddpm_lightning.run_folder import last_checkpoint, mark, was_cut_off


class RunCheckpoint(Periodic, Checkpoint):
    """Saves the run every so many steps, and at its end, as checkpoints/last.ckpt.

    Saved between optimizer steps only, so that resuming continues exactly. last.txt beside it
    says whether validation, grids and metrics of that step are done: where a stop cut them off, a
    resumed run makes up for them first.

    Args:
        every_n_steps: Optimizer steps between saves: the most a stopped run loses.
        keep_all: Also keep a copy of each save, as checkpoints/step_00001000.ckpt and so on.
    """

    def __init__(self, every_n_steps: int = 1000, keep_all: bool = False) -> None:
        super().__init__(every_n_steps)
        self.keep_all = keep_all
        self._pending: int | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse asynchronous checkpoint IO: the file is renamed into place right after saving."""
        if isinstance(trainer.strategy.checkpoint_io, AsyncCheckpointIO):
            raise InputError("RunCheckpoint saves at once; leave out AsyncCheckpointIO")

    @override
    def run(self, trainer: Trainer, module: LightningModule, step: int) -> None:
        path = last_checkpoint(trainer.default_root_dir)
        partial = path.with_name(path.name + PARTIAL)  # a stop while saving leaves the last save
        trainer.save_checkpoint(partial, weights_only=False)
        mark(trainer, step, pending=True)
        if trainer.is_global_zero:
            partial.replace(path)
            if self.keep_all:
                _copy(path, path.with_name(f"step_{step:08d}.ckpt"))
        self._pending = step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate where a stop cut validation off, before the other callbacks catch up."""
        self._last_step = trainer.global_step
        if was_cut_off(trainer):
            self._pending = trainer.global_step
            if _validation_is_due(trainer):
                trainer.validating = True
                trainer.fit_loop.epoch_loop.val_loop.run()
                trainer.training = True

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Mark what follows the last save as done, for training goes on."""
        self._mark_done(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Mark what follows the last save as done."""
        self._mark_done(trainer)

    def _mark_done(self, trainer: Trainer) -> None:
        if self._pending is not None:
            mark(trainer, self._pending, pending=False)
            self._pending = None

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Print how to go on after Ctrl-C, or after the SIGTERM of a scheduler."""
        if isinstance(exception, SIGTERMException):
            exception.code = 128 + signal.SIGTERM  # not 0: the run is not finished
        elif not isinstance(exception, KeyboardInterrupt):
            return
        if trainer.is_global_zero:
            root = trainer.default_root_dir
            advice = "nothing is saved yet: start again"
            if last_checkpoint(root).exists():
                step = read_checkpoint(last_checkpoint(root))["global_step"]
                advice = f"step {step} is saved: go on by --ckpt_path last"
            tqdm.write(f"\n{root}: stopped after step {trainer.global_step}; {advice}")


def _validation_is_due(trainer: Trainer) -> bool:
    """Whether a validation is due after the micro-batches so far, not counting those of epochs."""
    every, seen = trainer.val_check_batch, trainer.fit_loop.epoch_loop.total_batch_idx + 1
    counted = trainer.check_val_every_n_epoch is None and trainer.enable_validation
    return bool(counted and every and seen and seen % every == 0)


def _copy(path: Path, copy: Path) -> None:
    """Link or copy a file; a link serves, for the file is replaced and never written to."""
    copy.unlink(missing_ok=True)
    try:
        os.link(path, copy)
    except OSError:
        shutil.copyfile(path, copy)
