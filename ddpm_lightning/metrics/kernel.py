"""The kernel distance between two sets of feature vectors; KID when they are Inception's."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from typing_extensions import override

from ddpm_lightning.errors import InputError
from ddpm_lightning.metrics.features import FeatureExtractor, check_features
from ddpm_lightning.metrics.jackknife import BLOCKS, jackknife, shuffled
from ddpm_lightning.metrics.metric import Comparison, Metric, Score

SUBSETS = 100
SUBSET_SIZE = 1000

VALUES = 2**23
"""Kernel values held at a time: 64 MB."""


class KID(Metric):
    """The kernel distance between samples and real data; KID when the features are Inception's.

    Args:
        subset_size: Samples, and real data, in a subset; null: 1,000, or all of the smaller set.
        subsets: Number of subsets.

    Raises:
        InputError: A number is out of range.
    """

    name = "kid"

    def __init__(self, subset_size: int | None = None, subsets: int = SUBSETS) -> None:
        if subsets < 1 or (subset_size is not None and subset_size < 2):
            raise InputError(
                f"KID(subset_size={subset_size}, subsets={subsets}): at least 1 subset of 2"
            )
        self.subset_size = subset_size
        self.subsets = subsets

    @override
    def check(self, extractor: FeatureExtractor | None, n: int, real_n: int | None = None) -> None:
        super().check(extractor, n, real_n)
        smallest = n if real_n is None else min(n, real_n)
        if self.subset_size is not None and smallest < self.subset_size:
            real = "" if real_n is None else f" and from {real_n} real ones"
            raise InputError(
                f"kid draws subsets of {self.subset_size} from {n} samples{real}; use "
                f"{self.subset_size} or more, or subset_size: {smallest}"
            )

    @override
    def fitted(self, n: int) -> KID:
        # Smaller subsets leave the expectation as it is.
        return KID(min(self.subset_size or SUBSET_SIZE, n), self.subsets)

    @override
    def __call__(self, sets: Comparison) -> dict[str, Score]:
        x, y = sets.samples.features, sets.real.features
        size = self.subset_size or min(SUBSET_SIZE, len(x), len(y))
        mean, std = kid(x, y, self.subsets, size, sets.seed)
        error = None
        if sets.errors and len(x) >= 2 * BLOCKS:
            error = kid_error(x, y, std, self.subsets, seed=sets.seed)
        # One subset of all samples, time and again: what is left is the choice of real images.
        spread = std if size < len(x) else None
        settings = {"subset_size": size, "subsets": self.subsets}
        return {self.name: Score(mean, error, spread, settings)}

    @override
    def names(self, score: str, extractor: FeatureExtractor | None) -> tuple[str, str]:
        published = extractor is None or extractor.name == "fid"
        return super().names("kid" if published else "kd", extractor)


def kid(
    features: Tensor,
    reference_features: Tensor,
    subsets: int = SUBSETS,
    subset_size: int = SUBSET_SIZE,
    seed: int = 0,
) -> tuple[float, float]:
    """Compute the squared maximum mean discrepancy under the kernel (a·b/d + 1)³, unbiased.

    The mean over random subsets of both sets, by torch-fidelity, in float64. It is 0 on average
    for equal distributions, so it may be negative, and it does not shrink with more samples.

    Args:
        features: float32 [n, d] of the samples.
        reference_features: float32 [m, d] of the real images.
        subsets: Number of subsets.
        subset_size: Vectors in a subset of either set, at least 2.
        seed: Seed of the subsets.

    Returns:
        Mean and standard deviation over the subsets. Subsets overlap, so the standard deviation
        is no standard error of the mean; that is :func:`kid_error`.

    Raises:
        InputError: A set is smaller than a subset, they do not fit each other, or are not finite.

    Source: Bińkowski et al. (2018), sec. 3.
    """
    if subsets < 1 or subset_size < 2:
        raise InputError(
            f"kid(subsets={subsets}, subset_size={subset_size}): at least 1 subset of 2 vectors"
        )
    check_features(features, reference_features, least=2, metric="KID")
    smallest = min(len(features), len(reference_features))
    if smallest < subset_size:
        raise InputError(
            f"KID draws subsets of {subset_size} from {len(features)} samples and "
            f"{len(reference_features)} real images; use {subset_size} or more of both, or a "
            f"subset size of {smallest} or less, which makes another number of it"
        )
    from torch_fidelity.metric_kid import kid_features_to_metric

    result = kid_features_to_metric(
        features.double(),
        reference_features.double(),
        kid_subsets=subsets,
        kid_subset_size=subset_size,
        rng_seed=seed % 2**32,  # numpy's have 32 bits
        verbose=False,
    )
    return (
        result["kernel_inception_distance_mean"],
        result["kernel_inception_distance_std"],
    )


def kid_error(
    features: Tensor,
    reference_features: Tensor,
    std: float,
    subsets: int = SUBSETS,
    blocks: int = BLOCKS,
    seed: int = 0,
) -> float:
    """Compute the standard error of :func:`kid`'s mean; only the samples are taken to be random.

    Given the samples, the mean over random subsets scatters by std²/subsets around the distance of
    all samples (its expectation); that one scatters by a delete-d jackknife over disjoint random
    blocks of the samples. The variances add up.

    The samples' part that has to do with the reference is taken from as many random real images
    as samples. Costs at most 2·n² kernel values, at n = 10,000 about as much as 100 subsets of
    1,000, and 64 MB.

    Args:
        features: float32 [n, d] of the samples, n ≥ 2·blocks.
        reference_features: float32 [m, d] of the real images.
        std: Standard deviation over the subsets.
        subsets: Number of subsets.
        blocks: Number of blocks.
        seed: Seed of the blocks.

    Raises:
        InputError: Too few features, they do not fit each other, or are not finite.
    """
    check_features(features, reference_features, least=2, metric="KID's standard error")
    check_features(features, least=2 * blocks, metric="KID's standard error")
    n, d = features.shape
    x = features[shuffled(n, seed)].double()
    y = reference_features[shuffled(len(reference_features), 0)[:n]].double()
    sizes = [len(part) for part in x.tensor_split(blocks)]
    within = torch.zeros(blocks, n, dtype=torch.float64)  # of each block with each sample
    across = torch.zeros(blocks, dtype=torch.float64)
    for block, part in enumerate(x.tensor_split(blocks)):
        for rows in part.split(max(1, VALUES // n)):
            within[block] += _cubed(rows @ x.T / d + 1).sum(0)
            across[block] += _cubed(rows @ y.T / d + 1).sum()
    itself = _cubed(x.square().sum(1) / d + 1)
    pairs = torch.stack([part.sum(1) for part in within.split(sizes, dim=1)], dim=1)
    pairs -= torch.diag(torch.stack([part.sum() for part in itself.split(sizes)]))
    left_out = []
    for block, size in enumerate(sizes):
        rest = n - size
        inner = pairs.sum() - 2 * pairs[block].sum() + pairs[block, block]
        cross = across.sum() - across[block]
        left_out.append(float(inner / (rest * (rest - 1)) - 2 * cross / (rest * len(y))))
    return math.hypot(jackknife(left_out), std / math.sqrt(subsets))


def _cubed(x: Tensor) -> Tensor:
    return x * x * x
