"""What callbacks say to all loggers of a trainer at once."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor

from ddpm_lightning.trackers.registry import tracker_class
from ddpm_lightning.trackers.tracker import Tracker


def trackers_of(trainer: Trainer) -> list[Tracker]:
    """List the trackers of a trainer's loggers."""
    root = Path(trainer.default_root_dir)
    loggers = [one for one in trainer.loggers if not isinstance(one, DummyLogger)]
    return [tracker_class(type(logger))(logger, root) for logger in loggers]


def show(trainer: Trainer, tag: str, file: Path, step: int) -> None:
    """Show a PNG, GIF or MP4 file of the run folder. Call on the first process."""
    for tracker in trackers_of(trainer):
        tracker.show(tag, file, step)


def show_samples(trainer: Trainer, tag: str, images: Tensor, labels: Tensor, step: int) -> None:
    """Show samples uint8 [n, C, H, W] by class int64 [n]. Call on the first process."""
    for tracker in trackers_of(trainer):
        tracker.samples(tag, images, labels, step)
