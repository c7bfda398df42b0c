"""The kernel distance between two sets of feature vectors; KID when they are Inception's."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from typing_extensions import override

from ddpm_lightning.errors import at_least
from ddpm_lightning.metrics.features import FeatureExtractor
from ddpm_lightning.metrics.jackknife import BLOCKS, jackknife, shuffled
from ddpm_lightning.metrics.metric import Comparison, Metric, Score
from ddpm_lightning.metrics.statistics import check_features

SUBSETS = 100
SUBSET_SIZE = 1000

VALUES = 2**23
"""Kernel values held at a time: 64 MB."""


class KID(Metric):
    """The kernel distance between samples and real data; KID when the features are Inception's.

    Args:
        subset_size: Samples, and real data, in a subset; null: 1,000, or all of the smaller set.
        subsets: Number of subsets.
    """

    name = "kid"

    def __init__(self, subset_size: int | None = None, subsets: int = SUBSETS) -> None:
        at_least(1, self, subsets=subsets)
        at_least(2, self, subset_size=subset_size)
        self.subset_size = subset_size
        self.subsets = subsets
        self.least = self.least_real = subset_size or 2

    @override
    def __call__(self, sets: Comparison) -> dict[str, Score]:
        x, y = sets.samples.features, sets.real.features
        size = min(self.subset_size or SUBSET_SIZE, len(x), len(y))
        mean, std = kid(x, y, self.subsets, size, sets.seed)
        error = left_out = None
        if sets.errors and len(x) >= 2 * BLOCKS:
            left_out = kid_left_out(x, y, sets.seed)
            # Given the samples, the mean over random subsets scatters around their distance.
            error = math.hypot(jackknife(left_out), std / math.sqrt(self.subsets))
        # One subset of all samples, time and again: what is left is the choice of real images.
        spread = std if size < len(x) else None
        settings = {"subset_size": size, "subsets": self.subsets}
        return {self.name: Score(mean, error, spread, settings, left_out=left_out)}

    @override
    def fitted(self, n: int) -> KID:
        # Smaller subsets leave the expectation as it is.
        return KID(max(2, min(self.subset_size or SUBSET_SIZE, n)), self.subsets)

    @override
    def names(self, score: str, extractor: FeatureExtractor | None) -> tuple[str, str]:
        published = extractor is None or extractor.name == "fid"
        return super().names("kid" if published else "kd", extractor)


def kid(x: Tensor, y: Tensor, subsets: int, subset_size: int, seed: int) -> tuple[float, float]:
    """The squared maximum mean discrepancy of x [n, d] and y [m, d] under (a·b/d + 1)³, unbiased.

    Mean and standard deviation over random subsets of both sets, by torch-fidelity, in float64. It
    is 0 on average for equal distributions, so it may be negative. Subsets overlap, so the
    standard deviation is no standard error.

    Source: Bińkowski et al. (2018), sec. 3.
    """
    check_features(x, y, least=max(2, subset_size), metric="KID")
    from torch_fidelity.metric_kid import kid_features_to_metric

    found = kid_features_to_metric(
        x.double(),
        y.double(),
        kid_subsets=subsets,
        kid_subset_size=subset_size,
        rng_seed=seed % 2**32,  # numpy's have 32 bits
        verbose=False,
    )
    return found["kernel_inception_distance_mean"], found["kernel_inception_distance_std"]


def kid_left_out(x: Tensor, y: Tensor, seed: int, blocks: int = BLOCKS) -> list[float]:
    """The kernel distance of all samples x [n, d] to y, without each block of x in turn.

    Of y as many random real images as samples are taken, if there are more. Costs at most 3·n²
    kernel values, at n = 10,000 about as much as 150 subsets of 1,000, and 64 MB.
    """
    n, d = x.shape
    x = x[shuffled(n, seed)].double()
    y = y[shuffled(len(y), 0)[:n]].double()
    sizes = [len(part) for part in x.tensor_split(blocks)]
    within = torch.zeros(blocks, n, dtype=torch.float64)  # of each block with each sample
    across = torch.zeros(blocks, dtype=torch.float64)
    for block, part in enumerate(x.tensor_split(blocks)):
        for rows in part.split(max(1, VALUES // n)):
            within[block] += (rows @ x.T / d + 1).pow(3).sum(0)
            across[block] += (rows @ y.T / d + 1).pow(3).sum()
    itself = (x.square().sum(1) / d + 1).pow(3)
    pairs = torch.stack([part.sum(1) for part in within.split(sizes, dim=1)], dim=1)
    pairs -= torch.diag(torch.stack([part.sum() for part in itself.split(sizes)]))
    among_real = _mean_of_pairs(y)
    left_out = []
    for block, size in enumerate(sizes):
        rest = n - size
        inner = pairs.sum() - 2 * pairs[block].sum() + pairs[block, block]
        cross = across.sum() - across[block]
        within_rest, with_real = inner / (rest * (rest - 1)), cross / (rest * len(y))
        left_out.append(float(within_rest - 2 * with_real) + among_real)
    return left_out


def _mean_of_pairs(y: Tensor) -> float:
    """Mean kernel of float64 y [m, d] over the pairs of different rows."""
    m, d = y.shape
    total = -(y.square().sum(1) / d + 1).pow(3).sum()
    for rows in y.split(max(1, VALUES // m)):
        total += (rows @ y.T / d + 1).pow(3).sum()
    return float(total) / (m * (m - 1))
