"""Metric: how close samples are to real data, computed from the features of both."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from inspect import isabstract
from typing import Any, ClassVar

from torch import Tensor

from ddpm_lightning.configurable import Configurable, configurable_class
from ddpm_lightning.errors import InputError
from ddpm_lightning.imports import missing_methods
from ddpm_lightning.metrics.features import FeatureExtractor, Features


@dataclass(frozen=True)
class Floor:
    """The value of real data: n of them in place of samples, compared with ``reference_n`` others.

    Samples of that value differ from the data about as much as the data from itself.
    """

    value: float
    n: int
    reference_n: int


@dataclass(frozen=True)
class Score:
    """One number of a metric.

    Attributes:
        value: The number.
        standard_error: Over draws of the samples, the reference as it is; None: not known, as
            that of one sample, for which a number that is not finite is taken.
        spread: A published standard deviation: of ``kid`` over subsets, of ``is`` over splits.
        settings: What else decides about the number, as plain data.
        parts: What it is made of, as plain data.
        smaller_is_better: Whether a smaller number is the better one.
        floor: What real data reach; None: not known.
        alias: Its stable name for ``monitor:``, filled in by Measures.
        left_out: The number without each of the blocks of samples in turn that ``shuffled`` gives
            for the seed, for the error of a difference of two numbers; None: not known.
    """

    value: float
    standard_error: float | None = None
    spread: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, Any] | None = None
    smaller_is_better: bool = True
    floor: Floor | None = None
    alias: str = ""
    left_out: list[float] | None = None

    def __post_init__(self) -> None:
        if self.standard_error is not None and not math.isfinite(self.standard_error):
            object.__setattr__(self, "standard_error", None)
        if self.left_out is not None and not all(map(math.isfinite, self.left_out)):
            object.__setattr__(self, "left_out", None)


@dataclass(frozen=True, eq=False)
class Comparison:
    """What a metric is computed from.

    ``real`` has only ``statistics`` unless the metric needs pairs; labels int64 [n] are the
    classes that the samples were asked to be of; the seed is that of subsets, splits and blocks.
    """

    samples: Features
    real: Features
    labels: Tensor | None = None
    seed: int = 0
    errors: bool = True


class Metric(Configurable, ABC):
    """Numbers that say how close samples are to real data, computed from the features of both.

    One of your own defines a call, and states what it needs.

    Attributes:
        name: Short name; by default the name of the class in small letters.
        needs_logits: It reads ``logits``, which not every extractor gives.
        needs_pairs: It reads the features of real data one by one, not their statistics alone.
        needs_labels: It reads the classes that samples were asked to be of.
        of_points: It compares points in the plane themselves, not features of images.
        least: The smallest number of samples.
        least_real: The smallest number of real data.
    """

    name: ClassVar[str]
    needs_logits: ClassVar[bool] = False
    needs_pairs: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False
    of_points: ClassVar[bool] = False
    least: int = 2
    least_real: int = 2

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" not in vars(cls):
            cls.name = cls.__name__.lower()

    @abstractmethod
    def __call__(self, sets: Comparison) -> dict[str, Score]:
        """Compute the scores by name: one called as the metric, or several of other names."""

    def check(self, extractor: FeatureExtractor | None, n: int, real_n: int | None = None) -> None:
        """Raise InputError where n samples, real_n real data or the extractor do not fit."""
        if self.of_points and extractor is not None:
            raise InputError(
                f"{self.name} compares points, not features of images; leave it out of metrics"
            )
        if self.needs_logits and (extractor is None or extractor.classes is None):
            raise InputError(
                f"{self.name} needs a classifier, and {type(extractor).__name__} gives no logits; "
                "use LeNet for digits, ColourNet or Inception for photos, or leave it out of "
                "metrics"
            )
        for what, count, least in (
            ("samples", n, self.least),
            ("real data", real_n, self.least_real),
        ):
            if count is not None and count < least:
                raise InputError(f"{self.name} needs {least} or more {what}, not {count}")

    def check_labels(
        self, extractor: FeatureExtractor | None, data: object, labels: Tensor | None
    ) -> None:
        """Raise InputError where the samples' labels int64 [n], of this data, do not fit."""
        if self.needs_labels and labels is None:
            raise InputError(
                f"{self.name} compares with the classes that were asked for, and the model takes "
                "no labels; train one with --model.conditional true, or leave it out of metrics"
            )

    def fitted(self, n: int) -> Metric:
        """The metric with settings for as few as n samples or real data, if it has such."""
        return self

    def names(self, score: str, extractor: FeatureExtractor | None) -> tuple[str, str]:
        """Name a score by what was measured, and give its alias: ``is_lenet`` and ``is``."""
        if extractor is None or extractor.name == "fid":
            return score, score
        return f"{score}_{extractor.name.removeprefix('fd').strip('_')}", score


class NoScoresError(InputError):
    """A metric returned something other than scores by name."""


def check_scores(metric: Metric, found: object) -> None:
    """Raise NoScoresError unless a metric has returned scores by name, each of a number."""
    wrong = [found]
    if isinstance(found, dict):
        wrong = [one for one in found.values() if not isinstance(one, Score)] or [
            one.value for one in found.values() if not isinstance(one.value, float | int)
        ]
    if wrong or not found:
        kinds = ", ".join(sorted({type(one).__name__ for one in wrong})) or "nothing"
        raise NoScoresError(
            f"{type(metric).class_path()} returned {kinds}; a metric's __call__ returns "
            "{self.name: Score(float(value))}, with Score of ddpm_lightning.metrics"
        )


def as_metrics(metrics: str | Sequence[Metric | str]) -> list[Metric]:
    """Find metrics by short names, class names or class paths; metrics themselves pass through.

    Raises InputError: There is no such metric, it has arguments without a default, or none is
    named.
    """
    words = metric_words(metrics)
    try:
        found = [_named(word) if isinstance(word, str) else word for word in words]
    except InputError as error:
        raise InputError(f"metrics: {error}") from error
    if not found or len({metric.name for metric in found}) < len(found):
        names = ", ".join(metric.name for metric in found)
        raise InputError(f"metrics {names or 'of no name'}: name one or more, each once")
    return found


def metric_words(metrics: str | Sequence[Metric | str]) -> list[Metric | str]:
    """Split metrics that may be named in a list or separated by commas."""
    parts = metrics.split(",") if isinstance(metrics, str) else metrics
    words = [part.strip() if isinstance(part, str) else part for part in parts]
    return [word for word in words if word != ""]


def _named(name: str) -> Metric:
    known = _known()
    classes = {cls.__name__: cls for cls in known.values()} | known
    cls: Any = configurable_class(name) if "." in name else classes.get(name)
    if cls is None:
        close = get_close_matches(name, classes, n=1, cutoff=0.6)
        meant = f"; did you mean {close[0]}?" if close else ""
        raise InputError(
            f"no metric '{name}'{meant}; there are {', '.join(sorted(known))}, "
            "and classes of your own by their path (my_metric.Sharpness)"
        )
    if not issubclass(cls, Metric):
        raise InputError(f"{name} is no metric")
    if isabstract(cls):
        raise InputError(missing_methods(name, cls))
    try:
        return cls()
    except TypeError as error:
        raise InputError(
            f"{name} needs settings, {{class_path: {name}, init_args: …}}: {error}"
        ) from error


def _known() -> dict[str, type[Metric]]:
    """The metrics that were imported, by short name."""
    found: dict[str, type[Metric]] = {}
    remaining: list[Any] = [Metric]
    for cls in remaining:
        remaining += cls.__subclasses__()
        if not isabstract(cls):
            found[cls.name] = cls
    return found
