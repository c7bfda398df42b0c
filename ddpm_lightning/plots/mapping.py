"""Didactic figures of what sampling is: noise carried to data, p(z) → p(x)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ddpm_lightning.data.toy2d import COMPONENTS, NOISE
from ddpm_lightning.diffusion.oracles import Mixture, Oracle
from ddpm_lightning.diffusion.samplers import DDIM
from ddpm_lightning.diffusion.schedules import Linear
from ddpm_lightning.plots.didactic import two_peaks
from ddpm_lightning.plots.figure import BLACK, BLUE, GREEN, ORANGE, new_figure, open_axes
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
    figure = new_figure(11, 3.4, dpi=150)
    halves: Any = figure.subfigures(1, 2, width_ratios=(7.5, 3.5))
    line, plane = halves
    from_, between, to = line.subplots(1, 3, sharey=True, width_ratios=(1, 4, 1))
    _draw_line(from_, between, to)
    noise = IndexedNoise(seed, torch.arange(n))
    paths = carried(ring(), noise(0, (2,)))
    axes = plane.add_subplot(xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
    for points, colour, label in ((paths[0], ORANGE, "z"), (paths[-1], BLUE, "x")):
        axes.scatter(*points.T, s=4, color=colour, alpha=0.6, linewidths=0, label=f"${label}$")
    axes.plot(*paths[:, : 4 * PATHS].unbind(-1), color=BLACK, alpha=0.3, linewidth=0.5)
    axes.set_title("the same in the plane", fontsize="medium")
    axes.set(xticks=(-2, 0, 2), yticks=(-2, 0, 2))
    axes.legend(fontsize="small", markerscale=3, loc="upper right", frameon=False)
    return figure


def _draw_line(from_: Axes, between: Axes, to: Axes) -> None:
    """Draw p(z) on the left, p(x) on the right, and between them paths from even quantiles."""
    oracle = two_peaks()
    z = torch.special.ndtri((torch.arange(PATHS, dtype=torch.float64) + 0.5) / PATHS)
    share = torch.arange(oracle.schedule.T, -1, -1) / oracle.schedule.T
    paths = carried(oracle, z[:, None])[..., 0]
    between.plot(share, paths, color=BLACK, alpha=0.55, linewidth=0.8)
    ends: dict[str, Any] = {"s": 14, "zorder": 3, "clip_on": False}
    between.scatter(torch.ones(PATHS), paths[0], color=ORANGE, **ends)
    between.scatter(torch.zeros(PATHS), paths[-1], color=BLUE, **ends)
    between.set(xlim=(1, 0), ylim=(-3, 3), xlabel="$t/T$", yticks=(-2, 0, 2))
    between.set_title(f"{PATHS} paths of the same probability", fontsize="medium")
    y = torch.linspace(-3, 3, 601, dtype=torch.float64)
    normal = (-y.square() / 2).exp() / (2 * torch.pi) ** 0.5
    data = oracle.log_density(y[:, None], 0).exp()
    for axes, density, colour, title in (
        (from_, normal, ORANGE, "$p(z)$, normal"),
        (to, data, BLUE, "$p(x)$, data"),
    ):
        axes.fill_betweenx(y, density, color=colour, alpha=0.6, linewidth=0)
        axes.set_title(title, fontsize="medium")
        axes.set(xticks=[], xlim=(0, 1.1 * float(density.max())))
    from_.invert_xaxis()
    open_axes(from_, "top", "right", "bottom")
    open_axes(between, "top", "left", "right")
    open_axes(to, "top", "right", "bottom")
    between.tick_params(left=False)


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
