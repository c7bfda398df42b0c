"""Pictures in TensorBoard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter


def show_picture(trainer: Trainer, tag: str, picture: Tensor, step: int) -> None:
    """Show a uint8 picture [C, H, W] in every TensorBoard of a trainer."""
    for writer in _writers(trainer):
        writer.add_image(tag, picture, step)


def show_animation(trainer: Trainer, tag: str, gif: Path, step: int) -> None:
    """Show a GIF file in every TensorBoard of a trainer, moving."""
    width, height = Image.open(gif).size
    # SummaryWriter.add_video would write the same, but wants moviepy to make the file anew.
    image = Summary.Image(
        height=height, width=width, colorspace=3, encoded_image_string=gif.read_bytes()
    )
    summary = Summary(value=[Summary.Value(tag=tag, image=image)])
    for writer in _writers(trainer):
        writer._get_file_writer().add_summary(summary, step)


def _writers(trainer: Trainer) -> Iterator[SummaryWriter]:
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            yield logger.experiment
