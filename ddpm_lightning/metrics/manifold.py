"""Fidelity and variety apart: do samples lie where data lie, and are all data reached?"""

from __future__ import annotations

import torch
from torch import Tensor

from ddpm_lightning.errors import InputError
from ddpm_lightning.metrics.checks import check_features

DISTANCES = 2**24
"""Distances held at a time: 128 MB."""


def manifold(features: Tensor, reference_features: Tensor, k: int = 5) -> dict[str, float]:
    """Compute precision, recall, density and coverage with balls to the k-th neighbour.

    Around every vector is a ball that reaches to its k-th nearest neighbour in its own set.
    Precision: share of samples in at least one ball of a real image. Recall: share of real images
    in at least one ball of a sample. Density: number of real balls around a sample, mean, divided
    by k; it may exceed 1. Coverage: share of real balls with a sample inside.

    Distances are float64, in blocks: the memory grows with n + m, the time with their product.

    Args:
        features: float32 [n, d] of the samples, n > k.
        reference_features: float32 [m, d] of the real images, m > k. Publications take m = n.
        k: Which neighbour; 3 in the paper of precision and recall, 5 in that of density and
            coverage.

    Returns:
        ``precision``, ``recall``, ``density`` and ``coverage``.

    Raises:
        InputError: Too few features, they do not fit each other, or are not finite.

    Source: Kynkäänniemi et al. (2019), eq. 1 and 2; Naeem et al. (2020), eq. 3 and 4.
    """
    if k < 1:
        raise InputError(f"manifold(k={k}): at least 1")
    check_features(
        features, reference_features, least=k + 1, metric=f"precision and recall with k = {k}"
    )
    centre = reference_features.double().mean(dim=0)  # large norms would cost digits
    fake, real = features.double() - centre, reference_features.double() - centre
    fake_radius, real_radius = _radii(fake, k), _radii(real, k)
    precise = dense = 0
    recalled = torch.zeros(len(real), dtype=torch.bool)
    nearest = torch.full((len(real),), torch.inf, dtype=torch.float64)
    for rows in _blocks(len(fake), len(real)):
        distance = _distances(fake[rows], real)
        precise += int((distance <= real_radius).any(dim=1).sum())
        dense += int((distance < real_radius).sum())
        recalled |= (distance <= fake_radius[rows, None]).any(dim=0)
        nearest = torch.minimum(nearest, distance.amin(dim=0))
    return {
        "precision": precise / len(fake),
        "recall": float(recalled.double().mean()),
        "density": dense / (k * len(fake)),
        "coverage": float((nearest < real_radius).double().mean()),
    }


def _radii(x: Tensor, k: int) -> Tensor:
    """Compute the distance of each vector to its k-th neighbour, itself not counted: [n]."""
    radii = torch.empty(len(x), dtype=x.dtype)
    for rows in _blocks(len(x), len(x)):
        distance = _distances(x[rows], x)
        distance[torch.arange(len(rows)), rows] = torch.inf
        radii[rows] = distance.kthvalue(k, dim=1).values
    return radii


def _blocks(n: int, m: int) -> tuple[Tensor, ...]:
    return torch.arange(n).split(max(1, DISTANCES // m))


def _distances(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b, compute_mode="use_mm_for_euclid_dist")
