"""Precision, recall, density and coverage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from ddpm_lightning.metrics.statistics import check_features, mean_of

TILE = 1024
"""Vectors of each set whose distances are held at a time; with 2048 features they take 80 MB."""

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
        if len(y) > len(x):
            y = y[shuffled(len(y), 0)[: len(x)]]
        found = manifolds(x, y, (self.k, self.density_k), sets.errors, sets.seed)
        settings = {"real_images": len(y)}
        return {
            name: replace(found[k][name], settings={"k": k, **settings})
            for k, names in (
                (self.k, ("precision", "recall")),
                (self.density_k, ("density", "coverage")),
            )
            for name in names
        }


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
    themselves), which needs k + 1 samples without a block.

    Distances are float64, in tiles: the memory grows with n + m, the time with their product.

    Args:
        x: float32 [n, d] features of the samples, n > k.
        y: float32 [m, d] features of the real images, m > k. Publications take m = n.
        k: Which neighbour; 3 in the paper of precision and recall, 5 in the other.
        errors: Compute the standard errors, too.
        seed: Seed of the blocks.

    Source: Kynkäänniemi et al. (2019), eq. 1 and 2; Naeem et al. (2020), eq. 3 and 4.
    """
    return manifolds(x, y, (k,), errors, seed)[k]


def manifolds(
    x: Tensor, y: Tensor, ks: Sequence[int], errors: bool = True, seed: int = 0
) -> dict[int, dict[str, Score]]:
    """Compute the scores of :func:`manifold` for several k, from the same distances."""
    largest = max(ks)
    check_features(x, y, least=largest + 1, metric=f"precision and recall with k = {largest}")
    centre = mean_of(y)  # taken from both, because large norms would cost digits
    n = len(x)
    blocks = BLOCKS if errors and n - -(-n // BLOCKS) > largest else 1
    parts = shuffled(n, seed).tensor_split(blocks)
    owner = torch.empty(n, dtype=torch.long)
    for block, rows in enumerate(parts):
        owner[rows] = block
    near, neighbour = _neighbours(x, centre, largest + (SPARE if blocks > 1 else 0))
    real_near, _ = _neighbours(y, centre, largest)
    balls = {
        k: _Balls(_radii(near, neighbour, k, owner, blocks), real_near[:, k - 1].clone(), k)
        for k in ks
    }
    nearest = torch.full((blocks, len(y)), torch.inf, dtype=torch.float64)  # by block
    for block, part in enumerate(parts):
        for rows in part.split(TILE):
            for columns, distance in _distances(x[rows], y, centre):
                near_block = nearest[block, columns]
                torch.minimum(near_block, distance.amin(dim=0), out=near_block)
                for one in balls.values():
                    one.add(distance, rows, columns, block)
    return {k: one.scores(nearest, errors, seed) for k, one in balls.items()}


class _Balls:
    """Which vectors lie in which balls to the k-th neighbour, from one tile of distances on.

    Args:
        radii: float64 [n] of the samples' balls, and [blocks, n] without each block of samples.
        real_radius: float64 [m] of the real balls.
        k: Which neighbour.
    """

    def __init__(self, radii: tuple[Tensor, Tensor], real_radius: Tensor, k: int) -> None:
        self.radius, self.without = radii
        self.real_radius, self.k = real_radius, k
        n, m, self.blocks = len(self.radius), len(real_radius), len(self.without)
        self.precise = torch.zeros(n, dtype=torch.bool)
        self.around = torch.zeros(n, dtype=torch.float64)
        self.reached = torch.zeros(self.blocks, m, dtype=torch.bool)
        self.reached_wider = torch.zeros(self.blocks, m, dtype=torch.bool)

    def add(self, distance: Tensor, rows: Tensor, columns: slice, block: int) -> None:
        """Count distances [r, c] of rows of the samples, all of one block, from real vectors."""
        real_radius = self.real_radius[columns]
        self.precise[rows] |= (distance <= real_radius).any(dim=1)
        self.around[rows] += (distance < real_radius).sum(dim=1)
        self.reached[block, columns] |= (distance <= self.radius[rows, None]).any(dim=0)
        # Without another block most balls are what they were: those that had no neighbour in it.
        for other in range(self.blocks if self.blocks > 1 else 0):
            radius = self.without[other, rows]
            wider = (radius > self.radius[rows]).nonzero()[:, 0]
            if other != block and len(wider):
                within = distance[wider] <= radius[wider, None]
                self.reached_wider[other, columns] |= within.any(dim=0)

    def scores(self, nearest: Tensor, errors: bool, seed: int) -> dict[str, Score]:
        """The four scores; nearest is float64 [blocks, m], of a real image to each block."""
        n, numbers = len(self.radius), torch.arange(self.blocks)
        dense = self.around / self.k
        precision, density = _share(self.precise), float(dense.mean())
        recall = _share(self.reached.any(dim=0))
        coverage = _share(nearest.amin(dim=0) < self.real_radius)
        left_out: dict[str, list[float]] = {}
        error = {
            "precision": binomial_error(precision, n),
            "density": float(dense.std()) / n**0.5,
        }
        if self.blocks > 1:
            others = [numbers != block for block in numbers]
            recalled = [self.reached[rest].any(dim=0) for rest in others]
            left_out = {
                "precision": means_left_out(self.precise, seed),
                "recall": [
                    _share(a | b) for a, b in zip(recalled, self.reached_wider, strict=True)
                ],
                "density": means_left_out(dense, seed),
                "coverage": [_share(nearest[r].amin(dim=0) < self.real_radius) for r in others],
            }
            error |= {name: jackknife(left_out[name]) for name in ("recall", "coverage")}
        values = {
            "precision": precision,
            "recall": recall,
            "density": density,
            "coverage": coverage,
        }
        return {
            name: Score(
                value,
                error.get(name) if errors else None,
                smaller_is_better=False,
                left_out=left_out.get(name),
            )
            for name, value in values.items()
        }


def _neighbours(x: Tensor, centre: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Distances of each vector to its nearest, itself not counted, and which these are.

    float64 and int64 [n, count], count at most n − 1.
    """
    count = min(count, len(x) - 1)
    near = torch.full((len(x), count), torch.inf, dtype=torch.float64)
    neighbour = torch.zeros(len(x), count, dtype=torch.long)

    def keep_nearest(rows: slice, distance: Tensor, first: int) -> None:
        """Join the nearest of some rows with their distances from the vectors from first on."""
        some, places = distance.topk(min(count, distance.shape[1]), dim=1, largest=False)
        which = torch.cat([neighbour[rows], places + first], dim=1)
        near[rows], order = torch.cat([near[rows], some], dim=1).topk(count, dim=1, largest=False)
        neighbour[rows] = which.gather(1, order)

    for first in range(0, len(x), TILE):
        rows = slice(first, first + TILE)
        for later, distance in _distances(x[rows], x[first:], centre):  # the others by symmetry
            columns = slice(first + later.start, first + later.stop)
            if columns.start == first:
                distance.fill_diagonal_(torch.inf)
            else:
                keep_nearest(columns, distance.T, first)
            keep_nearest(rows, distance, columns.start)
    return near, neighbour


def _radii(
    near: Tensor, neighbour: Tensor, k: int, owner: Tensor, blocks: int
) -> tuple[Tensor, Tensor]:
    """Distance of each vector to its k-th neighbour, from its nearest ones.

    [n] among all, and [blocks, n] among those that are not of each block.
    """
    without = torch.empty(blocks, len(near), dtype=near.dtype)
    for block in range(blocks if blocks > 1 else 0):
        rank = (owner[neighbour] != block).cumsum(dim=1)
        place = (rank < k).sum(dim=1, keepdim=True).clamp(max=near.shape[1] - 1)
        without[block] = near.gather(1, place)[:, 0]
    return near[:, k - 1].clone(), without


def _distances(a: Tensor, b: Tensor, centre: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield which of b a tile is, and the distances float64 [r, c] of a from it.

    The centre is taken from both.
    """
    a, first = a.double() - centre, 0
    for part in b.split(TILE):  # float64 of all would take gigabytes
        tile = part.double().sub_(centre)
        distance = torch.cdist(a, tile, compute_mode="use_mm_for_euclid_dist")
        yield slice(first, first + len(part)), distance
        first += len(part)


def _share(chosen: Tensor) -> float:
    return float(chosen.double().mean())
