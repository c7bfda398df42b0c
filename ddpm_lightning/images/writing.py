"""Writing PNG and GIF files, and grids of images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from torchvision.utils import make_grid

from ddpm_lightning.errors import InputError
from ddpm_lightning.files import atomic_write
from ddpm_lightning.images.eight_bits import to_uint8

BACKGROUND = 64
"""The dark grey between the images of a grid."""


def grid(
    x: Tensor,
    columns: int = 8,
    tile: int = 64,
    inputs: Tensor | None = None,
    above: Tensor | None = None,
    below: Tensor | None = None,
) -> Tensor:
    """Lay images out in rows on a dark grey background: uint8 [C or 3, H', W'].

    Args:
        x: [N, C, H, W] in [−1, 1].
        columns: Images per row.
        tile: Images smaller than this many pixels are enlarged by an integer factor.
        inputs: [M, C, H, W] images in separate rows at the top.
        above: [N, C, H, W] images above those of x, row by row.
        below: [N, C, H, W] images below those of x, row by row.
    """
    bands = [band for band in (above, x, below) if band is not None]
    if len(bands) > 1:
        filled = torch.stack([_full_rows(band, columns) for band in bands])
        x = rearrange(filled, "band (row column) ... -> (row band column) ...", column=columns)
    if inputs is not None:
        x = torch.cat([_full_rows(inputs, columns), x])
    factor = max(1, tile // max(x.shape[-2:]))
    tiles = to_uint8(x).repeat_interleave(factor, -2).repeat_interleave(factor, -1)
    return make_grid(tiles.cpu(), nrow=columns, padding=2, pad_value=BACKGROUND)


def to_pil(image: Tensor) -> Image.Image:
    """Convert a uint8 image [C, H, W] of 1 (grey), 3 (RGB) or 4 (RGBA) channels to Pillow's."""
    array = image.permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def write_png(path: Path, image: Tensor, about: Mapping[str, Any] | None = None) -> None:
    """Write a uint8 image [C, H, W] as PNG, atomically.

    Args:
        path: The file.
        image: The image.
        about: What made it, plain data by keyword: a text chunk each, of JSON unless it is text.
    """
    chunks = PngInfo()
    for keyword, value in {**(about or {}), "Software": "ddpm_lightning"}.items():
        chunks.add_text(keyword, value if isinstance(value, str) else json.dumps(value))
    _write(path, to_pil(image), "PNG", pnginfo=chunks)


def write_gif(path: Path, frames: list[Tensor], fps: float) -> None:
    """Write uint8 images [C, H, W] as a looping GIF that holds its last frame for a second.

    Args:
        path: The file.
        frames: One frame or more.
        fps: Frames per second, 0.002 to 50, rounded to a delay in hundredths of a second.

    Raises:
        InputError: fps is out of range.
    """
    check_fps(fps)
    first, *others = [to_pil(frame) for frame in frames]
    delay = round(100 / fps) * 10
    delays = [delay] * len(others) + [max(delay, 1000)]
    options = {"save_all": True, "append_images": others, "duration": delays, "loop": 0}
    _write(path, first, "GIF", **options)


def check_fps(fps: float) -> None:
    """Raise InputError unless GIF, with delays in hundredths of a second, supports this rate."""
    if not 0.002 <= fps <= 50:
        raise InputError(f"fps={fps:g}: a GIF shows 0.002 to 50 frames a second")


def _full_rows(images: Tensor, columns: int) -> Tensor:
    """Fill the last row with background."""
    blank = images.new_full((-len(images) % columns, *images.shape[1:]), BACKGROUND / 127.5 - 1)
    return torch.cat([images, blank])


def _write(path: Path, image: Image.Image, file_format: str, **options: object) -> None:
    with atomic_write(path) as partial:
        image.save(partial, file_format, **options)
