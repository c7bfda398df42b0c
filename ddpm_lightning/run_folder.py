"""The run folder: its last checkpoint, and whether that step was validated and measured."""

from __future__ import annotations

import re
from pathlib import Path

from lightning.pytorch import Trainer

from ddpm_lightning.errors import InputError
from ddpm_lightning.files import atomic_write


def last_checkpoint(run_folder: str | Path) -> Path:
    """The path of a run's latest checkpoint."""
    return Path(run_folder) / "checkpoints" / "last.ckpt"


def mark(trainer: Trainer, step: int, pending: bool) -> None:
    """Write, next to the checkpoint, whether its validation, grids and metrics are pending."""
    if trainer.is_global_zero:
        with atomic_write(_note(trainer)) as partial:
            partial.write_text(_text(step, pending), "utf-8")


def was_cut_off(trainer: Trainer) -> bool:
    """Whether a run resumes its own last checkpoint with validation or metrics pending."""
    own, path = last_checkpoint(trainer.default_root_dir), trainer.ckpt_path
    if path is None or Path(path).resolve() != own.resolve():
        return False
    note = _note(trainer)
    text = note.read_bytes() if note.is_file() else b""
    if text and not re.fullmatch(rb"step \d+: [ -~]+\n", text):
        raise InputError(f"{note} is damaged; remove it to go on without what it says is to come")
    pending = text == _text(trainer.global_step, pending=True).encode()
    return bool(trainer.strategy.broadcast(pending))


def _note(trainer: Trainer) -> Path:
    return last_checkpoint(trainer.default_root_dir).with_suffix(".txt")


def _text(step: int, pending: bool) -> str:
    state = "still to come" if pending else "done"
    return f"step {step}: validation, grids and metrics are {state}\n"
