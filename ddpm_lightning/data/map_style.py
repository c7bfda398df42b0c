"""Images larger than memory: map-style data sets, prefetched by worker processes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from ddpm_lightning.batch import Batch, DataSpec
from ddpm_lightning.data.data_module import RawBatch, Split
from ddpm_lightning.data.image_set import ImageSet, StoredImages, finish_images
from ddpm_lightning.data.stream import Indices
from ddpm_lightning.errors import InputError


@dataclass(frozen=True, eq=False)
class MapStyle:
    """A split read item by item, by worker processes: image uint8 [C, H, W] and label each."""

    dataset: Dataset[Any]
    spec: DataSpec
    workers: int

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def batches(self, indices: Iterable[Indices]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield samples and labels for each array of indices, in order; refuse wrong items."""
        loader = DataLoader(
            self.dataset,
            batch_sampler=(index.tolist() for index in indices),
            num_workers=self.workers,
            collate_fn=_collate,
        )
        wanted, top = f"torch.uint8 {list(self.spec.shape)}", (self.spec.num_classes or 1) - 1
        for images, labels in loader:
            found = f"{images.dtype} {list(images.shape[1:])}"
            low, high = int(labels.min()), int(labels.max())
            if found != wanted or low < 0 or high > top:
                raise InputError(
                    f"{type(self.dataset).__name__} gives images {found} with labels "
                    f"{low}…{high}; give {wanted} with 0…{top}, as the data module says"
                )
            yield images, labels

    @property
    def shape(self) -> tuple[int, ...]:
        """[C, H, W] of every image."""
        return self.spec.shape

    def read(self, places: Sequence[int]) -> Tensor:
        """Read some images in this process: uint8 [B, C, H, W]."""
        return torch.stack([self.dataset[place][0] for place in places])


class MapStyleImages(ImageSet):
    """Images that need not fit into memory.

    A subclass defines ``shape``, ``num_classes`` and ``dataset``, whose items must depend on
    their index alone. Order and flips are those of a data set in memory, for any number of
    workers.

    Args:
        global_batch_size: Images per optimizer step = processes × accumulation × per device.
        predict_n: Number of images that `predict` samples.
        seed: Seed of order and flips; None: the run's.
        flip: Mirror half of the training images left to right, at random.
        workers: Number of worker processes; 0 reads in the main one.
    """

    def __init__(
        self,
        global_batch_size: int = 128,
        predict_n: int = 64,
        seed: int | None = None,
        flip: bool = False,
        workers: int = 2,
    ) -> None:
        super().__init__(global_batch_size, predict_n, seed, flip)
        self.workers = workers
        self._sources: dict[Split, MapStyle] = {}
        self._labels: dict[Split, Tensor] = {}

    @abstractmethod
    def dataset(self, split: Split) -> Dataset[Any]:
        """Open a split: ``dataset[i]`` is an image uint8 [C, H, W] and its label, an int."""

    @override
    def source(self, split: Split) -> MapStyle:
        if split not in self._sources:
            self._sources[split] = MapStyle(self.dataset(split), self.spec, self.workers)
        return self._sources[split]

    @override
    def images(self, split: Split) -> tuple[StoredImages, Tensor]:
        source = self.source(split)
        if split not in self._labels:
            chunks = np.split(np.arange(len(source)), range(256, len(source), 256))
            self._labels[split] = torch.cat([labels for _, labels in source.batches(chunks)])
        return StoredImages(source), self._labels[split]

    @override
    def finish(self, raw: RawBatch) -> Batch:
        return finish_images(raw)


def _collate(items: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    images, labels = zip(*items, strict=True)
    return torch.stack(images), torch.tensor(labels, dtype=torch.int64)
