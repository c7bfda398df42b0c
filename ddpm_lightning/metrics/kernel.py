"""The kernel distance between two sets of feature vectors; KID when they are Inception's."""

from __future__ import annotations

from torch import Tensor

from ddpm_lightning.errors import InputError
from ddpm_lightning.metrics.checks import check_features


def kid(
    features: Tensor,
    reference_features: Tensor,
    subsets: int = 100,
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
        is no standard error of the mean.

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
        rng_seed=seed,
        verbose=False,
    )
    return (
        result["kernel_inception_distance_mean"],
        result["kernel_inception_distance_std"],
    )
