"""Checkpoints of a run: <run folder>/checkpoints/last.ckpt."""

from __future__ import annotations

import signal
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from tqdm.auto import tqdm

from ddpm_lightning.callbacks.periodic import Periodic


def last_checkpoint(run_folder: str | Path) -> Path:
    """Where a run keeps its latest checkpoint."""
    return Path(run_folder) / "checkpoints" / "last.ckpt"


class RunCheckpoint(Periodic, Checkpoint):
    """Saves the run every so many steps, and at its end, as checkpoints/last.ckpt.

    Saved between optimizer steps only, so that resuming continues exactly.

    Args:
        every_n_steps: Optimizer steps between saves: the most a stopped run loses.
        keep_all: Also keep a copy of each save, as checkpoints/step_00001000.ckpt and so on.
    """

    def __init__(self, every_n_steps: int = 1000, keep_all: bool = False) -> None:
        super().__init__(every_n_steps)
        self.keep_all = keep_all

    def run(self, trainer: Trainer, module: LightningModule, step: int) -> None:
        """Save."""
        path = last_checkpoint(trainer.default_root_dir)
        trainer.save_checkpoint(path, weights_only=False)
        if self.keep_all:
            trainer.save_checkpoint(path.with_name(f"step_{step:08d}.ckpt"), weights_only=False)

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
                way = f"step {self._last_step} is saved: go on by --ckpt_path last"
            tqdm.write(f"\n{root}: stopped after step {trainer.global_step}; {way}")
