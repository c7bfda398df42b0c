"""Reading PNG and JPEG files, without lossy conversion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ddpm_lightning.errors import InputError
from ddpm_lightning.images.eight_bits import from_uint8

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's mode by number of channels."""

LOSSLESS = {"L": ("1", "L"), "RGB": ("1", "L", "P", "RGB"), "RGBA": ("1", "L", "P", "RGB", "RGBA")}
"""The modes that convert to each mode without loss."""


def read_image(path: Path, shape: tuple[int, ...]) -> Tensor:
    """Read a PNG or JPEG as float32 [C, H, W] in [−1, 1].

    Args:
        path: The file.
        shape: [C, H, W] that it must have; only lossless conversions, e.g. grey to RGB, are made.

    Raises:
        InputError: The file is missing, damaged, or of another size or mode.
    """
    image = _open(path, shape)
    mode = MODES.get(shape[0])
    if mode is None:
        raise InputError(f"no image file has the {shape[0]} channels of the model's data")
    transparent = "transparency" in image.info and mode != "RGBA"
    if image.mode not in LOSSLESS[mode] or transparent:
        kind = f"{image.mode} with transparency" if transparent else image.mode
        fix = f"PIL.Image.open({str(path)!r}).convert({mode!r}).save('new.png')"
        raise InputError(
            f"{path} is {kind}, but images of {shape[0]} channel(s), {mode}, are needed here; "
            f"convert it in Python: {fix}"
        )
    array = np.array(image.convert(mode))  # [H, W] or [H, W, C]
    return from_uint8(torch.from_numpy(array).view(*array.shape[:2], -1).permute(2, 0, 1))


def read_mask(path: Path, shape: tuple[int, ...]) -> Tensor:
    """Read a PNG or JPEG as a mask bool [1, H, W]: True where it is white (brighter than half).

    Args:
        path: The file.
        shape: [C, H, W] of the images to mask.

    Raises:
        InputError: The file is missing, damaged, of another size, or without a white pixel.
    """
    mask = torch.from_numpy(np.array(_open(path, shape).convert("L")))[None] > 127
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
    array = torch.from_numpy(np.array(_open(path, shape).convert("RGBA"))).permute(2, 0, 1)
    transparent = array[3:] < 128
    if not bool(transparent.any()):
        raise InputError(f"{path} has no transparent pixel, so nothing would be painted")
    grey = bool(((array[:3] == array[0]) | transparent).all())
    if shape[0] not in (1, 3) or (shape[0] == 1 and not grey):
        raise InputError(f"{path} is in colour, but images of {shape[0]} channel(s) are needed")
    return from_uint8(array[: shape[0]]), transparent


def _open(path: Path, shape: tuple[int, ...]) -> Image.Image:
    size = shape[2], shape[1]
    if not path.is_file():
        raise InputError(f"no image at {path}")
    try:
        image = Image.open(path, formats=("PNG", "JPEG"))
        if image.size == size:  # else it is refused below, without decoding a large image
            image.load()
    except UnidentifiedImageError as error:
        raise InputError(f"{path} is not a PNG or JPEG image") from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} is damaged ({error}); save it again") from error
    if image.size != size:
        raise InputError(
            f"{path} is {image.width}×{image.height} pixels (width × height), but images of "
            f"{size[0]}×{size[1]} are needed here; resize it in Python: "
            f"PIL.Image.open({str(path)!r}).resize({size}).save('new.png')"
        )
    return image
