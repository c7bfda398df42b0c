"""All metrics from one set of cached features, each beside what real images reach."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import cast, get_args

import torch
from torch import Tensor

from ddpm_lightning.errors import InputError
from ddpm_lightning.metrics import FeatureExtractor
from ddpm_lightning.metrics.cached import Features
from ddpm_lightning.metrics.extrapolation import LEAST, extrapolated_frechet, frechet_spread
from ddpm_lightning.metrics.frechet import Statistics
from ddpm_lightning.metrics.measure import Measures, Metric

FEATURE_METRICS = (*get_args(Metric), "fd_inf", "accuracy")
"""What is computed from features; ``bpd`` needs the model itself."""

SMALLER_IS_BETTER = ("fid", "fd", "kid", "kd", "bpd", "npd")
"""First words of such names; for all others, larger is better."""


@dataclass(frozen=True)
class Score:
    """One number, how sure it is, and what real images reach.

    Attributes:
        value: The metric.
        error: Its standard error (of ``is`` and ``kid``: the published standard deviation over
            splits or subsets); None where none is known.
        floor: The same metric of as many real images, held against the others.
    """

    value: float
    error: float | None = None
    floor: float | None = None


def check_metrics(
    metrics: Sequence[str], extractor: FeatureExtractor, n: int, reference_n: int
) -> None:
    """Refuse what cannot be measured, before anything is computed.

    Raises:
        InputError: Too few images for a metric, or the extractor knows no classes.
    """
    for name in metrics:
        if name in get_args(Metric):
            measures = Measures((cast(Metric, name),), min(1000, n, reference_n))
            measures.check(extractor, n, reference_n)
        elif name == "fd_inf" and n < LEAST:
            raise InputError(f"fd_inf needs {LEAST} or more samples, not {n}")
        elif name == "accuracy" and extractor.classes is None:
            raise InputError(
                f"accuracy needs a classifier, and {type(extractor).__name__} knows no classes; "
                "use LeNet for digits (--extractor)"
            )


def feature_scores(
    metrics: Sequence[str],
    extractor: FeatureExtractor,
    samples: Features,
    reference: Features,
    asked: Tensor | None = None,
    real_labels: Tensor | None = None,
    seed: int = 0,
) -> dict[str, Score]:
    """Compute metrics from features.

    Args:
        metrics: Names out of FEATURE_METRICS.
        extractor: Whose features they are.
        samples: Features of the samples.
        reference: Features of the real images.
        asked: int64 [n] classes that the samples were asked to be of, for ``accuracy``.
        real_labels: int64 [N] classes of the real images, for the floor of ``accuracy``.
        seed: Seed of the cuts behind ``fd_inf`` and the standard errors.

    Returns:
        A score each, under the names of GenerativeMetrics: ``fid`` or ``fd_lenet``, …

    Raises:
        InputError: Too few samples for a metric, or the extractor knows no classes.
    """
    ours = _scores(metrics, extractor, samples, reference, asked, seed)
    # As many real images against all the others, at most half: the floor that samples could reach.
    order = torch.randperm(len(reference), generator=torch.Generator().manual_seed(0))
    count = min(len(samples), len(order) // 2)
    part, rest = reference[order[:count]], reference[order[count:]]
    labels = None if real_labels is None else real_labels[order[:count]]
    floors: dict[str, Score] = {}
    for name in metrics:
        with suppress(InputError):  # too few real images, or without classes: no floor
            check_metrics([name], extractor, len(part), len(rest))
            floors |= _scores([name], extractor, part, rest, labels, seed, errors=False)
    return {
        name: replace(score, floor=floors[name].value if name in floors else None)
        for name, score in ours.items()
    }


def _scores(
    metrics: Sequence[str],
    extractor: FeatureExtractor,
    a: Features,
    b: Features,
    labels: Tensor | None,
    seed: int,
    errors: bool = True,
) -> dict[str, Score]:
    scores: dict[str, Score] = {}
    subset = min(1000, len(a), len(b))  # 1,000 as published, or as many as there are
    statistics = Statistics.of(b.features)
    for name in metrics:
        if name == "fd_inf":
            limit = extrapolated_frechet(a.features, statistics, seed)
            scores[f"{extractor.name}_inf"] = Score(limit.value, limit.spread)
        elif name == "accuracy":
            scores[name] = _accuracy(a, labels)
        else:
            measures = Measures((cast(Metric, name),), subset)
            for found in measures(extractor, a, b, statistics):
                error = found.spread
                if name == "fd" and errors:
                    error = frechet_spread(a.features, statistics, seed=seed)
                scores[found.name] = Score(found.value, error)
    return scores


def _accuracy(samples: Features, labels: Tensor | None) -> Score:
    """Share of images that the classifier takes for the asked class, with its standard error."""
    assert samples.logits is not None
    if labels is None:
        raise InputError(
            "accuracy compares with the classes that were asked for, and there are none; it needs "
            "a checkpoint with labels (conditional: true)"
        )
    if int(labels.max()) >= samples.logits.shape[1]:
        raise InputError(
            f"accuracy: class {int(labels.max())} is asked for, but the extractor knows "
            f"{samples.logits.shape[1]} classes"
        )
    share = float((samples.logits.argmax(1) == labels).double().mean())
    return Score(share, (share * (1 - share) / len(labels)) ** 0.5)
