"""Captions for data with classes: what is seen in an image of each."""

from __future__ import annotations

from collections.abc import Sequence

from typing_extensions import override

from ddpm_lightning.data.data_module import Split
from ddpm_lightning.data.image_set import ImageSet
from ddpm_lightning.data.wrapper import DataWrapper
from ddpm_lightning.errors import InputError


class Captioned(DataWrapper, ImageSet):
    """Images of classes with a caption for each class, e.g. "a handwritten seven".

    Args:
        data: The images, with the batch size, seed and other settings.
        captions: The caption of each class, in the order of the labels.
    """

    def __init__(self, data: ImageSet, captions: Sequence[str]) -> None:
        super().__init__(data)
        self._captions = list(captions)
        if len(self._captions) != (self.num_classes or 0):
            raise InputError(
                f"{len(self._captions)} captions for {type(data).__name__} of "
                f"{self.num_classes or 'no'} classes; give one a class, in their order "
                "(--data.captions)"
            )

    @property
    @override
    def texts(self) -> Sequence[str]:
        return self._captions

    @override
    def captions(self, split: Split) -> list[str]:
        return [self._captions[label] for label in self.images(split)[1].tolist()]
