"""Images in and out: the one conversion between [−1, 1] and 8 bits, grids, PNG and GIF."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid


def from_uint8(images: Tensor) -> Tensor:
    """Map uint8 0…255 to float32 [−1, 1]: x = images / 127.5 − 1."""
    return images.float().div_(127.5).sub_(1.0)


def to_uint8(x: Tensor) -> Tensor:
    """Map float [−1, 1] to uint8 0…255: rounded to the nearest, out of range clamped."""
    return x.float().add(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def grid(x: Tensor, columns: int = 8, tile: int = 64) -> Tensor:
    """Lay images out in rows on a dark grey ground.

    Args:
        x: [N, C, H, W] in [−1, 1].
        columns: Images a row.
        tile: Images smaller than this many pixels are enlarged by a whole factor, pixel by pixel.

    Returns:
        uint8 [C or 3, H', W']
    """
    factor = max(1, tile // max(x.shape[-2:]))
    tiles = to_uint8(x).repeat_interleave(factor, -2).repeat_interleave(factor, -1)
    return make_grid(tiles.cpu(), nrow=columns, padding=2, pad_value=64)


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
        fps: Frames a second. The format counts hundredths of a second.
    """
    images = [to_pil(frame) for frame in frames]
    duration = max(2, round(100 / fps)) * 10
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


def _write(path: Path, image: Image.Image, file_format: str, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    image.save(partial, file_format, **options)
    partial.replace(path)
