"""Didactic figures of what sampling is: noise carried to data, p(z) → p(x)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ddpm_lightning.data.toy2d import COMPONENTS, NOISE
from ddpm_lightning.diffusion.oracles import Mixture, Oracle
from ddpm_lightning.diffusion.samplers import DDIM
from ddpm_lightning.diffusion.schedules import Linear
from ddpm_lightning.plots.didactic import BLACK, BLUE, GREEN, ORANGE, two_peaks
from ddpm_lightning.plots.figure import new_figure
from ddpm_lightning.randomness import IndexedNoise

PATHS = 25
"""Paths drawn in one dimension, an odd number, and four times as many in the plane."""


def ring() -> Oracle:
    """The exact denoiser of Gaussians around a circle, as in Toy2D's mixture."""
    angles = 2 * torch.pi * torch.arange(COMPONENTS) / COMPONENTS
    means = torch.stack([angles.cos(), angles.sin()], dim=1)
    return Mixture(Linear(T=200), means, torch.full((COMPONENTS,), NOISE["mixture"] ** 2))


def carried(oracle: Oracle, z: Tensor) -> Tensor:
    """Carry z [n, *shape] from level T to 0 along the probability flow: [T + 1, n, *shape].

    DDIM without noise over all levels, with an exact denoiser: each z has one x (Song et al. 2021,
    sec. 4.3). In one dimension paths never cross, so x = F⁻¹(Φ(z)), of the distribution functions.
    """
    sampler = DDIM(oracle.schedule.T)
    return torch.stack([state.x_t for state in sampler.trajectory(oracle, z)])


def mapping_figure(n: int = 2000, seed: int = 0) -> Figure:
    """Draw how samples of a normal distribution are carried to those of data, 1-D and 2-D."""
    figure = new_figure(13, 4)
    from_, between, to, plane = figure.subplots(1, 4, width_ratios=(1, 3.2, 1, 3.4))
    _draw_line(from_, between, to)
    noise = IndexedNoise(seed, torch.arange(n))
    paths = carried(ring(), noise(0, (2,)))
    z, x = paths[0], paths[-1]
    plane.scatter(z[:, 0], z[:, 1], s=3, color=ORANGE, alpha=0.5, linewidths=0, label="z")
    plane.plot(*paths[:, : 4 * PATHS].unbind(-1), color=BLACK, alpha=0.35, linewidth=0.5)
    plane.scatter(x[:, 0], x[:, 1], s=3, color=BLUE, alpha=0.8, linewidths=0, label="x")
    plane.set(title="the same in the plane", xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
    plane.legend(fontsize="small", markerscale=3, loc="upper right")
    return figure


def _draw_line(from_: Axes, between: Axes, to: Axes) -> None:
    """Draw p(z) on the left, p(x) on the right, and between them paths from even quantiles."""
    oracle = two_peaks()
    z = torch.special.ndtri((torch.arange(PATHS, dtype=torch.float64) + 0.5) / PATHS)
    share = torch.arange(oracle.schedule.T, -1, -1) / oracle.schedule.T
    between.plot(share, carried(oracle, z[:, None])[..., 0], color=GREEN, linewidth=0.9)
    between.set(xlim=(1, 0), xlabel="t/T", title=f"{PATHS} paths, as likely as each other")
    y = torch.linspace(-3, 3, 601, dtype=torch.float64)
    normal = (-y.square() / 2).exp() / (2 * torch.pi) ** 0.5
    data = oracle.log_density(y[:, None], 0).exp()
    for axes, density, colour, title in (
        (from_, normal, ORANGE, "p(z), normal"),
        (to, data, BLUE, "p(x), data"),
    ):
        axes.fill_betweenx(y, density, color=colour, alpha=0.5, linewidth=0)
        axes.set(title=title, xticks=[])
    from_.invert_xaxis()
    for axes in (from_, between, to):
        axes.set_ylim(-3, 3)


class Learned(NamedTuple):
    """Mean and deviation of a normal distribution, estimated from data."""

    mean: float
    deviation: float


def learned_gaussian(x: Tensor) -> Learned:
    """Fit a normal distribution to numbers [n] by maximum likelihood."""
    return Learned(float(x.mean()), float(x.std(correction=0)))


def gaussian_figure(
    mean: float = 2.0, deviation: float = 0.5, n: int = 1000, seed: int = 0
) -> tuple[Figure, Learned]:
    """Draw how one step is enough for a normal p(x): learn two numbers, then x = mean + dev·z.

    Gives the figure and what was learned from n numbers of N(mean, deviation²).
    """
    noise = IndexedNoise(seed, torch.arange(n))(0, (2,))
    data, z = mean + deviation * noise[:, 0], noise[:, 1]
    learned = learned_gaussian(data)
    x = learned.mean + learned.deviation * z
    figure = new_figure(12, 3.4)
    reach = max(abs(mean) + 4 * deviation, 4.0)
    bins = torch.linspace(-reach, reach, 81)
    fitted, made = f"N({learned.mean:.3f}, {learned.deviation:.3f}²)", "x = mean + deviation·z"
    for place, values, colour, curve, title in (
        (1, data, BLUE, learned, f"{n} data; learned: {fitted}"),
        (2, z, ORANGE, Learned(0.0, 1.0), "latents z of N(0, 1)"),
        (3, x, GREEN, Learned(mean, deviation), f"{made}; line: p(x)"),
    ):
        panel = figure.add_subplot(1, 3, place)
        panel.hist(values, bins.tolist(), density=True, color=colour, alpha=0.5)
        density = torch.distributions.Normal(*curve).log_prob(bins).exp()
        panel.plot(bins, density, color=BLACK, linewidth=1.2)
        panel.set(title=title, xlim=(-reach, reach))
        panel.grid(alpha=0.3)
    return figure, learned
