"""Strips of the same noise at every step: why signals are scaled, and betas have a schedule."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from matplotlib.figure import Figure
from torch import Tensor

from ddpm_lightning.diffusion.levels import Schedule
from ddpm_lightning.diffusion.posterior import transition_variance
from ddpm_lightning.diffusion.schedules import Table
from ddpm_lightning.images import to_uint8
from ddpm_lightning.plots.figure import new_figure
from ddpm_lightning.randomness import IndexedNoise


class Strip(NamedTuple):
    """x_t of an image at some levels, and the variance of x_t.

    Args:
        scaled: Whether the signal was scaled down.
        noise: sigma², the variance that every step adds.
        x_t: float32 [F, C, H, W].
        exact: The variance at these levels for data of variance 1.
        measured: The variance of all pixels of all images, in units of the data's own.
    """

    scaled: bool
    noise: float
    x_t: Tensor
    exact: list[float]
    measured: list[float]


def fixed_schedule(noise: float, T: int, scaled: bool) -> Schedule:
    """Levels of x_t = c·x_{t−1} + sigma·eps with noise = sigma² at every step.

    c = 1 gives alpha_t = 1 and sigma_t² = t·sigma²; c = sqrt(1 − sigma²), if ``scaled``, gives
    alpha_t² = (1 − sigma²)^t and sigma_t² = 1 − alpha_t².
    """
    t = torch.arange(T + 1, dtype=torch.float64)
    log_alpha_bar = t * np.log1p(-noise) if scaled else 0 * t
    sigma2 = -torch.expm1(log_alpha_bar) if scaled else t * noise
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*x_T is not noise")  # which is what is shown
        return Table((0.5 * log_alpha_bar).exp().tolist(), sigma2.sqrt().tolist())


def fixed_strips(
    images: Tensor, noises: Sequence[float], levels: Sequence[int], seed: int = 0
) -> list[Strip]:
    """Noise images [n, C, H, W], for each variance of a step without scaling and with it.

    The steps act on pixels of mean 0 and variance 1, which are then brought back. A strip shows
    one chain of the first image; all strips have the same noise.
    """
    mean, std = images.mean(), images.std(correction=0).clamp(min=1e-6)
    unit = (images - mean) / std
    noise_of = IndexedNoise(seed, torch.arange(len(images)))
    strips = []
    for noise in noises:
        for scaled in (False, True):
            schedule = fixed_schedule(noise, max(*levels, 1), scaled)
            chain, x, before = {0: unit}, unit, schedule.level(0)
            for k, t in enumerate(sorted({*levels} - {0})):
                level, eps = schedule.level(t), noise_of(k, tuple(unit.shape[1:]))
                added = transition_variance(before, level)
                chain[t] = x = level.alpha / before.alpha * x + added**0.5 * eps
                before = level
            x_t = [chain[t] for t in levels]
            steps = [schedule.level(t) for t in levels]
            exact = [float(level.alpha**2 + level.sigma**2) for level in steps]
            measured = [float(x.var(correction=0)) for x in x_t]
            shown = mean + std * torch.stack([x[0] for x in x_t])
            strips.append(Strip(scaled, noise, shown, exact, measured))
    return strips


def fixed_noise_figure(strips: Sequence[Strip], levels: Sequence[int]) -> Figure:
    """Draw strips, a row each; above a picture the variance, exact (measured), and its range."""
    rows, columns = len(strips), len(levels)
    figure = new_figure(1.25 * columns, 1.75 * rows)
    grid = figure.subplots(rows, columns, squeeze=False)
    for row, strip in zip(grid, strips, strict=True):
        how = r"$\sqrt{1-\sigma^2}\,x_{t-1}$" if strip.scaled else "$x_{t-1}$"
        row[0].set_ylabel(f"{how}$ + \\sigma\\varepsilon$\n$\\sigma^2$ = {strip.noise:g}", size=8)
        for axes, t, x, exact, measured in zip(
            row, levels, strip.x_t, strip.exact, strip.measured, strict=True
        ):
            pixels = rearrange(to_uint8(x), "c h w -> h w c").numpy()
            pixels = pixels if pixels.shape[-1] > 1 else pixels.repeat(3, -1)
            axes.imshow(pixels, interpolation="nearest")
            span = f"{float(x.min()):.1f} … {float(x.max()):.1f}"
            axes.set_title(f"t = {t}\nVar {exact:.3g} ({measured:.3g})\n{span}", size=7)
            axes.set(xticks=[], yticks=[])
    return figure
