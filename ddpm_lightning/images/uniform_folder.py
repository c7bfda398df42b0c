"""Folders of image files, checked and read as 8 bits."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm_lightning.errors import InputError, at_least
from ddpm_lightning.images.image_file import MODES, ImageFile, channels_first
from ddpm_lightning.images.listing import list_images


class UniformFolder:
    """The images of a folder, as list_images finds them.

    All must have the same size and the same mode: grey (1 channel), RGB (3) or RGBA (4). Nothing
    is resized or converted, because that would change the metrics.

    Args:
        folder: The folder.
        n: Take the first n; None: all.

    Attributes:
        files: The files.
        shape: [C, H, W] of every image.

    Raises:
        InputError: The folder is missing, holds fewer images, or images of different size or
            mode (checked from the headers), or n is below 1.
    """

    def __init__(self, folder: Path, n: int | None = None) -> None:
        at_least(1, n=n)
        found = list_images(folder)
        if n is not None and n > len(found):
            raise InputError(f"{folder} holds {len(found)} images, fewer than n = {n}; lower --n")
        self.files = found[:n]
        self.shape = _shape(ImageFile.open(self.files[0]))
        several: list[str] = []
        for header in map(ImageFile.open, self.files):
            if (shape := _shape(header)) != self.shape:
                raise InputError(
                    f"{header.path} is {_words(shape)}, but {self.files[0].name} is "
                    f"{_words(self.shape)}; bring all images to one size and kind"
                )
            if header.frames > 1:
                several.append(header.path.name)
        if several:
            warnings.warn(
                f"{folder}: {len(several)} images have several frames ({several[0]}, …), of which "
                "the first is taken",
                stacklevel=2,
            )

    def __len__(self) -> int:
        return len(self.files)

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """Yield the images in batches uint8 [B, C, H, W]."""
        for start in range(0, len(self.files), batch_size):
            yield self.read(self.files[start : start + batch_size])

    def read(self, files: Sequence[Any]) -> Tensor:
        """Read some of the files: uint8 [B, C, H, W]."""
        return torch.stack([channels_first(ImageFile.open(file).load()) for file in files])


def _shape(file: ImageFile) -> tuple[int, int, int]:
    """Channels, height and width."""
    for channels, mode in MODES.items():
        if file.mode == mode and not (file.transparent and mode != "RGBA"):
            return channels, file.height, file.width
    kind = f"{file.mode} with transparency" if file.transparent else file.mode
    raise InputError(
        f"{file.path} is {kind}, not one of {', '.join(MODES.values())}; convert it in Python: "
        "PIL.Image.open(old).convert(mode).save(new), with mode 'RGB' for images in colour and "
        "'L' for grey ones"
    )


def _words(shape: tuple[int, int, int]) -> str:
    channels, height, width = shape
    return f"{MODES[channels]} of {width}×{height} pixels"
