"""What real images reach against other real images: the floor that samples could come down to."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from torch import Tensor

from ddpm_lightning.errors import InputError
from ddpm_lightning.metrics.cached import Features
from ddpm_lightning.metrics.features import FeatureExtractor
from ddpm_lightning.metrics.frechet import Statistics
from ddpm_lightning.metrics.jackknife import shuffled
from ddpm_lightning.metrics.measure import Measures, Score


@dataclass(frozen=True)
class Floors:
    """Scores of real images that stand for samples.

    Attributes:
        values: By the names of the scores; what the images are too few for is left out.
        n: Real images that stand for samples.
        reference_n: Others that they are held against.
    """

    values: Mapping[str, float]
    n: int
    reference_n: int

    def beside(self, scores: Mapping[str, Score]) -> dict[str, Score]:
        """Put the floor beside each score."""
        return {
            name: replace(
                score,
                floor=self.values[name],
                floor_n=self.n,
                floor_reference_n=self.reference_n,
            )
            if name in self.values
            else score
            for name, score in scores.items()
        }

    def said(self, n: int) -> str:
        """Say in words what was held against what, beside n samples."""
        words = f"{self.n} against the {self.reference_n} others"
        if self.n < n:
            words += f" (fewer than the {n} samples, which alone makes a distance larger)"
        return words


def measured_floors(
    measures: Measures,
    extractor: FeatureExtractor,
    reference: Features,
    n: int,
    labels: Tensor | None = None,
) -> Floors:
    """Hold n random real images against all others; at most half of them, if they are fewer.

    The others are fewer than samples are held against, so that a good model may score a little
    better. Subsets of the kernel distance are smaller where the images are fewer, which leaves
    its expectation as it is.

    Args:
        measures: What to measure.
        extractor: Whose features they are.
        reference: Features of the real images.
        n: Number of samples.
        labels: int64 [N] their classes, for ``accuracy``, or None.
    """
    order = shuffled(len(reference), 0)
    count = min(n, len(order) // 2)
    part, others = reference[order[:count]], reference[order[count:]]
    subset = min(measures.subset_size, count, len(others))
    asked = None if labels is None else labels[order[:count]]
    statistics = Statistics.of(others.features) if len(others) > 1 else None
    values: dict[str, float] = {}
    for metric in measures.metrics:
        if metric == "accuracy" and asked is None:
            continue
        one = replace(measures, metrics=(metric,), subset_size=subset)
        with suppress(InputError):
            one.check(extractor, count, len(others))
            found = one(extractor, part, others, statistics, asked, errors=False)
            values |= {name: score.value for name, score in found.items()}
    return Floors(values, count, len(others))
