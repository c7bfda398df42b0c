"""Strips with captions: data becoming noise, and noise becoming data."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import torch
from einops import rearrange
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from ddpm_lightning.diffusion.schedules import Schedule
from ddpm_lightning.errors import InputError
from ddpm_lightning.images import grid
from ddpm_lightning.plots.figure import pixels_of
from ddpm_lightning.plots.pictures import Pictures, Scatter
from ddpm_lightning.randomness import IndexedNoise
from ddpm_lightning.sampling import Frames

TILE = 48
"""Images are enlarged to about this many pixels, so that a caption fits above."""

LINE = 18
"""Pixels of a line of captions."""


def forward_strip(
    pictures: Pictures, x0: Tensor, schedule: Schedule, steps: int = 10, seed: int = 0
) -> Tensor:
    """Show data becoming noise, x_t = alpha_t·x_0 + sigma_t·eps (DDPM eq. 4), a row a sample.

    Args:
        pictures: How such data is drawn.
        x0: [n, ...] data.
        schedule: The forward process.
        steps: Columns after the first, evenly spread over 0…T.
        seed: Seed of the noise; a sample keeps its noise along the row.

    Returns:
        uint8 [3 or 4, H, W]
    """
    if not 1 <= steps <= schedule.T:
        raise InputError(f"steps={steps}: the schedule has {schedule.T} levels, give 1 to that")
    levels = [round(i * schedule.T / steps) for i in range(steps + 1)]
    eps = IndexedNoise(seed, torch.arange(len(x0)))(0, tuple(x0.shape[1:]))
    frames = torch.stack([schedule.add_noise(x0, t, eps) for t in levels])
    return captioned(_rows(pictures, frames), [f"t={t}" for t in levels])


def reverse_strip(pictures: Pictures, frames: Frames) -> Tensor:
    """Show noise becoming data: above x_t, below it the prediction x0_hat made there.

    Args:
        pictures: How such data is drawn.
        frames: How the samples came about.

    Returns:
        uint8 [3 or 4, H, W]
    """
    x_t, x0, levels = frames.x_t, frames.x0, frames.levels
    if isinstance(pictures, Scatter):
        picture = torch.cat([_rows(pictures, x_t), _rows(pictures, x0)], dim=1)
        names = [r"$x_t$", r"$\hat{x}_0$"]
    else:
        both = rearrange([x_t, x0], "both f n ... -> f (n both) ...")
        picture = _rows(pictures, both)
        names = [r"$x_t$", r"$\hat{x}_0$"] * x_t.shape[1]
    return captioned(picture, [f"t={t}" for t in levels], names)


def reverse_frames(pictures: Pictures, frames: Frames) -> list[Tensor]:
    """The same as pictures of an animation: x_t in the upper row, x0_hat in the lower."""
    n = frames.x_t.shape[1]
    drawn = []
    for t, noisy, predicted in zip(frames.levels, frames.x_t, frames.x0, strict=True):
        if isinstance(pictures, Scatter):
            parts = [pictures.together(noisy), pictures.together(predicted)]
            drawn.append(captioned(torch.cat(parts, dim=1), [f"t={t}"]))
        else:
            picture = grid(torch.cat([noisy, predicted]), columns=n, tile=TILE)
            names = [r"$x_t$", r"$\hat{x}_0$"]
            drawn.append(captioned(picture, [f"t={t}"] + [""] * (n - 1), names))
    return drawn


def captioned(
    picture: Tensor, columns: Sequence[str] = (), rows: Sequence[str] = (), title: str = ""
) -> Tensor:
    """Put captions above the columns and left of the rows of a picture, pixels unchanged.

    Args:
        picture: uint8 [1, 3 or 4, H, W], its columns and rows of equal size.
        columns: A caption for each column, or none.
        rows: A caption for each row, or none.
        title: A line above all, broken where the picture is narrow.

    Returns:
        uint8 [3, or 4 if the picture has them, H + top, W + left]
    """
    channels, height, width = picture.shape
    left = max([34, *(11 * len(name) for name in rows if "$" not in name)]) if rows else 0
    lines = textwrap.wrap(title, max(10, (left + width) // 7))
    top = LINE * len(lines) + (LINE if columns else 0) + 2
    # A tenth of a pixel more: matplotlib before 3.11.2 rounds some sizes down.
    size = (left + width + 0.1) / 100, (top + height + 0.1) / 100
    figure = Figure(figsize=size, dpi=100)
    FigureCanvasAgg(figure)

    def write(x: float, y: float, caption: str, size: float) -> None:
        place = x / (left + width), 1 - y / (top + height)
        figure.text(*place, caption, ha="center", va="center", fontsize=size)

    for i, caption in enumerate(lines):
        write((left + width) / 2, (i + 0.5) * LINE + 1, caption, 8)
    for i, caption in enumerate(columns):
        write(left + (i + 0.5) * width / len(columns), top - LINE / 2 - 1, caption, 8)
    for i, caption in enumerate(rows):
        write(left / 2, top + (i + 0.5) * height / len(rows), caption, 10)
    canvas = pixels_of(figure)
    if channels == 4:
        canvas = torch.cat([canvas, canvas.new_full((1, *canvas.shape[1:]), 255)])
    canvas[:, top:, left:] = picture.cpu()
    return canvas


def _rows(pictures: Pictures, frames: Tensor) -> Tensor:
    """A row a sample and a column a frame [F, n, ...]; points: a plot a frame."""
    if isinstance(pictures, Scatter):
        return pictures.strip(frames)
    shown = rearrange(frames, "frame n ... -> (n frame) ...")
    return grid(shown, columns=len(frames), tile=TILE)
