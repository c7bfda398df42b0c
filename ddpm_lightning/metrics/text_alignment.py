"""Text alignment: the share of samples of Shapes that show what their captions say."""

from __future__ import annotations

import hashlib
import inspect

import torch
from torch import Tensor, nn
from typing_extensions import override

from ddpm_lightning.data import shape_reader
from ddpm_lightning.data.compositions import COMPOSITIONS
from ddpm_lightning.data.shapes import SIDE
from ddpm_lightning.errors import InputError
from ddpm_lightning.metrics.features import FeatureExtractor
from ddpm_lightning.metrics.jackknife import binomial_error, means_left_out
from ddpm_lightning.metrics.metric import Comparison, Metric, Score

ATTRIBUTES = ("count", "colour", "shape", "size", "position")


class ShapeReader(FeatureExtractor):
    """The reader of Shapes: number, colours, shapes, sizes and places of what a picture shows.

    It has no weights; its digest is that of its code.
    """

    name = "fd_shapes"
    alias = "fd"
    dim = 1 + shape_reader.MOST_THINGS * shape_reader.NUMBERS
    channels = (3,)
    min_size = SIDE
    knows = ("Shapes",)

    @override
    def load(self) -> tuple[nn.Module, str]:
        code = inspect.getsource(shape_reader).encode()
        return nn.Identity(), hashlib.sha256(code).hexdigest()

    @override
    def features(self, images: Tensor) -> Tensor:
        return shape_reader.read_pictures(images)


class TextAlignment(Metric):
    """Shares of samples of Shapes that show what they were asked for, by the reader.

    ``alignment`` is the share in which everything is right. Its parts, ``alignment_count``,
    ``_colour``, ``_shape``, ``_size`` and ``_position``, are shares of the samples whose caption
    says something of it; of another number of things than asked for, all are wrong.
    """

    name = "alignment"
    needs_pairs = False
    needs_labels = True

    @override
    def check(self, extractor: FeatureExtractor | None, n: int, real_n: int | None = None) -> None:
        super().check(extractor, n, real_n)
        if not isinstance(extractor, ShapeReader):
            raise InputError(
                "alignment reads pictures of Shapes; give --extractor ShapeReader (in training "
                "--metrics.extractor ShapeReader), or leave it out of metrics"
            )

    @override
    def check_labels(
        self, extractor: FeatureExtractor | None, data: object, labels: Tensor | None
    ) -> None:
        if labels is None:
            raise InputError(
                "alignment compares with the captions that were asked for, and the model takes no "
                "text; train one with --model.text VocabularyEncoder, or leave it out of metrics"
            )
        assert extractor is not None
        if not extractor.knows_classes_of(data):
            raise InputError(
                f"alignment reads pictures of Shapes, not of {type(data).__name__}; leave it out "
                "of metrics"
            )
        if bool((labels < 0).any()):
            raise InputError(
                "alignment: a prompt is none of the captions of Shapes, which are like 'a red "
                "ring' and 'a small red ring left of a large blue square'; change it (--prompt)"
            )

    @override
    def __call__(self, sets: Comparison) -> dict[str, Score]:
        assert sets.labels is not None
        pairs = zip(sets.samples.features, sets.labels.tolist(), strict=True)
        found = [shape_reader.agreement(reading, COMPOSITIONS[label]) for reading, label in pairs]
        right = torch.tensor([all(one[name] is not False for name in ATTRIBUTES) for one in found])
        left_out = means_left_out(right, sets.seed) if sets.errors and len(right) > 1 else None
        scores = {self.name: _share(right, left_out)}
        for name in ATTRIBUTES:
            stated = [one[name] for one in found if one[name] is not None]
            if stated:
                scores[f"{self.name}_{name}"] = _share(torch.tensor(stated))
        return scores

    @override
    def names(self, score: str, extractor: FeatureExtractor | None) -> tuple[str, str]:
        return score, score


def _share(right: Tensor, left_out: list[float] | None = None) -> Score:
    """The share of what is right, bool [n]."""
    share = float(right.double().mean())
    error = binomial_error(share, len(right))
    settings = {"of": len(right)}
    return Score(share, error, settings=settings, smaller_is_better=False, left_out=left_out)
