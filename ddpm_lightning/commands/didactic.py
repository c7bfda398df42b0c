"""The plot commands that need no model: what noise, scaling, variance and sampling do."""

from __future__ import annotations

from pathlib import Path

from ddpm_lightning.commands.shown_data import levels_of, shown_data
from ddpm_lightning.data.data_module import DiffusionData
from ddpm_lightning.diffusion.schedules import Schedule
from ddpm_lightning.errors import InputError, above, at_least
from ddpm_lightning.files import check_new_file
from ddpm_lightning.plots.didactic import scaling_figure, variance_figure
from ddpm_lightning.plots.figure import FIGURES, write_figure
from ddpm_lightning.plots.fixed_noise import fixed_noise_figure, fixed_strips
from ddpm_lightning.plots.mapping import gaussian_figure, mapping_figure
from ddpm_lightning.randomness import check_seed

MOST_STEPS = 100_000
"""Steps of a noise at most, each of which is computed."""

LARGEST = 1e6
"""Largest mean and deviation, and mean in units of the deviation, that float32 resolves."""

MEASURED = 200
"""Images that a variance is measured on."""


def plot_scaling(
    out: Path, schedule: Schedule | None = None, n: int = 4000, seed: int = 0
) -> None:
    """Draw why the signal is scaled down: otherwise the variance of x_t explodes.

    Args:
        out: The PNG, PDF or SVG to write; must be new.
        schedule: The forward process; default: Linear.
        n: Numbers that are noised step by step.
        seed: Seed of the noise.

    Raises:
        InputError: The file or a setting does not work.
    """
    check_new_file(out, FIGURES)
    check_seed(seed)
    at_least(1, n=n)
    write_figure(out, scaling_figure(schedule, n, seed))
    print(f"{out} shows the variance of x_t with the signal scaled down and without")


def plot_variance(
    out: Path,
    factors: list[float] | None = None,
    n: int = 4000,
    seed: int = 0,
) -> None:
    """Draw what a reverse variance does that is too small or too large.

    Args:
        out: The PNG, PDF or SVG to write; must be new.
        factors: What the right variance is multiplied by, a column each; default: [0.25, 1, 4].
        n: Number of samples, drawn with an exact denoiser.
        seed: Seed of the noise.

    Raises:
        InputError: The file or a setting does not work.
    """
    check_new_file(out, FIGURES)
    check_seed(seed)
    at_least(1, n=n)
    factors = [0.25, 1.0, 4.0] if factors is None else factors
    at_least(0, factors=min(factors, default=-1))
    write_figure(out, variance_figure(tuple(factors), n, seed))
    print(f"{out} shows samples with the variance times {', '.join(f'{f:g}' for f in factors)}")


def plot_fixed_noise(
    out: Path,
    data: DiffusionData | None = None,
    image: Path | None = None,
    variance: list[float] | None = None,
    levels: int | list[int] = 10,
    T: int = 1000,
    seed: int = 0,
) -> None:
    """Draw an image under the same noise at every step, with the signal scaled down and without.

    Without, x_t = x_{t−1} + sigma·eps has the variance 1 + t·sigma² and leaves the range of
    pixels; with, x_t = sqrt(1 − sigma²)·x_{t−1} + sigma·eps keeps the variance 1.

    Args:
        out: The PNG, PDF or SVG to write; must be new.
        data: The data whose first training image is shown, e.g. --data Digits.
        image: A picture file in place of data, scaled to cover 128×128 pixels and cut.
        variance: sigma², two strips each; default: [0.01, 0.0001], too fast and too slow.
        levels: Columns after the first, evenly spread; or the levels: --levels "[0, 50, 100]".
        T: Steps over which they are spread.
        seed: Seed of the noise.

    Raises:
        InputError: The file, the data or a setting does not work.
    """
    check_new_file(out, FIGURES)
    check_seed(seed)
    at_least(1, T=T)
    if T > MOST_STEPS:
        raise InputError(f"T={T}: give {MOST_STEPS} steps or fewer")
    variance = [0.01, 0.0001] if variance is None else variance
    at_least(1, variances=len(variance))
    above(0, variance=min(variance))
    if max(variance) >= 1:
        raise InputError(f"variance={max(variance)}: give numbers below 1, e.g. --variance [0.01]")
    shown, chosen = shown_data(data, image, takes_ckpt=False), levels_of(levels, T)
    if len(shown.shape) != 3:
        raise InputError(f"{shown.name} has no images; give e.g. --data Digits or --image FILE")
    strips = fixed_strips(shown.first(MEASURED), variance, chosen, seed)
    write_figure(out, fixed_noise_figure(strips, chosen))
    for strip in strips:
        how = "sqrt(1 − σ²)·x + σε" if strip.scaled else "x + σε"
        print(f"σ² = {strip.noise:g}, {how}: variance of x_t, exact (measured)")
        pairs = zip(chosen, strip.exact, strip.measured, strict=True)
        print("  " + ", ".join(f"t={t}: {exact:.4g} ({m:.4g})" for t, exact, m in pairs))


def plot_mapping(out: Path, n: int = 2000, seed: int = 0) -> None:
    """Draw how samples of a normal distribution are carried to those of data, p(z) → p(x).

    The denoiser is exact and the sampler adds no noise, so that every z has one x.

    Args:
        out: The PNG, PDF or SVG to write; must be new.
        n: Samples in the plane.
        seed: Seed of these.

    Raises:
        InputError: The file or a setting does not work.
    """
    check_new_file(out, FIGURES)
    check_seed(seed)
    at_least(1, n=n)
    write_figure(out, mapping_figure(n, seed))
    print(f"{out} shows p(z) carried to p(x), on a line and in the plane")


def plot_gaussian(
    out: Path, mean: float = 2.0, deviation: float = 0.5, n: int = 1000, seed: int = 0
) -> None:
    """Draw samples of a 1-D normal distribution from its learned mean and deviation.

    Args:
        out: The PNG, PDF or SVG to write; must be new.
        mean: The data's mean.
        deviation: The data's standard deviation, above 0.
        n: Numbers that it is learned from, and samples.
        seed: Seed of both.

    Raises:
        InputError: The file or a setting does not work.
    """
    check_new_file(out, FIGURES)
    check_seed(seed)
    at_least(2, n=n)
    above(0, deviation=deviation)
    if max(abs(mean), deviation, 1 / deviation, abs(mean) / deviation) > LARGEST:
        raise InputError(
            f"mean={mean:g}, deviation={deviation:g}: float32 does not resolve these; give a mean "
            f"within ±{LARGEST:g}, and a deviation from {1 / LARGEST:g} to {LARGEST:g} that is at "
            "least a millionth of the mean"
        )
    figure, learned = gaussian_figure(mean, deviation, n, seed)
    write_figure(out, figure)
    print(f"{out}: learned mean {learned.mean:.4f}, deviation {learned.deviation:.4f}")
