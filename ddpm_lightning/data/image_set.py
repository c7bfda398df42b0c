"""Base class of data modules of images, and what evaluation reads of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ddpm_lightning.batch import Batch, Condition
from ddpm_lightning.data.data_module import DiffusionData, RawBatch, Source, Split
from ddpm_lightning.data.stream import Indices, Purpose, permutation
from ddpm_lightning.errors import InputError
from ddpm_lightning.images import from_uint8


class StoredSource(Source, Protocol):
    """A split of images that are read as they are needed."""

    @property
    def shape(self) -> tuple[int, ...]:
        """[C, H, W] of every image."""

    def read(self, places: Sequence[int]) -> Tensor:
        """Read some images in this process: uint8 [B, C, H, W]."""


class StoredImages:
    """The images of a split, read as they are needed; used like a UniformFolder."""

    def __init__(self, source: StoredSource) -> None:
        self.source = source
        self.files = range(len(source))

    def __len__(self) -> int:
        return len(self.source)

    @property
    def shape(self) -> tuple[int, ...]:
        """[C, H, W] of every image."""
        return self.source.shape

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """Read all images, uint8 [B, C, H, W] at a time."""
        return self.taken(np.split(np.arange(len(self)), range(batch_size, len(self), batch_size)))

    def taken(self, chunks: Iterable[Indices]) -> Iterator[Tensor]:
        """Read some images ahead, by arrays of their places: uint8 [B, C, H, W] at a time."""
        return (images for images, _ in self.source.batches(chunks))

    def read(self, files: Sequence[int]) -> Tensor:
        """Read some images, by their places: uint8 [B, C, H, W]."""
        return self.source.read(files)


class ImageSet(DiffusionData):
    """A data set of images: x0 is float32 [B, C, H, W] in [−1, 1]."""

    data_range = (-1.0, 1.0)

    @abstractmethod
    def images(self, split: Split) -> tuple[Tensor | StoredImages, Tensor]:
        """Return images uint8 [N, C, H, W] and labels int64 [N] of a split; do not modify them.

        They are as evaluation compares them: never mirrored or cropped at random.
        """


def finish_images(raw: RawBatch) -> Batch:
    """Mirror and normalise images of 0…255: x0 float32 [B, C, H, W] in [−1, 1]."""
    images = raw.samples
    if raw.flip is not None:
        images = torch.where(raw.flip[:, None, None, None], images.flip(-1), images)
    return Batch(from_uint8(images), Condition(raw.labels), raw.index, raw.row)


def chosen(subset: int | float, n: int, seed: int, owner: str) -> Indices:
    """Choose a fixed random subset of n training images: their places, in order.

    Args:
        subset: A share in (0, 1.0], or a number of images.
        n: Number of training images.
        seed: Of the choice.
        owner: Name of the data set, for the message.

    Raises:
        InputError: There are fewer images.
    """
    size = subset if isinstance(subset, int) else max(1, round(subset * n))
    if size > n:
        raise InputError(
            f"subset {size} is more than the {n} training images of {owner}; use less, or 1.0 "
            "for all (--data.subset)"
        )
    return np.sort(permutation(seed, n, 0, Purpose.SUBSET)[:size])


def check_subset(subset: int | float) -> None:
    """Raise InputError unless it is a share in (0, 1.0] or a number of images."""
    if not (subset >= 1 if isinstance(subset, int) else 0 < subset <= 1):
        raise InputError(
            f"subset {subset} is neither a share above 0 and up to 1.0 nor a whole number of "
            "images; use e.g. 0.2 or 5000 (--data.subset)"
        )
