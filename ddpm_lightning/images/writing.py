"""Writing images: PNG and GIF files, and grids of images."""

from __future__ import annotations

from pathlib import Path

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from ddpm_lightning.errors import InputError
from ddpm_lightning.files import atomic_write
from ddpm_lightning.images.eight_bits import to_uint8

GROUND = 64
"""The dark grey between the images of a grid."""


def grid(
    x: Tensor,
    columns: int = 8,
    tile: int = 64,
    inputs: Tensor | None = None,
    above: Tensor | None = None,
    below: Tensor | None = None,
) -> Tensor:
    """Lay images out in rows on a dark grey ground.

    Args:
        x: [N, C, H, W] in [−1, 1].
        columns: Images a row.
        tile: Images smaller than this many pixels are enlarged by a whole factor, pixel by pixel.
        inputs: [M, C, H, W] images for rows of their own above the others.
        above: [N, C, H, W] images that stand above those of x, row by row.
        below: [N, C, H, W] images that stand below those of x, row by row.

    Returns:
        uint8 [C or 3, H', W']
    """
    bands = [band for band in (above, x, below) if band is not None]
    if len(bands) > 1:
        filled = torch.stack([_full_rows(band, columns) for band in bands])
        x = rearrange(filled, "band (row column) ... -> (row band column) ...", column=columns)
    if inputs is not None:
        x = torch.cat([_full_rows(inputs, columns), x])
    factor = max(1, tile // max(x.shape[-2:]))
    tiles = to_uint8(x).repeat_interleave(factor, -2).repeat_interleave(factor, -1)
    return make_grid(tiles.cpu(), nrow=columns, padding=2, pad_value=GROUND)


def to_pil(image: Tensor) -> Image.Image:
    """Turn a uint8 image [C, H, W] of 1 (grey), 3 (RGB) or 4 (RGBA) channels into Pillow's."""
    array = image.permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def write_png(path: Path, image: Tensor) -> None:
    """Write a uint8 image [C, H, W] as PNG; a stopped write never leaves half a file."""
    _write(path, to_pil(image), "PNG")


def write_gif(path: Path, frames: list[Tensor], fps: float) -> None:
    """Write uint8 images [C, H, W] as an endless animation that rests on its last frame.

    Args:
        path: The file.
        frames: One frame or more.
        fps: Frames a second, 0.002 to 50; rounded, for the format counts hundredths of a second.

    Raises:
        InputError: fps is out of range.
    """
    check_fps(fps)
    images = [to_pil(frame) for frame in frames]
    duration = round(100 / fps) * 10
    durations = [duration] * (len(images) - 1) + [max(duration, 1000)]
    _write(
        path,
        images[0],
        "GIF",
        save_all=True,
        append_images=images[1:],
        duration=durations,
        loop=0,
    )


def check_fps(fps: float) -> None:
    """Raise InputError unless a GIF, which counts hundredths of a second, can be so fast."""
    if not 0.002 <= fps <= 50:
        raise InputError(f"fps={fps:g}: a GIF shows 0.002 to 50 frames a second")


def _full_rows(images: Tensor, columns: int) -> Tensor:
    """Fill the last row up with the colour of the ground."""
    blank = images.new_full((-len(images) % columns, *images.shape[1:]), GROUND / 127.5 - 1)
    return torch.cat([images, blank])


def _write(path: Path, image: Image.Image, file_format: str, **options: object) -> None:
    with atomic_write(path) as partial:
        image.save(partial, file_format, **options)
