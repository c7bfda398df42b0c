"""Animations as GIF or MP4 files."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ddpm_lightning.errors import InputError
from ddpm_lightning.files import atomic_write
from ddpm_lightning.images.writing import to_pil, write_gif

Animation = Literal["gif", "mp4", "both"]
"""Which files an animation becomes."""


def check_animation(kind: str) -> None:
    """Raise InputError if the package that writes MP4 is asked for and not installed."""
    if kind != "gif" and find_spec("imageio_ffmpeg") is None:
        raise InputError(
            "MP4 needs the package imageio-ffmpeg, which is not installed: "
            "pip install imageio-ffmpeg"
        )


def write_animation(path: Path, frames: list[Tensor], fps: float, kind: Animation) -> list[Path]:
    """Write uint8 images [C, H, W] as path.gif, path.mp4 or both, and return the files."""
    written = []
    for suffix, write in (("gif", write_gif), ("mp4", write_mp4)):
        if kind in (suffix, "both"):
            written.append(path.with_name(f"{path.name}.{suffix}"))
            write(written[-1], frames, fps)
    return written


def write_mp4(path: Path, frames: list[Tensor], fps: float) -> None:
    """Write uint8 images [C, H, W] as an MP4 (H.264) that holds its last frame for a second.

    Args:
        path: The file.
        frames: One frame or more of one size, which is filled up to an even one.
        fps: Frames a second.

    Raises:
        InputError: The package imageio-ffmpeg is not installed.
    """
    check_animation("mp4")
    from imageio_ffmpeg import write_frames

    height, width = frames[0].shape[-2:]
    padding = (0, width % 2, 0, height % 2)  # H.264 halves the resolution of colour
    images = [torch.nn.functional.pad(frame, padding, value=255) for frame in frames]
    held = [*images, *[images[-1]] * round(fps)]
    # The container by name, because the file has another suffix while it is written.
    options = ["-f", "mp4", "-threads", "1", "-bitexact"]
    with atomic_write(path) as partial:
        size = (width + width % 2, height + height % 2)
        writer = write_frames(
            str(partial), size, fps=fps, quality=8, macro_block_size=2, output_params=options
        )
        writer.send(None)
        for image in held:
            writer.send(to_pil(image).convert("RGB").tobytes())
        writer.close()
