"""Several metrics of one set of samples from the same cached features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ddpm_lightning.errors import InputError
from ddpm_lightning.metrics.cached import Features
from ddpm_lightning.metrics.features import FeatureExtractor
from ddpm_lightning.metrics.frechet import Statistics, frechet_distance
from ddpm_lightning.metrics.inception_score import inception_score
from ddpm_lightning.metrics.kernel import kid
from ddpm_lightning.metrics.manifold import manifold

Metric = Literal["fd", "kid", "is", "pr"]
"""Fréchet distance; kernel distance; Inception score; precision, recall, density, coverage."""


@dataclass(frozen=True)
class Measurement:
    """One number.

    Attributes:
        name: What it is, with the extractor: ``fid``, ``fd_lenet``, ``kid``, ``kd_lenet``, …
        alias: The stable name: ``fid``, ``fd``, ``kid``, ``kd``, …
        value: The number.
        settings: What else decides about it.
        spread: Standard deviation over subsets or splits, where there are any.
    """

    name: str
    alias: str
    value: float
    settings: dict[str, Any] = field(default_factory=dict)
    spread: float | None = None


@dataclass(frozen=True)
class Measures:
    """Which metrics to compute, and how.

    Args:
        metrics: Which.
        subset_size: Samples in a subset of the kernel distance.
        splits: Parts of the Inception score.
        near: Neighbour that bounds the balls of precision and recall, as in their paper.
        far: Neighbour that bounds the balls of density and coverage, as in theirs.
    """

    metrics: Sequence[Metric] = ("fd",)
    subset_size: int = 1000
    splits: int = 10
    near: int = 3
    far: int = 5

    def check(self, extractor: FeatureExtractor, n: int, reference_n: int | None = None) -> None:
        """Refuse what cannot be measured, before anything is computed.

        Args:
            extractor: Whose features will be compared.
            n: Number of samples.
            reference_n: Number of real images, if known.

        Raises:
            InputError: No metric, one twice, too few samples, or no logits for the score.
        """
        if not self.metrics or len(set(self.metrics)) < len(self.metrics):
            raise InputError(f"metrics {list(self.metrics)}: name one or more, each once")
        smallest = n if reference_n is None else min(n, reference_n)
        if "kid" in self.metrics and smallest < self.subset_size:
            real = "" if reference_n is None else f" and from {reference_n} real images"
            raise InputError(
                f"kid draws subsets of {self.subset_size} from {n} samples{real}; use "
                f"{self.subset_size} or more, or kid_subset_size: {smallest}"
            )
        if "is" in self.metrics and extractor.classes is None:
            raise InputError(
                f"is needs a classifier, and {type(extractor).__name__} gives no logits; use "
                "Inception, LeNet, or leave it out of metrics"
            )
        least = max(
            [2]
            + [self.splits] * ("is" in self.metrics)
            + [max(self.near, self.far) + 1] * ("pr" in self.metrics)
        )
        if smallest < least:
            raise InputError(
                f"metrics {list(self.metrics)} need {least} or more images, not {smallest}"
            )

    def __call__(
        self,
        extractor: FeatureExtractor,
        samples: Features,
        reference: Features,
        statistics: Statistics | None = None,
    ) -> list[Measurement]:
        """Measure samples against a reference.

        Args:
            extractor: Whose features they are.
            samples: Features of the samples.
            reference: Features of the real images.
            statistics: Those of the reference, if they are known.

        Raises:
            InputError: Too few images for a metric, or features that are not finite.
        """
        found = []
        for metric in self.metrics:
            if metric == "fd":
                distance = frechet_distance(
                    Statistics.of(samples.features),
                    statistics or Statistics.of(reference.features),
                )
                found.append(Measurement(extractor.name, extractor.alias, distance))
            elif metric == "kid":
                mean, spread = kid(
                    samples.features, reference.features, subset_size=self.subset_size
                )
                settings = {"subset_size": self.subset_size}
                found.append(_named(extractor, "kid", "kd", mean, settings, spread))
            elif metric == "is":
                assert samples.logits is not None
                mean, spread = inception_score(samples.logits, self.splits)
                settings = {"splits": self.splits}
                found.append(_named(extractor, "is", "is", mean, settings, spread))
            else:
                # As many real images as samples: the published way, and a cost of n², not n·N.
                real = reference.features[_some(len(reference), len(samples))]
                for k, names in (
                    (self.near, ("precision", "recall")),
                    (self.far, ("density", "coverage")),
                ):
                    shares = manifold(samples.features, real, k)
                    settings = {"k": k, "real_images": len(real)}
                    found += [
                        _named(extractor, name, name, shares[name], settings) for name in names
                    ]
        return found


def _some(total: int, at_most: int) -> Tensor:
    """Choose rows at random, the same each time."""
    return torch.randperm(total, generator=torch.Generator().manual_seed(0))[:at_most]


def _named(
    extractor: FeatureExtractor,
    published: str,
    other: str,
    value: float,
    settings: dict[str, Any],
    spread: float | None = None,
) -> Measurement:
    """Name a number as publications do if the features are Inception's, else after the network."""
    if extractor.name == "fid":
        return Measurement(published, published, value, settings, spread)
    network = extractor.name.removeprefix("fd").strip("_")
    return Measurement(f"{other}_{network}", other, value, settings, spread)
