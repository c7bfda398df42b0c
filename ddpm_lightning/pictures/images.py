"""Images in and out: the one conversion between [−1, 1] and 8 bits, grids, PNG and GIF."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.utils import make_grid

from ddpm_lightning.errors import InputError
from ddpm_lightning.files import atomic_write

GROUND = 64
"""The dark grey between the images of a grid."""

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's name for images of so many channels."""

LOSSLESS = {"L": ("1", "L"), "RGB": ("1", "L", "P", "RGB"), "RGBA": ("1", "L", "P", "RGB", "RGBA")}
"""What may become each of them without losing anything."""


def from_uint8(images: Tensor) -> Tensor:
    """Map uint8 0…255 to float32 [−1, 1]: x = images / 127.5 − 1."""
    return images.float().div_(127.5).sub_(1.0)


def to_uint8(x: Tensor) -> Tensor:
    """Map float [−1, 1] to uint8 0…255: rounded to the nearest, out of range clamped."""
    return x.float().add(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


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


def read_image(path: Path, shape: tuple[int, ...]) -> Tensor:
    """Read a PNG or JPEG as float32 [C, H, W] in [−1, 1].

    Args:
        path: The file.
        shape: [C, H, W] that it must have; grey is taken as RGB of equal parts, nothing else is
            converted.

    Raises:
        InputError: There is no such file, it is damaged, or of another size or kind.
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
    """Read a PNG or JPEG as bool [1, H, W]: True where it is white (brighter than half).

    Args:
        path: The file.
        shape: [C, H, W] of the images that it is for.

    Raises:
        InputError: There is no such file, it is damaged, of another size, or nowhere white.
    """
    mask = torch.from_numpy(np.array(_open(path, shape).convert("L")))[None] > 127
    if not bool(mask.any()):
        raise InputError(
            f"{path} has no white pixel, so nothing would be painted; in a mask, white is painted "
            "anew and black is kept"
        )
    return mask


def read_transparent(path: Path, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Read a PNG with transparency, to which every pixel is transparent or opaque.

    Args:
        path: The file.
        shape: [C, H, W] that it must have beside the transparency; C is 1 or 3.

    Returns:
        float32 [C, H, W] in [−1, 1], and bool [1, H, W], True where it is more transparent than
        opaque.

    Raises:
        InputError: There is no such file, it is damaged, of another size or kind, or opaque.
    """
    array = torch.from_numpy(np.array(_open(path, shape).convert("RGBA"))).permute(2, 0, 1)
    transparent = array[3:] < 128
    if not bool(transparent.any()):
        raise InputError(f"{path} has no transparent pixel, so nothing would be painted")
    grey = bool(((array[:3] == array[0]) | transparent).all())
    if shape[0] not in (1, 3) or (shape[0] == 1 and not grey):
        raise InputError(f"{path} is in colour, but images of {shape[0]} channel(s) are needed")
    return from_uint8(array[: shape[0]]), transparent


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


def _full_rows(images: Tensor, columns: int) -> Tensor:
    """Fill the last row up with the colour of the ground."""
    blank = images.new_full((-len(images) % columns, *images.shape[1:]), GROUND / 127.5 - 1)
    return torch.cat([images, blank])


def _open(path: Path, shape: tuple[int, ...]) -> Image.Image:
    size = shape[2], shape[1]
    if not path.is_file():
        raise InputError(f"no image at {path}")
    try:
        image = Image.open(path, formats=("PNG", "JPEG"))
        if image.size == size:  # else what it unpacks to is not our concern
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


def _write(path: Path, image: Image.Image, file_format: str, **options: object) -> None:
    with atomic_write(path) as partial:
        image.save(partial, file_format, **options)


def check_fps(fps: float) -> None:
    """Raise InputError unless a GIF, which counts hundredths of a second, can be so fast."""
    if not 0.002 <= fps <= 50:
        raise InputError(f"fps={fps:g}: a GIF shows 0.002 to 50 frames a second")
