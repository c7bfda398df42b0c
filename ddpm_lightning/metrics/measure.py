"""All metrics from one set of cached features, for evaluation and training alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from ddpm_lightning.errors import InputError
from ddpm_lightning.metrics.cached import Features
from ddpm_lightning.metrics.extrapolation import LEAST, extrapolated_frechet, frechet_spread
from ddpm_lightning.metrics.features import FeatureExtractor
from ddpm_lightning.metrics.frechet import Statistics, frechet_distance
from ddpm_lightning.metrics.inception_score import inception_score
from ddpm_lightning.metrics.jackknife import BLOCKS, binomial, shuffled
from ddpm_lightning.metrics.kernel import SUBSETS, kid, kid_error
from ddpm_lightning.metrics.manifold import manifold

Metric = Literal["fd", "fd_inf", "kid", "is", "pr", "accuracy"]
"""Fréchet distance and its limit of endless samples; kernel distance; Inception score; precision,
recall, density and coverage; share of samples that are of the class asked for."""


@dataclass(frozen=True)
class Score:
    """One number, how sure it is, and what real images reach.

    Attributes:
        value: The number.
        alias: Its stable name: ``fid``, ``fd``, ``fid_inf``, ``fd_inf``, ``kid``, ``kd``, …
        smaller_is_better: Whether a smaller number is the better one.
        error: Standard error of the number over draws of the samples, the reference as it is;
            None where too few samples tell none.
        spread: The published standard deviation: of ``kid`` over subsets, of ``is`` over splits.
        settings: What else decides about it.
        parts: What it is made of.
        floor: The same number of real images, held against other real images.
        floor_n: How many real images stood for samples there.
        floor_reference_n: How many others they were held against.
    """

    value: float
    alias: str
    smaller_is_better: bool
    error: float | None = None
    spread: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, Any] | None = None
    floor: float | None = None
    floor_n: int | None = None
    floor_reference_n: int | None = None


@dataclass(frozen=True)
class Measures:
    """Which metrics to compute, and how.

    Args:
        metrics: Which.
        subset_size: Samples in a subset of the kernel distance.
        splits: Parts of the Inception score.
        near: Neighbour that bounds the balls of precision and recall, as in their paper.
        far: Neighbour that bounds the balls of density and coverage, as in theirs.
        seed: Seed of subsets, splits, and the blocks of the standard errors.
    """

    metrics: Sequence[Metric] = ("fd",)
    subset_size: int = 1000
    splits: int = 10
    near: int = 3
    far: int = 5
    seed: int = 0

    def check(self, extractor: FeatureExtractor, n: int, reference_n: int | None = None) -> None:
        """Refuse what cannot be measured, before anything is computed.

        Args:
            extractor: Whose features will be compared.
            n: Number of samples.
            reference_n: Number of real images, if known.

        Raises:
            InputError: No metric, one twice, too few images, or no logits for the score.
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
        for name in ("is", "accuracy"):
            if name in self.metrics and extractor.classes is None:
                raise InputError(
                    f"{name} needs a classifier, and {type(extractor).__name__} gives no logits; "
                    "use LeNet for digits, Inception for the score of photos, or leave it out of "
                    "metrics"
                )
        if "is" in self.metrics and n < self.splits:
            raise InputError(f"is needs {self.splits} or more samples, not {n}")
        if "fd_inf" in self.metrics and n < LEAST:
            raise InputError(f"fd_inf needs {LEAST} or more samples, not {n}")
        least = max(self.near, self.far) + 1 if "pr" in self.metrics else 2
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
        asked: Tensor | None = None,
        errors: bool = True,
    ) -> dict[str, Score]:
        """Measure samples against a reference.

        Args:
            extractor: Whose features they are.
            samples: Features of the samples.
            reference: Features of the real images.
            statistics: Those of the reference, if they are known.
            asked: int64 [n] classes that the samples were asked to be of, for ``accuracy``.
            errors: Compute standard errors, too; see ``frechet_spread``, ``kid_error`` and
                ``manifold`` for what they cost.

        Returns:
            The scores by name: ``fid`` or ``fd_lenet``, …; names of publications where the
            features are Inception's, else after the network.

        Raises:
            InputError: Too few images for a metric, or features that are not finite.
        """
        if statistics is None and not {"fd", "fd_inf"}.isdisjoint(self.metrics):
            statistics = Statistics.of(reference.features)
        found: dict[str, Score] = {}
        for metric in self.metrics:
            if metric == "fd":
                assert statistics is not None
                found[extractor.name] = self._frechet(extractor, samples, statistics, errors)
            elif metric == "fd_inf":
                assert statistics is not None
                limit = extrapolated_frechet(samples.features, statistics, self.seed, errors)
                found[f"{extractor.name}_inf"] = Score(
                    limit.value,
                    f"{extractor.alias}_inf",
                    True,
                    limit.spread,
                    settings={"sizes": list(limit.sizes)},
                )
            elif metric == "kid":
                name, alias = _names(extractor, "kid", "kd")
                found[name] = self._kernel(alias, samples, reference, errors)
            elif metric == "is":
                name, alias = _names(extractor, "is", "is")
                found[name] = self._inception(alias, samples)
            elif metric == "accuracy":
                found[metric] = _accuracy(samples, asked)
            else:
                found |= dict(self._manifold(extractor, samples, reference, errors))
        return found

    def _frechet(
        self, extractor: FeatureExtractor, samples: Features, reference: Statistics, errors: bool
    ) -> Score:
        value = frechet_distance(Statistics.of(samples.features), reference)
        error = None
        if errors and len(samples) >= 2 * BLOCKS:
            error = frechet_spread(samples.features, reference, seed=self.seed)
        return Score(value, extractor.alias, True, error)

    def _kernel(self, alias: str, samples: Features, reference: Features, errors: bool) -> Score:
        sets = samples.features, reference.features
        mean, std = kid(*sets, subset_size=self.subset_size, seed=self.seed)
        error = None
        if errors and len(samples) >= 2 * BLOCKS:
            error = kid_error(*sets, std, seed=self.seed)
        # One subset of all samples, time and again: what is left is the choice of real images.
        spread = std if self.subset_size < len(samples) else None
        settings = {"subset_size": self.subset_size, "subsets": SUBSETS}
        return Score(mean, alias, True, error, spread, settings)

    def _inception(self, alias: str, samples: Features) -> Score:
        assert samples.logits is not None
        mean, std = inception_score(samples.logits, self.splits, seed=self.seed)
        # A mean over disjoint parts: the jackknife that leaves out each in turn says just this.
        error = std / (self.splits - 1) ** 0.5 if self.splits > 1 else None
        return Score(mean, alias, False, error, std, {"splits": self.splits})

    def _manifold(
        self, extractor: FeatureExtractor, samples: Features, reference: Features, errors: bool
    ) -> Iterator[tuple[str, Score]]:
        # As many real images as samples: the published way, and a cost of n², not n·N. Always
        # the same ones, so that two sets of samples are held against the same.
        real = reference.features[shuffled(len(reference), 0)[: len(samples)]]
        for k, shares in (
            (self.near, ("precision", "recall")),
            (self.far, ("density", "coverage")),
        ):
            found = manifold(samples.features, real, k, errors, self.seed)
            settings = {"k": k, "real_images": len(real)}
            for share in shares:
                name, alias = _names(extractor, share, share)
                value, error = found[share]
                error = error if errors else None
                yield name, Score(value, alias, False, error, settings=settings)


def check_accuracy(extractor: FeatureExtractor, data: object, asked: Tensor | None) -> None:
    """Refuse an accuracy that would mean nothing, before anything is computed.

    Args:
        extractor: Whose classifier judges.
        data: The data set whose classes are asked for.
        asked: int64 [n] classes that samples are asked to be of; None: there are none.

    Raises:
        InputError: No classes are asked for, "no class" is, or the extractor does not know them.
    """
    kind, name = type(extractor).__name__, type(data).__name__
    if asked is None:
        raise InputError(
            "accuracy compares with the classes that were asked for, and the model takes no "
            "labels; train one with --model.conditional true, or leave it out of metrics"
        )
    if not extractor.knows_classes_of(data):
        known = ", ".join(extractor.knows) or "no data set's"
        raise InputError(
            f"accuracy: {kind} tells the classes of {known} apart, not those of {name}; leave it "
            "out of metrics, or give an extractor of your own that states them (knows)"
        )
    low, high = int(asked.min()), int(asked.max())
    if low < 0 or high >= (extractor.classes or 0):
        raise InputError(
            f"accuracy: label {low if low < 0 else high} is asked for, which is none of {kind}'s "
            f"{extractor.classes} classes; ask for others (--labels)"
        )


def _accuracy(samples: Features, asked: Tensor | None) -> Score:
    assert samples.logits is not None
    assert asked is not None
    share = float((samples.logits.argmax(1) == asked).double().mean())
    return Score(share, "accuracy", False, binomial(share, len(asked)).error)


def _names(extractor: FeatureExtractor, published: str, other: str) -> tuple[str, str]:
    """Name and alias: as publications do if the features are Inception's, else by the network."""
    if extractor.name == "fid":
        return published, published
    return f"{other}_{extractor.name.removeprefix('fd').strip('_')}", other
