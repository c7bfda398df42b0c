"""Folders of image files, checked and read as 8 bits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ddpm_lightning.errors import InputError
from ddpm_lightning.images.reading import MODES

SUFFIXES = (".png", ".jpg", ".jpeg")

OVERVIEW = "grid.png"
"""The overview of a folder's images, which is skipped."""


class ImageFolder:
    """The PNG and JPEG files of a folder and its subfolders, ordered by path, without grid.png.

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
            mode (checked from the headers).
    """

    def __init__(self, folder: Path, n: int | None = None) -> None:
        if not folder.is_dir():
            raise InputError(f"no folder {folder}")
        found = (f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES)
        files = sorted(f for f in found if f.name != OVERVIEW)
        if not files:
            raise InputError(f"{folder} holds no PNG or JPEG image")
        if n is not None and n > len(files):
            raise InputError(f"{folder} holds {len(files)} images, fewer than n = {n}; lower --n")
        self.files = files[:n]
        first, *others = self.files
        self.shape = _shape(first)
        for file in others:
            if (shape := _shape(file)) != self.shape:
                raise InputError(
                    f"{file} is {_words(shape)}, but {first.name} is {_words(self.shape)}; bring "
                    "all images to one size and kind"
                )

    def __len__(self) -> int:
        return len(self.files)

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """Yield the images in batches uint8 [B, C, H, W]."""
        for start in range(0, len(self.files), batch_size):
            yield self.read(self.files[start : start + batch_size])

    def read(self, files: Sequence[Path]) -> Tensor:
        """Read some of the files: uint8 [B, C, H, W]."""
        return torch.stack([_pixels(file) for file in files])


@contextmanager
def _opened(file: Path) -> Iterator[Image.Image]:
    """Open an image; errors become an InputError."""
    try:
        with Image.open(file, formats=("PNG", "JPEG")) as image:
            yield image
    except UnidentifiedImageError as error:
        raise InputError(f"{file} is not a PNG or JPEG image") from error
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise InputError(f"{file} is damaged ({error}); make it anew or remove it") from error


def _shape(file: Path) -> tuple[int, int, int]:
    """Read channels, height and width from the header."""
    with _opened(file) as image:
        mode, (width, height) = image.mode, image.size
    for channels, name in MODES.items():
        if mode == name:
            return channels, height, width
    fix = "convert it in Python: PIL.Image.open(old).convert(mode).save(new), with mode 'RGB' for "
    fix += "images in colour and 'L' for grey ones"
    if mode.startswith(("I", "F")):
        fix = "it holds more than 8 bits a pixel: scale it to 0…255 and save it as grey"
    raise InputError(f"{file} is {mode}, not one of {', '.join(MODES.values())}; {fix}")


def _pixels(file: Path) -> Tensor:
    with _opened(file) as image:
        array = np.array(image)  # [H, W] or [H, W, C]
    return torch.from_numpy(array).view(*array.shape[:2], -1).permute(2, 0, 1)


def _words(shape: tuple[int, int, int]) -> str:
    channels, height, width = shape
    return f"{MODES[channels]} of {width}×{height} pixels"
