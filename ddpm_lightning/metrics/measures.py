"""Several metrics of samples, from the features of one extractor, against one set of real data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ddpm_lightning.errors import InputError
from ddpm_lightning.metrics.features import FeatureExtractor, Features
from ddpm_lightning.metrics.jackknife import shuffled
from ddpm_lightning.metrics.metric import (
    Comparison,
    Floor,
    Metric,
    NoScoresError,
    Score,
    check_scores,
)
from ddpm_lightning.metrics.result import Result


@dataclass(frozen=True)
class Measures:
    """Several metrics in the features of one extractor; None: of the data themselves."""

    metrics: Sequence[Metric]
    extractor: FeatureExtractor | None = None
    seed: int = 0

    @property
    def needs_pairs(self) -> bool:
        """Whether a metric reads the features of real data one by one."""
        return any(metric.needs_pairs for metric in self.metrics)

    @property
    def needs_labels(self) -> bool:
        """Whether a metric reads the classes that samples were asked to be of."""
        return any(metric.needs_labels for metric in self.metrics)

    def check(self, n: int, real_n: int | None = None) -> None:
        """Raise InputError where n samples, or real_n real data, are too few for a metric."""
        for metric in self.metrics:
            metric.check(self.extractor, n, real_n)

    def check_labels(self, data: object, labels: Tensor | None) -> None:
        """Raise InputError where a metric cannot use the classes of a data set."""
        for metric in self.metrics:
            metric.check_labels(self.extractor, data, labels)

    def __call__(
        self, samples: Features, real: Features, labels: Tensor | None = None, errors: bool = True
    ) -> dict[str, Score]:
        """Compute all scores, by names that say the extractor: ``fd_lenet``, …; ``fid``.

        Of ``real`` only the statistics if no metric needs pairs; labels int64 [n] are the classes
        that the samples were asked to be of.
        """
        sets = Comparison(samples, real, labels, self.seed, errors)
        found: dict[str, Score] = {}
        for metric in self.metrics:
            scores = metric(sets)
            check_scores(metric, scores)
            for stem, score in scores.items():
                name, alias = metric.names(stem, self.extractor)
                settings = {**metric.changed(), **(score.settings or {})}
                found[name] = replace(score, alias=alias, settings=settings)
        return found

    def describe(self) -> dict[str, Any] | None:
        """State the extractor with its weights, as plain data."""
        if self.extractor is None:
            return None
        details = {"sha256": self.extractor.digest, "resize": self.extractor.resize}
        return self.extractor.describe() | details


@dataclass(eq=False)
class Reference:
    """Real data that sets of samples are scored against.

    The description is plain data: data set, split, count, sha256 of the pixels; labels int64 [N]
    are given if the extractor knows the classes.
    """

    measures: Measures
    features: Features
    description: dict[str, Any]
    labels: Tensor | None = None

    def __post_init__(self) -> None:
        self._count = len(self.features)
        self._floors: dict[int, dict[str, Floor]] = {}

    def floor_sizes(self, n: int) -> tuple[int, int]:
        """How many real data stand for n samples, at most half, and how many are left."""
        count = min(n, self._count // 2)
        return count, self._count - count

    def floors(self, n: int) -> dict[str, Floor]:
        """Compare n random real data with all others; measured once.

        The others are fewer than samples are compared with, so that a good model may score a
        little better. What the data are too few for is left out.
        """
        if n not in self._floors:
            self._floors[n] = dict(self._measured(*self.floor_sizes(n)))
        return self._floors[n]

    def _measured(self, n: int, others: int) -> Iterator[tuple[str, Floor]]:
        order = shuffled(len(self.features), 0)
        samples, real = self.features[order[:n]], self.features[order[n:]]
        labels = None if self.labels is None else self.labels[order[:n]]
        for metric in self.measures.metrics:
            if labels is not None or not metric.needs_labels:
                one = replace(self.measures, metrics=[metric.fitted(min(n, others))])
                try:
                    one.check(n, others)
                    found = one(samples, real, labels, errors=False)
                except NoScoresError:  # known before training, not at its first measurement
                    raise
                except InputError:
                    continue
                yield from ((k, Floor(score.value, n, others)) for k, score in found.items())

    def __call__(
        self, samples: Features, labels: Tensor | None = None, errors: bool = True
    ) -> dict[str, Score]:
        """Score samples, each score with its floor; arguments as for Measures."""
        found = self.measures(samples, self.features, labels, errors)
        floors = self.floors(len(samples))
        return {name: replace(score, floor=floors.get(name)) for name, score in found.items()}

    def in_words(self, n: int) -> str:
        """Say how many real images were compared with how many, beside n samples."""
        count, others = self.floor_sizes(n)
        words = f"{count} against the {others} others"
        if count < n:
            words += f" (fewer than the {n} samples, which alone makes a distance larger)"
        return words

    def results(
        self, scores: Mapping[str, Score], samples: dict[str, Any], step: int | None = None
    ) -> list[Result]:
        """State scores with what was measured; ``samples`` describes the samples."""
        stated = samples, self.description, self.measures.describe()
        return [Result(name, score, *stated, step) for name, score in scores.items()]
