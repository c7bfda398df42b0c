"""Data sets that fit in memory."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from typing_extensions import override

from ddpm_lightning.data.data_module import DiffusionData, Split
from ddpm_lightning.data.stream import Indices


class Tensors:
    """A split in memory.

    Args:
        samples: [N, ...] as stored, e.g. uint8 images.
        labels: int64 [N].
    """

    def __init__(self, samples: Tensor, labels: Tensor) -> None:
        self.samples = samples
        self.labels = labels

    def __len__(self) -> int:
        return len(self.samples)

    def batches(self, indices: Iterable[Indices]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield samples and labels for each array of indices."""
        for index in indices:
            rows = torch.from_numpy(index)
            # index_select, because it copies whole rows, many times faster than samples[rows].
            yield self.samples.index_select(0, rows), self.labels[rows]


class InMemoryData(DiffusionData):
    """A data set that fits in memory; arguments as for DiffusionData."""

    @abstractmethod
    def samples(self, split: Split) -> tuple[Tensor, Tensor]:
        """Return a split, never mirrored: samples [N, ...] and labels int64 [N]."""

    @override
    def source(self, split: Split) -> Tensors:
        return Tensors(*self.samples(split))
