"""Reading single images and masks as tensors, without lossy conversion."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddpm_lightning.errors import InputError
from ddpm_lightning.images.eight_bits import from_uint8
from ddpm_lightning.images.image_file import MODES, ImageFile, channels_first, converted

LOSSLESS = {"L": ("1", "L"), "RGB": ("1", "L", "P", "RGB"), "RGBA": ("1", "L", "P", "RGB", "RGBA")}
"""The modes that convert to each mode without loss."""


def read_image(path: Path, shape: tuple[int, ...]) -> Tensor:
    """Read an image file as float32 [C, H, W] in [−1, 1], turned as its EXIF orientation says.

    Args:
        path: The file.
        shape: [C, H, W] that it must have; only lossless conversions, e.g. grey to RGB, are made.

    Raises:
        InputError: The file is missing, damaged, or of another size or mode.
    """
    file = _file_of_size(path, shape)
    mode = MODES.get(shape[0])
    if mode is None:
        raise InputError(f"no image file has the {shape[0]} channels of the model's data")
    transparent = file.transparent and mode != "RGBA"
    if file.mode not in LOSSLESS[mode] or transparent:
        keyed = transparent and file.mode in ("1", "L", "P", "RGB")
        kind = f"{file.mode} with transparency" if keyed else file.mode
        fix = f"PIL.Image.open({str(path)!r}).convert({mode!r}).save('new.png')"
        raise InputError(
            f"{path} is {kind}, but images of {shape[0]} channel(s), {mode}, are needed here; "
            f"convert it in Python: {fix}"
        )
    return from_uint8(channels_first(converted(file, mode)))


def read_mask(path: Path, shape: tuple[int, ...]) -> Tensor:
    """Read an image file as a mask bool [1, H, W]: True where it is white (brighter than half).

    Args:
        path: The file.
        shape: [C, H, W] of the images to mask.

    Raises:
        InputError: The file is missing, damaged, of another size, without a white pixel, or has
            transparent pixels, which could mean either.
    """
    file = _file_of_size(path, shape)
    if file.transparent and np.array(converted(file, "RGBA"))[..., 3].min() < 255:
        raise InputError(
            f"{path} has transparent pixels, and in a mask white is painted anew and black is "
            'kept; save it without, e.g. with black for them: python -c "from PIL import Image; '
            f"i = Image.open({str(path)!r}).convert('RGBA'); Image.alpha_composite(Image.new("
            "'RGBA', i.size, 'black'), i).convert('L').save('mask.png')\""
        )
    mask = torch.from_numpy(np.array(converted(file, "L")))[None] > 127
    if not bool(mask.any()):
        raise InputError(
            f"{path} has no white pixel, so nothing would be painted; in a mask, white is painted "
            "anew and black is kept"
        )
    return mask


def read_transparent(path: Path, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Read a PNG with transparency as an image and a mask of its transparent pixels.

    Args:
        path: The file.
        shape: [C, H, W] that it must have without the alpha channel; C is 1 or 3.

    Returns:
        float32 [C, H, W] in [−1, 1], and bool [1, H, W], True where alpha is below 128.

    Raises:
        InputError: The file is missing, damaged, of another size or mode, or opaque.
    """
    array = channels_first(converted(_file_of_size(path, shape), "RGBA"))
    transparent = array[3:] < 128
    if not bool(transparent.any()):
        raise InputError(f"{path} has no transparent pixel, so nothing would be painted")
    grey = bool(((array[:3] == array[0]) | transparent).all())
    if shape[0] not in (1, 3) or (shape[0] == 1 and not grey):
        raise InputError(f"{path} is in colour, but images of {shape[0]} channel(s) are needed")
    return from_uint8(array[: shape[0]]), transparent


def _file_of_size(path: Path, shape: tuple[int, ...]) -> ImageFile:
    """Open a file and refuse another size, before a large image is decoded."""
    file, size = ImageFile.open(path), (shape[2], shape[1])
    if (file.width, file.height) != size:
        upright = f"PIL.ImageOps.exif_transpose(PIL.Image.open({str(path)!r}))"
        raise InputError(
            f"{path} is {file.width}×{file.height} pixels (width × height), but images of "
            f"{size[0]}×{size[1]} are needed here; resize it in Python: import PIL.ImageOps; "
            f"{upright}.resize({size}).save('new.png')"
        )
    if file.frames > 1:
        warnings.warn(f"{path} has {file.frames} frames; the first is taken", stacklevel=3)
    return file
