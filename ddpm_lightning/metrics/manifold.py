"""Precision, recall, density and coverage."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from typing_extensions import override

from ddpm_lightning.errors import at_least
from ddpm_lightning.metrics.jackknife import (
    BLOCKS,
    binomial_error,
    jackknife,
    means_left_out,
    shuffled,
)
from ddpm_lightning.metrics.metric import Comparison, Metric, Score
from ddpm_lightning.metrics.statistics import check_features

DISTANCES = 2**24
"""Distances held at a time: 128 MB."""

SPARE = 16
"""Neighbours kept beyond the k-th: one block of 20 holds so many of them once in 1e20 times."""


class PrecisionRecall(Metric):
    """Precision and recall, density and coverage: fidelity and variety apart.

    Args:
        k: Which neighbour bounds the balls of precision and recall; 3 as in their paper.
        density_k: Which one bounds those of density and coverage; 5 as in theirs.
    """

    name = "pr"

    def __init__(self, k: int = 3, density_k: int = 5) -> None:
        at_least(1, self, k=k, density_k=density_k)
        self.k = k
        self.density_k = density_k
        self.least = self.least_real = max(k, density_k) + 1

    @override
    def __call__(self, sets: Comparison) -> dict[str, Score]:
        x, y = sets.samples.features, sets.real.features
        # As many real images as samples: the published way, and a cost of n², not n·N. Always
        # the same ones, so that two sets of samples are held against the same.
        y = y[shuffled(len(y), 0)[: len(x)]]
        scores: dict[str, Score] = {}
        for k, names in (
            (self.k, ("precision", "recall")),
            (self.density_k, ("density", "coverage")),
        ):
            found = manifold(x, y, k, sets.errors, sets.seed)
            settings = {"k": k, "real_images": len(y)}
            scores |= {name: replace(found[name], settings=settings) for name in names}
        return scores


def manifold(
    x: Tensor, y: Tensor, k: int = 5, errors: bool = True, seed: int = 0
) -> dict[str, Score]:
    """Compute precision, recall, density and coverage with balls to the k-th neighbour.

    Around every vector is a ball that reaches to its k-th nearest neighbour in its own set.
    Precision: share of samples in at least one ball of a real image. Recall: share of real images
    in at least one ball of a sample. Density: number of real balls around a sample, mean, divided
    by k; it may exceed 1. Coverage: share of real balls with a sample inside.

    The standard errors take only the samples to be random. The real balls are fixed then, so
    precision is binomial and density a mean over samples; recall and coverage have a delete-d
    jackknife over 20 disjoint random blocks of samples (with the balls that the others have by
    themselves), which takes about as long again and needs k + 1 samples without a block.

    Distances are float64, in blocks: the memory grows with n + m, the time with their product.

    Args:
        x: float32 [n, d] features of the samples, n > k.
        y: float32 [m, d] features of the real images, m > k. Publications take m = n.
        k: Which neighbour; 3 in the paper of precision and recall, 5 in the other.
        errors: Compute the standard errors, too.
        seed: Seed of the blocks.

    Source: Kynkäänniemi et al. (2019), eq. 1 and 2; Naeem et al. (2020), eq. 3 and 4.
    """
    check_features(x, y, least=k + 1, metric=f"precision and recall with k = {k}")
    centre = y.double().mean(dim=0)  # large norms would cost digits
    fake, real = x.double() - centre, y.double() - centre
    n, m = len(fake), len(real)
    blocks = BLOCKS if errors and n - -(-n // BLOCKS) > k else 1
    parts = shuffled(n, seed).tensor_split(blocks)
    owner = torch.empty(n, dtype=torch.long)
    for block, rows in enumerate(parts):
        owner[rows] = block

    radius, without = _radii(fake, k, owner, blocks)
    real_radius, _ = _radii(real, k)
    precise = torch.empty(n, dtype=torch.bool)
    dense = torch.empty(n, dtype=torch.float64)
    recalled = torch.zeros(m, dtype=torch.bool)
    recalled_without = torch.zeros(blocks, m, dtype=torch.bool)
    nearest = torch.full((blocks, m), torch.inf, dtype=torch.float64)  # by block
    for block, part in enumerate(parts):
        for rows in part.split(max(1, DISTANCES // m)):
            distance = _distances(fake[rows], real)
            precise[rows] = (distance <= real_radius).any(dim=1)
            dense[rows] = (distance < real_radius).sum(dim=1).double() / k
            recalled |= (distance <= radius[rows, None]).any(dim=0)
            nearest[block] = torch.minimum(nearest[block], distance.amin(dim=0))
            for other in range(blocks if blocks > 1 else 0):
                if other != block:
                    reached = distance <= without[other, rows, None]
                    recalled_without[other] |= reached.any(dim=0)
    recall, coverage = _share(recalled), _share(nearest.amin(dim=0) < real_radius)
    precision, density = _share(precise), float(dense.mean())
    left_out: dict[str, list[float]] = {}
    error = {"precision": binomial_error(precision, n), "density": float(dense.std()) / n**0.5}
    if blocks > 1:
        others = (nearest[torch.arange(blocks) != block].amin(dim=0) for block in range(blocks))
        left_out = {
            "precision": means_left_out(precise, seed),
            "recall": [_share(one) for one in recalled_without],
            "density": means_left_out(dense, seed),
            "coverage": [_share(distance < real_radius) for distance in others],
        }
        error |= {name: jackknife(left_out[name]) for name in ("recall", "coverage")}
    values = {"precision": precision, "recall": recall, "density": density, "coverage": coverage}
    return {
        name: Score(
            value,
            error.get(name) if errors else None,
            smaller_is_better=False,
            left_out=left_out.get(name),
        )
        for name, value in values.items()
    }


def _radii(
    x: Tensor, k: int, owner: Tensor | None = None, blocks: int = 1
) -> tuple[Tensor, Tensor]:
    """Distance of each vector to its k-th neighbour, itself not counted.

    [n] among all, and [blocks, n] among those that are not of each block.
    """
    radii = torch.empty(len(x), dtype=x.dtype)
    without = torch.empty(blocks, len(x), dtype=x.dtype)
    kept = min(k + SPARE, len(x) - 1) if blocks > 1 else k
    for rows in torch.arange(len(x)).split(max(1, DISTANCES // len(x))):
        distance = _distances(x[rows], x)
        distance[torch.arange(len(rows)), rows] = torch.inf
        near, neighbour = distance.topk(kept, dim=1, largest=False)
        radii[rows] = near[:, k - 1]
        if owner is None or blocks == 1:
            continue
        for block in range(blocks):
            rank = (owner[neighbour] != block).cumsum(dim=1)
            place = (rank < k).sum(dim=1, keepdim=True).clamp(max=kept - 1)
            without[block, rows] = near.gather(1, place)[:, 0]
    return radii, without


def _distances(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b, compute_mode="use_mm_for_euclid_dist")


def _share(chosen: Tensor) -> float:
    return float(chosen.double().mean())
