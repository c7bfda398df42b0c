"""The kernel distance between two sets of feature vectors; KID when they are Inception's."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ddpm_lightning.errors import InputError
from ddpm_lightning.metrics.checks import check_features
from ddpm_lightning.metrics.jackknife import BLOCKS, jackknife, shuffled

SUBSETS = 100

VALUES = 2**23
"""Kernel values held at a time: 64 MB."""


def kid(
    features: Tensor,
    reference_features: Tensor,
    subsets: int = SUBSETS,
    subset_size: int = 1000,
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
