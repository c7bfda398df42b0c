"""Where a run keeps its last save, and whether a stop cut off what follows it."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Trainer


def last_checkpoint(run_folder: str | Path) -> Path:
    """Where a run keeps its latest checkpoint."""
    return Path(run_folder) / "checkpoints" / "last.ckpt"


def mark_done(trainer: Trainer, step: int) -> None:
    """Note that all that follows the save at this step has happened."""
    if trainer.is_global_zero:
        _mark(trainer).write_text(_note(step))


def was_cut_off(trainer: Trainer) -> bool:
    """Whether this run goes on from its own last save, and a stop cut off what follows it."""
    own = last_checkpoint(trainer.default_root_dir)
    path = trainer.ckpt_path
    if path is None or Path(path).resolve() != own.resolve():
        return False
    mark = _mark(trainer)
    done = mark.is_file() and mark.read_text() == _note(trainer.global_step)
    return bool(trainer.strategy.broadcast(not done))


def _mark(trainer: Trainer) -> Path:
    return last_checkpoint(trainer.default_root_dir).with_suffix(".done")


def _note(step: int) -> str:
    return f"step {step}: validation, grids and metrics are done, too\n"
