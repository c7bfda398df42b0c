"""Distances between two sets of points, for data of few dimensions; no features in between."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from ddpm_lightning.errors import above, at_least
from ddpm_lightning.metrics.metric import Comparison, Metric, Score


class SlicedWasserstein(Metric):
    """The sliced Wasserstein-1 distance between equally many samples and real points.

    Args:
        projections: Random directions.
    """

    name = "swd"
    of_points = True

    def __init__(self, projections: int = 256) -> None:
        at_least(1, self, projections=projections)
        self.projections = projections

    @override
    def __call__(self, sets: Comparison) -> dict[str, Score]:
        x, y = sets.samples.features, sets.real.features
        settings = {"projections": self.projections}
        return {self.name: Score(sliced_wasserstein(x, y, self.projections), settings=settings)}


class MMD(Metric):
    """The squared maximum mean discrepancy between samples and real points.

    Args:
        bandwidths: Widths of its Gaussian kernels, in the units of the data.
    """

    name = "mmd"
    of_points = True

    def __init__(self, bandwidths: Sequence[float] = (0.1, 0.3, 1.0)) -> None:
        above(0, self, bandwidths=min(bandwidths, default=0))
        self.bandwidths = list(bandwidths)

    @override
    def __call__(self, sets: Comparison) -> dict[str, Score]:
        value = mmd(sets.samples.features, sets.real.features, self.bandwidths)
        return {self.name: Score(value, settings={"bandwidths": self.bandwidths})}


def sliced_wasserstein(x: Tensor, y: Tensor, projections: int = 256, seed: int = 0) -> float:
    """Sliced Wasserstein-1 distance of x and y [n, d], in the units of the data, in float64.

    Mean over random directions θ, uniform on the sphere, of W1(θ·x, θ·y), which in one dimension
    is exactly the mean of |sorted θ·x − sorted θ·y| (Bonneel et al. 2015, sec. 3, with p = 1).
    """
    generator = torch.Generator().manual_seed(seed)
    size = (x.shape[1], projections)
    directions = torch.randn(size, generator=generator, dtype=torch.float64)
    directions /= directions.norm(dim=0)
    a, b = (points.cpu().double() @ directions for points in (x, y))  # [n, projections]
    return float((a.sort(dim=0).values - b.sort(dim=0).values).abs().mean())


def mmd(x: Tensor, y: Tensor, bandwidths: Sequence[float] = (0.1, 0.3, 1.0)) -> float:
    """Squared maximum mean discrepancy of x [n, d] and y [m, d], unbiased, in float64.

    mean of k(x_i, x_j) over i ≠ j + the same of y − 2·mean of k(x_i, y_j), with the kernel
    k(a, b) = mean over the bandwidths h of exp(−‖a − b‖²/(2·h²)); 0 on average for two sets from
    one distribution, so it may be negative (Gretton et al. 2012, eq. 3).
    """
    x, y = x.cpu().double(), y.cpu().double()

    def total(a: Tensor, b: Tensor) -> float:
        squared = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square_()
        sums = [float((squared / (-2 * h**2)).exp_().sum()) for h in bandwidths]
        return sum(sums) / len(sums)

    n, m = len(x), len(y)
    # k(x_i, x_i) = 1 is taken out of the sums.
    within_x = (total(x, x) - n) / (n * (n - 1))
    within_y = (total(y, y) - m) / (m * (m - 1))
    return within_x + within_y - 2 * total(x, y) / (n * m)
