"""The Inception score: a classifier is sure of each sample, and of a different class each time."""

from __future__ import annotations

import math

from torch import Tensor
from typing_extensions import override

from ddpm_lightning.errors import InputError, at_least
from ddpm_lightning.metrics.metric import Comparison, Metric, Score
from ddpm_lightning.metrics.statistics import check_features


class InceptionScore(Metric):
    """The Inception score of the extractor's classifier; the data take no part in it.

    Args:
        splits: Equal parts of the samples that are scored one by one; publications use 10 of
            50000 samples.
    """

    name = "is"
    needs_logits = True
    needs_pairs = False

    def __init__(self, splits: int = 10) -> None:
        at_least(1, self, splits=splits)
        self.splits = splits
        self.least = max(2, splits)

    @override
    def __call__(self, sets: Comparison) -> dict[str, Score]:
        assert sets.samples.logits is not None
        mean, std = inception_score(sets.samples.logits, self.splits, sets.seed)
        # A mean over disjoint parts: the jackknife that leaves out each in turn says just this.
        error = std / (self.splits - 1) ** 0.5 if self.splits > 1 else None
        settings = {"splits": self.splits}
        return {self.name: Score(mean, error, std, settings, smaller_is_better=False)}


def inception_score(logits: Tensor, splits: int = 10, seed: int | None = 0) -> tuple[float, float]:
    """The Inception score, exp of the mean over samples of KL(p(y|x) ‖ p(y)), and its deviation.

    From 1 (the classifier cannot tell samples apart) to the number of classes; by torch-fidelity,
    in float64, mean and standard deviation over splits of logits [n, K] (Salimans et al. 2016,
    sec. 4). The seed shuffles before splitting, for samples may come a class after the other;
    None: not.

    Raises InputError: Fewer samples than parts, or logits that are not finite.

    Source: Salimans et al. (2016), sec. 4.
    """
    check_features(logits, least=splits, metric=f"the Inception score in {splits} splits")
    from torch_fidelity.metric_isc import isc_features_to_metric

    shuffle = seed is not None
    found = isc_features_to_metric(logits, splits, shuffle, (seed or 0) % 2**32)
    mean, std = found["inception_score_mean"], found["inception_score_std"]
    if not math.isfinite(mean):
        raise InputError(
            "the Inception score is not finite: the logits are hundreds apart; let the classifier "
            "divide them by a temperature"
        )
    return mean, std
