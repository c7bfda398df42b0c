"""Didactic figures: schedules, why the signal is scaled, which reverse variance is right."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from matplotlib.figure import Figure
from torch import Tensor
from typing_extensions import override

from ddpm_lightning.diffusion.levels import Level, Scalar, Schedule
from ddpm_lightning.diffusion.oracles import Mixture, Oracle
from ddpm_lightning.diffusion.parameterizations import Eps, Parameterization
from ddpm_lightning.diffusion.posterior import posterior, transition_variance
from ddpm_lightning.diffusion.prediction import FixedLarge, Prediction, Variance
from ddpm_lightning.diffusion.samplers import DDPM
from ddpm_lightning.diffusion.schedules import Linear
from ddpm_lightning.diffusion.weightings import Plain, Weighting
from ddpm_lightning.plots.figure import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    new_figure,
)
from ddpm_lightning.randomness import IndexedNoise

COLOURS = {  # a name has the same one everywhere
    "Linear": BLUE,
    "Cosine": RED,
    "Sigmoid": GREEN,
    "Quadratic": SKY,
    "Straight": PURPLE,
    "Karras": ORANGE,
}
STYLES = ("-", "--", ":", "-.")
WALKS_SHOWN = 12


def schedule_curves(
    schedule: Schedule, weighting: Weighting = Plain(), parameterization: Parameterization = Eps()
) -> dict[str, Tensor]:
    """Tabulate what a schedule amounts to at the levels 1…T, float64 [T] each.

    beta (DDPM eq. 2; for any schedule the variance of q(x_t | x_{t−1}), VDM, app. A), alpha_bar =
    alpha², snr = alpha²/sigma², posterior_std = sqrt(beta_tilde) (DDPM eq. 7) and weight, of
    ‖x_0 − x0_hat‖² in the loss; under the weighting Plain it depends on the parameterization.
    """
    t = torch.arange(1, schedule.T + 1)
    level = schedule.level(t, like=schedule.alpha)
    before = level.at(t - 1)
    weight = weighting(level, _table(parameterization.coefficients(level).c_out, t))
    return {
        "beta": _table(transition_variance(before, level), t),
        "alpha_bar": schedule.alpha[1:] ** 2,
        "snr": schedule.log_snr[1:].exp(),
        "posterior_std": _table(posterior(before, level).variance, t).sqrt(),
        "weight": _table(weight, t),
    }


def schedule_figure(
    schedules: Mapping[str, Schedule],
    weighting: Weighting = Plain(),
    parameterization: Parameterization = Eps(),
) -> Figure:
    """Draw the curves of one or several schedules over t/T, by their names in the legend."""
    figure = new_figure(10, 5.6)
    what = f"{type(weighting).__name__}, {type(parameterization).__name__}"
    panels: dict[str, tuple[str, str]] = {
        "beta": (r"noise added, $\beta_t$", "log"),
        "alpha_bar": (r"signal left, $\bar\alpha_t = \alpha_t^2$", "linear"),
        "snr": (r"SNR $= \alpha_t^2/\sigma_t^2$", "log"),
        "posterior_std": (r"posterior deviation, $\tilde\beta_t^{1/2}$", "log"),
        "weight": (rf"weight of $\|x_0 - \hat{{x}}_0\|^2$ ({what})", "log"),
    }
    grid = figure.subplots(2, 3)
    axes = dict(zip(panels, grid.flat, strict=False))
    for key, (title, scale) in panels.items():
        axes[key].set(title=title, xlabel="t/T", yscale=scale, xlim=(0, 1))
        axes[key].grid(alpha=0.3)
    drawn: list[str] = []
    for name, schedule in schedules.items():
        kind = type(schedule).__name__
        colour, style = COLOURS.get(kind, BLACK), STYLES[drawn.count(kind) % len(STYLES)]
        drawn.append(kind)
        share = torch.arange(1, schedule.T + 1) / schedule.T
        for key, y in schedule_curves(schedule, weighting, parameterization).items():
            # A log scale has no place for the 0 and ∞ at the two ends.
            shown = y if panels[key][1] == "linear" else y.where((y > 0) & y.isfinite(), math.nan)
            axes[key].plot(share, shown, color=colour, linestyle=style, label=name)
    grid.flat[-1].axis("off")
    handles, labels = axes["beta"].get_legend_handles_labels()
    grid.flat[-1].legend(handles, labels, loc="center", frameon=False, fontsize="large")
    return figure


def forward_walks(x0: Tensor, schedule: Schedule, scaled: bool = True, seed: int = 0) -> Tensor:
    """Noise numbers x0 [n] step by step: float64 [T + 1, n], x_0 first.

    x_t = (alpha_t/alpha_{t−1})·x_{t−1} + sqrt(beta_t)·noise (DDPM eq. 2), or unless ``scaled`` the
    same without the factor, whose variance is the data's plus the sum of the betas.
    """
    noise = IndexedNoise(seed, torch.arange(len(x0)))(0, (schedule.T,)).double()  # [n, T]
    betas = schedule_curves(schedule)["beta"]
    factors = schedule.alpha[1:] / schedule.alpha[:-1] if scaled else torch.ones_like(betas)
    x = [x0.double()]
    for factor, beta, z in zip(factors, betas, noise.T, strict=True):
        x.append(factor * x[-1] + beta.sqrt() * z)
    return torch.stack(x)


def walk_variance(variance: float, schedule: Schedule, scaled: bool = True) -> Tensor:
    """Variance of :func:`forward_walks` at every level, float64 [T + 1], from the data's."""
    if scaled:
        return schedule.alpha**2 * variance + schedule.sigma**2
    betas = schedule_curves(schedule)["beta"]
    return variance + torch.cat([betas.new_zeros(1), betas.cumsum(0)])


def scaling_figure(schedule: Schedule | None = None, n: int = 4000, seed: int = 0) -> Figure:
    """Draw why the signal is scaled down while noise is added: otherwise the variance explodes."""
    schedule = schedule or Linear()
    x0 = 1.0 - 2.0 * (torch.arange(n) % 2)
    share = torch.arange(schedule.T + 1) / schedule.T
    figure = new_figure(10, 3.4)
    free, kept, variance = figure.subplots(1, 3)
    walks = {scaled: forward_walks(x0, schedule, scaled, seed) for scaled in (False, True)}
    reach = 1.05 * float(max(x[:, :WALKS_SHOWN].abs().max() for x in walks.values()))
    for axes, scaled, colour, title in (
        (free, False, RED, r"noise added: $x_{t-1} + \beta_t^{1/2} z$"),
        (kept, True, BLUE, r"scaled, too: $(\alpha_t/\alpha_{t-1})\, x_{t-1} + \beta_t^{1/2} z$"),
    ):
        axes.plot(share, walks[scaled][:, :WALKS_SHOWN], color=colour, alpha=0.5, linewidth=0.7)
        std = walk_variance(1.0, schedule, scaled).sqrt()
        axes.plot(share, torch.stack([std, -std], 1), color="black", linestyle="--", linewidth=1)
        axes.set(title=title, ylim=(-reach, reach), ylabel="$x_t$; dashed: ± deviation")
        dots = slice(None, None, max(1, schedule.T // 20))
        measured = walks[scaled].square().mean(1)[dots]
        label = "scaled" if scaled else "not scaled"
        exact = walk_variance(1.0, schedule, scaled)
        variance.plot(share, exact, color=colour, label=f"{label}, exact")
        variance.plot(share[dots], measured, ".", color=colour, label=f"{label}, of {n} walks")
    variance.set(title="variance of $x_t$", ylim=(0, None))
    variance.legend(fontsize="small")
    for axes in (free, kept, variance):
        axes.set(xlabel="t/T", xlim=(0, 1))
        axes.grid(alpha=0.3)
    return figure


class _Scaled(Variance):
    """Another variance times a factor: 1 leaves it right, anything else is an experiment."""

    def __init__(self, variance: Variance, factor: float) -> None:
        self.variance = variance
        self.factor = factor

    @override
    def __call__(self, prediction: Prediction, s: Level) -> Scalar:
        return self.factor * self.variance(prediction, s)


def two_peaks() -> Oracle:
    """The exact denoiser of numbers around −1 (a third of them) and around 1."""
    means, weights = torch.tensor([[-1.0], [1.0]]), torch.tensor([1.0, 2.0])
    return Mixture(Linear(T=200), means, torch.full((2,), 0.15**2), weights)


def reverse_walks(oracle: Oracle, factor: float, n: int = 4000, seed: int = 0) -> Tensor:
    """Ancestral sampling over all levels: float32 [T + 1, n, *shape], from x_T to x_0.

    The forward process's variance times a factor; 1 is right for many small steps, where beta and
    beta_tilde agree (DDPM sec. 3.2).
    """
    variance = oracle.variance
    oracle.variance = _Scaled(FixedLarge(), factor)
    noise = IndexedNoise(seed, torch.arange(n))
    x_T = noise(0, oracle.shape) * oracle.schedule.prior_std
    try:
        return torch.stack([s.x_t for s in DDPM().trajectory(oracle, x_T, noise=noise)])
    finally:
        oracle.variance = variance


def variance_figure(
    factors: tuple[float, ...] = (0.25, 1.0, 4.0), n: int = 4000, seed: int = 0
) -> Figure:
    """Draw what a reverse variance too small or too large does, with an exact denoiser."""
    oracle = two_peaks()
    share = torch.arange(oracle.schedule.T, -1, -1) / oracle.schedule.T
    x = torch.linspace(-2.5, 2.5, 500, dtype=torch.float64)
    truth = oracle.log_density(x[:, None], 0).exp()
    figure = new_figure(3.3 * len(factors), 5.2)
    grid = figure.subplots(2, len(factors), squeeze=False, sharey="row", height_ratios=(3, 2))
    for (walks_axes, density_axes), factor in zip(grid.T, factors, strict=True):
        walks = reverse_walks(oracle, factor, n, seed)[..., 0]
        colour = BLUE if factor == 1 else ORANGE if factor < 1 else RED
        named = "right" if factor == 1 else "too small" if factor < 1 else "too large"
        title = rf"variance × {factor:g}: {named}"
        walks_axes.plot(share, walks[:, :WALKS_SHOWN], color=colour, alpha=0.6, linewidth=0.7)
        walks_axes.set(title=title, xlabel="t/T (time runs to the right)", xlim=(1, 0))
        bins = torch.linspace(-2.5, 2.5, 101)
        density_axes.hist(walks[-1], bins, density=True, color=colour, alpha=0.5, label="samples")
        density_axes.plot(x, truth, color="black", linewidth=1.2, label="data")
        density_axes.set(xlabel="$x_0$")
        density_axes.legend(fontsize="small")
        for axes in (walks_axes, density_axes):
            axes.grid(alpha=0.3)
    grid[0, 0].set_ylabel("$x_t$")
    grid[1, 0].set_ylabel("density")
    return figure


def _table(value: Scalar, t: Tensor) -> Tensor:
    """A coefficient at these levels as float64 [T]."""
    table = torch.as_tensor(value, dtype=torch.float64)
    return table.flatten().expand(len(t)) if table.numel() == 1 else table.flatten()
