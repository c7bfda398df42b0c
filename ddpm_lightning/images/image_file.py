"""One PNG or JPEG file: the reader that every other reader of this package uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ddpm_lightning.errors import InputError

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's mode by number of channels."""

ORIENTATION = 0x0112
"""The EXIF tag that says how an image is to be turned; 5 to 8 swap height and width."""

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class ImageFile:
    """The header of a PNG or JPEG with at most 8 bits a channel; the pixels are read on demand.

    Attributes:
        path: The file.
        mode: Pillow's mode: 1, L, LA, P, RGB, RGBA or, of a JPEG, CMYK.
        width: Pixels, of the image as it is to be shown (EXIF orientation).
        height: Pixels, likewise.
        transparent: Whether it has an alpha channel or a transparent colour.
        frames: Number of frames, of which the first is meant.
    """

    path: Path
    mode: str
    width: int
    height: int
    transparent: bool
    frames: int

    @classmethod
    def open(cls, path: Path) -> ImageFile:
        """Read the header.

        Raises InputError: The file is missing, damaged, too large, no PNG or JPEG, or has more
        than 8 bits a channel, which Pillow would cut off.
        """
        if not path.is_file():
            raise InputError(f"no image at {path}")
        found = _guarded(path, lambda image: cls._of(path, image))
        if _depth(path) > 8:
            raise InputError(
                f'{path} has more than 8 bits a channel; scale it to 8 bits: python -c "import '
                f"torchvision.io as t; t.write_png((t.decode_image({str(path)!r}) / 257).round()"
                ".byte(), 'new.png')\""
            )
        return found

    @classmethod
    def _of(cls, path: Path, image: Image.Image) -> ImageFile:
        # Not image.getexif(), because that of a PNG reads the pixels, if EXIF or XMP may stand
        # behind them, where load() finds it.
        turned = Image.Image.getexif(image).get(ORIENTATION, 1) in (5, 6, 7, 8)
        width, height = image.size[::-1] if turned else image.size
        transparent = image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info
        return cls(path, image.mode, width, height, transparent, getattr(image, "n_frames", 1))

    def load(self) -> Image.Image:
        """Read the pixels of the first frame, in the file's own mode, turned as EXIF says.

        Raises:
            InputError: The file is damaged.
        """

        def decode(image: Image.Image) -> Image.Image:
            upright = ImageOps.exif_transpose(image)
            upright.load()
            return upright

        upright = _guarded(self.path, decode)
        if upright.size != (self.width, self.height):
            raise InputError(
                f"{self.path} says behind its pixels that it is turned; save it turned"
            )
        return upright


def channels_first(image: Image.Image) -> Tensor:
    """The pixels of an image of C channels: uint8 [C, H, W]; of mode "1" bool."""
    array = np.array(image)  # [H, W] or [H, W, C]
    return torch.from_numpy(array).view(*array.shape[:2], -1).permute(2, 0, 1)


def _guarded(path: Path, read: Callable[[Image.Image], _Result]) -> _Result:
    """Apply Pillow to a file; whatever it makes of damaged bytes becomes an InputError."""
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            return read(image)
    except UnidentifiedImageError as error:
        raise InputError(f"{path} is not a PNG or JPEG image") from error
    except PermissionError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (Image.DecompressionBombError, MemoryError) as error:
        raise InputError(f"{path} is too large to be read ({error}); make it smaller") from error
    except Exception as error:  # Pillow meets damage with errors of any kind
        reason = str(error) or type(error).__name__
        raise InputError(f"{path} is damaged ({reason}); save it again or remove it") from error


def _depth(path: Path) -> int:
    """Bits a channel: of a PNG byte 24, of a JPEG that Pillow opens always 8."""
    with path.open("rb") as file:
        head = file.read(25)
    return head[24] if head.startswith(b"\x89PNG") else 8
