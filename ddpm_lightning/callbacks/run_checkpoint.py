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
        self._owing: int | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a save that is not done when it returns: nothing could take its place at once."""
        if isinstance(trainer.strategy.checkpoint_io, AsyncCheckpointIO):
            raise InputError("RunCheckpoint saves at once; leave out AsyncCheckpointIO")

    def run(self, trainer: Trainer, module: LightningModule, step: int) -> None:
        """Save; a stop meanwhile leaves the save before."""
        path = last_checkpoint(trainer.default_root_dir)
        partial = path.with_name(path.name + PARTIAL)
        trainer.save_checkpoint(partial, weights_only=False)
        mark(trainer, step, owed=True)
        if trainer.is_global_zero:
            partial.replace(path)
            if self.keep_all:
                _copy(path, path.with_name(f"step_{step:08d}.ckpt"))
        self._owing = step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate where a stop cut validation off, before the other callbacks catch up."""
        self._last_step = trainer.global_step
        if was_cut_off(trainer):
            self._owing = trainer.global_step
            if _validation_is_due(trainer):
                trainer.validating = True
                trainer.fit_loop.epoch_loop.val_loop.run()
                trainer.training = True

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Note that whatever followed the last save is done, for training goes on."""
        self._mark_done(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that the end of training is done."""
        self._mark_done(trainer)

    def _mark_done(self, trainer: Trainer) -> None:
        if self._owing is not None:
            mark(trainer, self._owing, owed=False)
            self._owing = None

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Say how to go on after Ctrl-C, or after the SIGTERM of a scheduler."""
        if isinstance(exception, SIGTERMException):
            exception.code = 128 + signal.SIGTERM  # not 0: the run is not finished
        elif not isinstance(exception, KeyboardInterrupt):
            return
        if trainer.is_global_zero:
            root = trainer.default_root_dir
            way = "nothing is saved yet: start again"
            if last_checkpoint(root).exists():
                step = read_checkpoint(last_checkpoint(root))["global_step"]
                way = f"step {step} is saved: go on by --ckpt_path last"
            tqdm.write(f"\n{root}: stopped after step {trainer.global_step}; {way}")


def _validation_is_due(trainer: Trainer) -> bool:
    """Whether a validation follows the micro-batches so far; those of whole epochs aside."""
    every, seen = trainer.val_check_batch, trainer.fit_loop.epoch_loop.total_batch_idx + 1
    counted = trainer.check_val_every_n_epoch is None and trainer.enable_validation
    return bool(counted and every and seen and seen % every == 0)


def _copy(path: Path, copy: Path) -> None:
    """A second name for the file, which is replaced and never written to; else a copy."""
    copy.unlink(missing_ok=True)
    try:
        os.link(path, copy)
    except OSError:
        shutil.copyfile(path, copy)
