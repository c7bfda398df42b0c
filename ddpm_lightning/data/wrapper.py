"""Data around data: a data module that changes one thing of the one inside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor
from typing_extensions import override

from ddpm_lightning.batch import Batch, Condition
from ddpm_lightning.data.data_module import DiffusionData, RawBatch, Source, Split
from ddpm_lightning.data.image_set import ImageSet, StoredImages
from ddpm_lightning.errors import InputError


class DataWrapper(DiffusionData):
    """Base class of data around data: all is as in the data inside but what a subclass overrides.

    A subclass whose x0 are images is an ImageSet, too: ``class Captioned(DataWrapper, ImageSet)``.

    Args:
        data: The images inside, with the batch size, seed and other settings.
    """

    data_range = ImageSet.data_range

    def __init__(self, data: ImageSet) -> None:
        super().__init__(data.global_batch_size, data.predict_n, data.seed, data.flip)
        self.data = data
        self.num_classes = data.num_classes
        self.crop_draws = data.crop_draws
        self.places = data.places

    @property
    @override
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    @override
    def texts(self) -> Sequence[str]:
        return self.data.texts

    @override
    def captions(self, split: Split) -> Sequence[str] | None:
        return self.data.captions(split)

    def images(self, split: Split) -> tuple[Tensor | StoredImages, Tensor]:
        """Return the images and labels of a split, as ImageSet says."""
        return self.data.images(split)

    @override
    def source(self, split: Split) -> Source:
        return self.data.source(split)

    @override
    def finish(self, raw: RawBatch) -> Batch:
        return self.data.finish(raw)

    @override
    def shown(self, condition: Condition) -> Tensor | None:
        return self.data.shown(condition)

    @override
    def prepare_data(self) -> None:
        # For the time of the call alone, because what the data needs of a trainer is its stage.
        self.data.trainer = self.trainer
        try:
            self.data.prepare_data()
        finally:
            self.data.trainer = None


def layers(data: Any) -> Iterator[Any]:
    """Yield a data module and those inside it, from the outside in; of another object itself."""
    yield data
    if isinstance(data, DataWrapper):
        yield from layers(data.data)


def innermost(data: Any) -> Any:
    """The data module inside all wrappers; any other object itself."""
    return [*layers(data)][-1]


def set_place(description: dict[str, Any], name: str, value: str) -> None:
    """Set an argument of a described data module, of the outermost layer that takes it.

    Args:
        description: The data module as plain data, which is changed.
        name: The argument, e.g. root.
        value: The file or folder.

    Raises:
        InputError: No layer takes it.
    """
    layer = description
    while name not in layer["init_args"]:
        inner = layer["init_args"].get("data")
        if not (isinstance(inner, dict) and "init_args" in inner):
            raise InputError(f"{layer['class_path']} takes no {name}; leave out --data.{name}")
        layer = inner
    layer["init_args"][name] = value
