"""Strips with captions: data becoming noise, and noise becoming data."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence

import torch
from einops import rearrange
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from ddpm_lightning.batch import Batch
from ddpm_lightning.diffusion.levels import Schedule
from ddpm_lightning.images import from_uint8, grid
from ddpm_lightning.module import DiffusionModule
from ddpm_lightning.plots.figure import BLUE, RED, new_figure, pixels_of
from ddpm_lightning.plots.pictures import Pictures, Scatter
from ddpm_lightning.randomness import IndexedNoise
from ddpm_lightning.sampling import Frames

TILE = 48
"""Images are enlarged to about this many pixels, so that a caption fits above."""

LINE = 18
"""Pixels of a line of captions."""

LETTER = 7
"""Pixels of a letter of a caption above a column, and more than it takes."""

NAMES = (r"$x_t$", r"$\hat{x}_0$")
"""Captions of noisy data and of the prediction."""


def forward_strip(
    pictures: Pictures, x0: Tensor, schedule: Schedule, levels: Sequence[int], seed: int = 0
) -> Tensor:
    """Show data x0 [n, ...] becoming noise, x_t = alpha_t·x_0 + sigma_t·eps (DDPM eq. 4).

    A row a sample, which keeps its noise along the row; a column a level.
    """
    eps = IndexedNoise(seed, torch.arange(len(x0)))(0, tuple(x0.shape[1:]))
    frames = torch.stack([schedule.add_noise(x0, t, eps) for t in levels])
    return captioned(_rows(pictures, frames), [f"t={t}" for t in levels])


def reverse_strip(pictures: Pictures, frames: Frames) -> Tensor:
    """Show noise becoming data: above x_t, below it the prediction x0_hat made there."""
    x_t, x0, names = frames.x_t, frames.x0, [*NAMES]
    if isinstance(pictures, Scatter):
        picture = torch.cat([pictures.strip(x_t), pictures.strip(x0)], dim=1)
    else:
        picture = _rows(pictures, rearrange([x_t, x0], "both f n ... -> f (n both) ..."))
        names *= x_t.shape[1]
    return captioned(picture, [f"t={t}" for t in frames.levels], names)


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
            drawn.append(captioned(picture, [f"t={t}"] + [""] * (n - 1), NAMES))
    return drawn


def noised(model: DiffusionModule, batch: Batch, levels: Sequence[int], seed: int = 0) -> Tensor:
    """Noise a batch of data to some levels: float32 [F, n, ...] on the CPU.

    Of a model of latents these are noised, and shown decoded. The noise is that of the samples
    n…2n − 1 of this seed, for the first n may be shown beside.
    """
    latents = None if batch.latents is None else batch.latents.to(model.device)
    moved = batch._replace(x0=batch.x0.to(model.device), latents=latents)
    z = model.latents(moved).float()
    n = len(z)
    eps = IndexedNoise(seed, torch.arange(n, 2 * n))(0, tuple(z.shape[1:])).to(z)
    x_t = (model.codec.decode(model.schedule.add_noise(z, t, eps)) for t in levels)
    return torch.stack([x.cpu() for x in x_t])


def marginals_picture(pictures: Pictures, data: Tensor, frames: Frames) -> Tensor:
    """Show data at some levels, q(x_t), above samples on their way at the same, p(x_t).

    The rows of a model that has learned its data look alike. Clean data stand on the left. Points
    are plotted in one plot a level, images in a row a sample.

    Args:
        pictures: How they are drawn; the axes of points should hold noise, too.
        data: float32 [F, m, ...], :func:`noised` to the levels of ``frames``, in their order.
        frames: The samples' trajectories.
    """
    levels, rows = frames.levels[::-1], (data.flip(0), frames.x_t.flip(0))
    if isinstance(pictures, Scatter):
        return _marginal_plots(pictures, levels, *rows)
    drawn = [_rows(pictures, row) for row in rows]
    names = ["$q(x_t)$"] * rows[0].shape[1] + ["$p(x_t)$"] * rows[1].shape[1]
    drawn[0] = drawn[0][:, :-2]  # the border that the lower rows begin with
    return captioned(torch.cat(drawn, dim=1), [f"t={t}" for t in levels], names)


def _marginal_plots(pictures: Scatter, levels: Sequence[int], data: Tensor, x: Tensor) -> Tensor:
    """Plot points [F, m, 2] of data above samples [F, n, 2], a column a level, on equal axes."""
    figure = new_figure(0.5 + 2.4 * len(levels), 5.2, dpi=150)
    plots = figure.subplots(2, len(levels), sharex=True, sharey=True, squeeze=False)
    rows = (("data, $q(x_t)$", data, BLUE), ("samples, $p(x_t)$", x, RED))
    for row, (name, frames, colour) in zip(plots, rows, strict=True):
        row[0].set_ylabel(name, fontsize="large")
        for axes, points in zip(row, frames, strict=True):
            axes.scatter(*points.T, s=2.5, color=colour, alpha=0.5, linewidths=0)
            axes.set_aspect("equal")
    for axes, t in zip(plots[0], levels, strict=True):
        axes.set_title(f"$t = {t}$")
    (x0, y0), reach = pictures.middle, pictures.reach
    axes.set(xlim=(x0 - reach, x0 + reach), ylim=(y0 - reach, y0 + reach))
    axes.locator_params(nbins=4)
    return pixels_of(figure)


def captioned(
    picture: Tensor, columns: Sequence[str] = (), rows: Sequence[str] = (), title: str = ""
) -> Tensor:
    """Put captions above the columns and left of the rows of a picture, pixels unchanged.

    The picture is uint8 [1, 3 or 4, H, W], its columns and rows of equal size; the title is a line
    above all, broken where the picture is narrow. Columns that are narrower than their captions
    show one in every few.
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
    longest = LETTER * max(map(len, columns), default=0)
    every = math.ceil(longest * len(columns) / width) if columns else 1
    for i, caption in list(enumerate(columns))[::every]:
        middle = max(left + (i + 0.5) * width / len(columns), longest / 2)
        write(min(middle, left + width - longest / 2), top - LINE / 2 - 1, caption, 8)
    for i, caption in enumerate(rows):
        write(left / 2, top + (i + 0.5) * height / len(rows), caption, 10)
    canvas = pixels_of(figure)
    if channels == 4:
        canvas = torch.cat([canvas, canvas.new_full((1, *canvas.shape[1:]), 255)])
    canvas[:, top:, left:] = picture.cpu()
    return canvas


def grid_of_prompts(
    pictures: Pictures,
    x: Tensor,
    prompts: Sequence[str],
    columns: int,
    bands: Mapping[str, Tensor],
    title: str = "",
) -> Tensor:
    """Show samples as one grid a prompt, each under its prompt: uint8 [C, H, W].

    Args:
        pictures: How samples are drawn.
        x: [n, ...] the samples.
        prompts: Their prompts, repeated along the samples.
        columns: Images a row.
        bands: Images [n, ...] above and below each sample.
        title: A line above all.
    """
    blocks = []
    for prompt in dict.fromkeys(prompts):
        own = [k for k in range(len(x)) if prompts[k % len(prompts)] == prompt]
        if own:
            parts = {name: band[own] for name, band in bands.items()}
            block = pictures.together(x[own], columns, **parts)
            blocks.append(captioned(block, title=prompt or "(no text)"))
    width = max(block.shape[2] for block in blocks)
    padded = [F.pad(block, (0, width - block.shape[2]), value=255) for block in blocks]
    return captioned(torch.cat(padded, dim=1), title=title)


def _rows(pictures: Pictures, frames: Tensor) -> Tensor:
    """A row a sample and a column a frame [F, n, ...]; points: a plot a frame."""
    if isinstance(pictures, Scatter):
        return pictures.strip(frames)
    shown = rearrange(frames, "frame n ... -> (n frame) ...")
    return grid(shown, columns=len(frames), tile=TILE)


def draw_neighbours(
    samples: Tensor,
    features: Tensor,
    real_features: Tensor,
    take: Callable[[Tensor], Tensor],
    count: int = 7,
) -> Tensor:
    """Show samples, a row each, with their nearest real images, in which copies stand out.

    Samples are uint8 [n, C, H, W] with features [n, D]; ``take`` gives the real images of some
    rows int64 [m]. The nearest comes first.
    """
    count = min(count, len(real_features))
    # Without the matrix product, whose rounding would blur distances of near copies.
    exact = "donot_use_mm_for_euclid_dist"
    distance = torch.cdist(features, real_features, compute_mode=exact)  # [n, N]
    neighbours = take(distance.topk(count, largest=False).indices.flatten())
    neighbours = rearrange(neighbours, "(n k) c h w -> n k c h w", k=count)
    rows = torch.cat([samples[:, None], neighbours], dim=1)
    panel = grid(from_uint8(rearrange(rows, "n k c h w -> (n k) c h w")), columns=count + 1)
    return captioned(panel, title="left: samples; beside each: the nearest real images")
