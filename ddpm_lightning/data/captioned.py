"""Captions for data with classes: what is seen in an image of each."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from typing_extensions import override

from ddpm_lightning.batch import Batch
from ddpm_lightning.data.data_module import RawBatch, Source, Split
from ddpm_lightning.data.image_set import ImageSet, StoredImages
from ddpm_lightning.errors import InputError


class Captioned(ImageSet):
    """Images of classes with a caption for each class, e.g. "a handwritten seven".

    Args:
        data: The images, with the batch size, seed and other settings.
        captions: The caption of each class, in the order of the labels.
    """

    def __init__(self, data: ImageSet, captions: Sequence[str]) -> None:
        super().__init__(data.global_batch_size, data.predict_n, data.seed, data.flip)
        self.data = data
        self._captions = list(captions)
        self.num_classes = data.num_classes
        self.crop_draws = data.crop_draws
        self.places = data.places
        if len(self._captions) != (self.num_classes or 0):
            raise InputError(
                f"{len(self._captions)} captions for {type(data).__name__} of "
                f"{self.num_classes or 'no'} classes; give one a class, in their order "
                "(--data.captions)"
            )

    @property
    @override
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    @override
    def texts(self) -> Sequence[str]:
        return self._captions

    @override
    def captions(self, split: Split) -> list[str]:
        return [self._captions[label] for label in self.images(split)[1].tolist()]

    @override
    def images(self, split: Split) -> tuple[Tensor | StoredImages, Tensor]:
        return self.data.images(split)

    @override
    def source(self, split: Split) -> Source:
        return self.data.source(split)

    @override
    def finish(self, raw: RawBatch) -> Batch:
        return self.data.finish(raw)

    @override
    def prepare_data(self) -> None:
        # For the time of the call alone, because what the data needs of a trainer is its stage.
        self.data.trainer = self.trainer
        try:
            self.data.prepare_data()
        finally:
            self.data.trainer = None


def without_captions(data: object) -> object:
    """The data module inside a Captioned one; any other itself."""
    return data.data if isinstance(data, Captioned) else data
