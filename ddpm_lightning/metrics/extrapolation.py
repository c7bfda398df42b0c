"""The Fréchet distance extrapolated to infinitely many samples, FID∞."""

from __future__ import annotations

import math
import warnings
from functools import cache
from statistics import fmean

import torch
from torch import Tensor
from typing_extensions import override

from ddpm_lightning.metrics.frechet import FrechetDistance, frechet_distance, quick_distance
from ddpm_lightning.metrics.jackknife import jackknife, shuffled
from ddpm_lightning.metrics.metric import Comparison, Score
from ddpm_lightning.metrics.statistics import Statistics, check_features

PARTS = (1, 2, 3)
"""The features are cut into so many parts of n/1, n/2 and n/3."""

GROUPS = 10
"""Groups that the jackknife of the limit leaves out in turn."""

LEAST = 2 * math.lcm(*PARTS) * GROUPS
"""The fewest samples."""


class ExtrapolatedFrechetDistance(FrechetDistance):
    """The Fréchet distance extrapolated to infinitely many samples."""

    name = "fd_inf"
    least = LEAST

    @override
    def __call__(self, sets: Comparison) -> dict[str, Score]:
        x, reference = sets.samples.features, sets.real.statistics
        return {self.name: extrapolated_frechet(x, reference, sets.seed, sets.errors)}


def extrapolated_frechet(
    features: Tensor, reference: Statistics | Tensor, seed: int = 0, error: bool = True
) -> Score:
    """Extrapolate the Fréchet distance to infinitely many samples.

    The distance of n samples is on average too large by about a/n. The features are cut into one,
    two and three disjoint random parts; the mean distance over the parts of
    n/k samples lies at k/n on a line that meets 0 at the limit. Every size uses every sample, so
    the chance error that all sizes share does not tilt the line.

    A reference of m images adds b/m of its own. Given as Statistics it is taken as it is, as
    published FIDs do, and b/m stays; given as features it is cut alike.

    ``standard_error`` is a jackknife that leaves out one of ten disjoint groups at a time and
    repeats the extrapolation. Costs 6 distances, and 60 more for the error.

    Args:
        features: float32 [n, d] of the samples; n ≥ 120, and n > 3·d, or the line is none.
        reference: Statistics of the real images, or their features [m, d].
        seed: Seed of the cuts.
        error: Compute ``standard_error``.

    Returns:
        The limit, which may be a little below 0 for equal distributions; its settings are the
        numbers of samples, the largest first, its parts the mean distance at each of them.

    Source: Chong and Forsyth (2020), sec. 3, whose subsets are random ones that overlap.
    """
    sets = (features, reference) if isinstance(reference, Tensor) else (features,)
    check_features(*sets, least=LEAST, metric="the extrapolated distance")
    cut = _Cut(features, seed)
    cut_reference = _Cut(reference, (seed + 1) % 2**64) if isinstance(reference, Tensor) else None
    if len(features) <= PARTS[-1] * features.shape[1]:
        warnings.warn(
            f"{len(features)} features of length {features.shape[1]}: the distance is not yet "
            f"linear in 1/n, so the extrapolated one is rough; use {PARTS[-1]} times as many "
            "samples as a feature is long, or more",
            stacklevel=2,
        )

    def distance(parts: int, part: int, without: int | None) -> float:
        other = cut_reference(parts, part, without) if cut_reference else reference
        assert isinstance(other, Statistics)
        measure = frechet_distance if without is None else quick_distance
        return measure(cut(parts, part, without), other)

    def distances(without: int | None = None) -> list[float]:
        return [fmean(distance(parts, part, without) for part in range(parts)) for parts in PARTS]

    values = distances()
    standard_error = left_out = None
    if error:
        left_out = [_limit(distances(group)) for group in range(GROUPS)]
        standard_error = jackknife(left_out)
    settings = {"sizes": [len(features) // parts for parts in PARTS]}
    parts = {"values": values}
    return Score(_limit(values), standard_error, settings=settings, parts=parts, left_out=left_out)


class _Cut:
    """Statistics of disjoint parts of the features, with or without a group of their rows."""

    def __init__(self, features: Tensor, seed: int) -> None:
        self._features, self._order = features, shuffled(len(features), seed)
        self._whole = cache(self._of)

    def __call__(self, parts: int, part: int, without: int | None) -> Statistics:
        whole = self._whole(parts, part)
        return whole if without is None else whole.without(self._of(parts, part, without))

    def _of(self, parts: int, part: int, group: int | None = None) -> Statistics:
        place = torch.arange(part, len(self._order), parts)
        if group is not None:
            # Groups of whole multiples of every number of parts take the same from each part.
            place = place[place // math.lcm(*PARTS) % GROUPS == group]
        return Statistics.of(self._features[self._order[place]])


def _limit(values: list[float]) -> float:
    """Fit a line to the distances over the number of parts, and read it at 0."""
    middle = fmean(PARTS)
    slope = sum((k - middle) * value for k, value in zip(PARTS, values, strict=True))
    slope /= sum((k - middle) ** 2 for k in PARTS)
    return fmean(values) - slope * middle
