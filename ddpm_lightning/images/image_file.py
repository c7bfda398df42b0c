"""One image file: what its header says, and its pixels as they are."""

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

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
"""Pillow's names of the formats that are read."""

KINDS = "PNG, JPEG, WebP, BMP, TIFF or GIF"
"""The same, for messages."""

ENDINGS = (".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""Endings of their files."""

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's mode by number of channels."""

ORIENTATION = 0x0112
"""The EXIF tag that says how an image is to be turned; 5 to 8 swap height and width."""

BITS_PER_SAMPLE = 258
"""The tag of a TIFF that lists the bits of each channel."""

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class ImageFile:
    """The header of an image of at most 8 bits a channel; the pixels are read on demand.

    Attributes:
        path: The file.
        mode: Pillow's mode: 1, L, LA, P, RGB, RGBA or, of a JPEG or TIFF, CMYK.
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

        Raises InputError: The file is missing, damaged, too large, of another format, or has more
        than 8 bits a channel, which Pillow would cut off.
        """
        if not path.is_file():
            raise InputError(f"no image at {path}")
        found, depth = _guarded(path, lambda image: (cls._of(path, image), _depth(path, image)))
        if depth > 8:
            scaled = f"(t.decode_image({str(path)!r}) / 257).round().byte()"
            command = f"python -c \"import torchvision.io as t; t.write_png({scaled}, 'new.png')\""
            how = f": {command}" if path.suffix.lower() == ".png" else " and save it as PNG"
            raise InputError(f"{path} has more than 8 bits a channel; scale it to 8 bits{how}")
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


def converted(file: ImageFile, mode: str) -> Image.Image:
    """Read the pixels in another mode; raise InputError for the few that Pillow cannot convert."""
    image = file.load()
    try:
        return image.convert(mode)
    except ValueError as error:
        raise InputError(f"{file.path}: {error}; save it as RGB") from error


def channels_first(image: Image.Image) -> Tensor:
    """The pixels of an image of C channels: uint8 [C, H, W]; of mode "1" bool."""
    array = np.array(image)  # [H, W] or [H, W, C]
    return torch.from_numpy(array).view(*array.shape[:2], -1).permute(2, 0, 1)


def _guarded(path: Path, read: Callable[[Image.Image], _Result]) -> _Result:
    """Apply Pillow to a file; whatever it makes of damaged bytes becomes an InputError."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return read(image)
    except UnidentifiedImageError as error:
        raise InputError(f"{path} is not a {KINDS} image") from error
    except PermissionError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (Image.DecompressionBombError, MemoryError) as error:
        raise InputError(f"{path} is too large to be read ({error}); make it smaller") from error
    except Exception as error:  # Pillow meets damage with errors of any kind
        reason = str(error) or type(error).__name__
        raise InputError(f"{path} is damaged ({reason}); save it again or remove it") from error


def _depth(path: Path, image: Image.Image) -> int:
    """Bits a channel: of a PNG byte 24, of a TIFF a tag; of what else Pillow opens at most 8."""
    if image.format == "PNG":
        with path.open("rb") as file:
            return file.read(25)[24]
    return max(getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (8,)))
