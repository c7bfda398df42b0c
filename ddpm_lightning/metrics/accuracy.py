"""The share of samples that a classifier takes for the class that was asked for."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from ddpm_lightning.errors import InputError
from ddpm_lightning.metrics.features import FeatureExtractor
from ddpm_lightning.metrics.jackknife import binomial_error, means_left_out
from ddpm_lightning.metrics.metric import Comparison, Metric, Score


class Accuracy(Metric):
    """Share of samples that the extractor's classifier takes for the class asked for.

    Only of data whose classes the extractor knows.
    """

    name = "accuracy"
    needs_logits = True
    needs_pairs = False
    needs_labels = True

    @override
    def check_labels(
        self, extractor: FeatureExtractor | None, data: object, labels: Tensor | None
    ) -> None:
        super().check_labels(extractor, data, labels)
        assert extractor is not None
        assert labels is not None
        kind, name = type(extractor).__name__, type(data).__name__
        if not extractor.knows_classes_of(data):
            known = ", ".join(extractor.knows) or "no data set's"
            raise InputError(
                f"accuracy: {kind} tells the classes of {known} apart, not those of {name}; leave "
                "it out of metrics, or give an extractor of your own that states them (knows)"
            )
        unknown = labels[(labels < 0) | (labels >= (extractor.classes or 0))]
        if len(unknown):
            raise InputError(
                f"accuracy: label {int(unknown[0])} is asked for, which is none of "
                f"{kind}'s {extractor.classes} classes; ask for others (--labels)"
            )

    @override
    def __call__(self, sets: Comparison) -> dict[str, Score]:
        assert sets.samples.logits is not None
        assert sets.labels is not None
        right = sets.samples.logits.argmax(1) == sets.labels
        share = float(right.double().mean())
        error = binomial_error(share, len(right))
        left_out = means_left_out(right, sets.seed) if sets.errors and len(right) > 1 else None
        return {self.name: Score(share, error, smaller_is_better=False, left_out=left_out)}

    @override
    def names(self, score: str, extractor: FeatureExtractor | None) -> tuple[str, str]:
        return score, score
