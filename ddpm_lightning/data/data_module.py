"""Base class of the data modules: sources of samples, loaders, and batches on the device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from itertools import tee
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.trainer.states import TrainerStatus
from torch import Tensor

from ddpm_lightning.batch import Batch, Condition, DataSpec
from ddpm_lightning.configurable import Configurable
from ddpm_lightning.data.stream import EvaluationLoader, Indices, Layout, Places, TrainingStream
from ddpm_lightning.errors import InputError

Split = Literal["train", "val", "test"]


class RawBatch(NamedTuple):
    """A batch as loaded, to be finished on the device, where it becomes a :class:`Batch`.

    Attributes:
        samples: [B, ...] as stored, e.g. uint8 images.
        labels: int64 [B].
        index: int64 [B] indices in the split.
        flip: bool [B], the rows to mirror; None: none.
        row: int64 [B] rows in the global batch of the step; None outside training.
    """

    samples: Tensor
    labels: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    flip: Tensor | None = None
    row: Tensor | None = None


class Source(Protocol):
    """The stored samples of a split, never mirrored."""

    def __len__(self) -> int:
        """Number of samples."""

    def batches(self, indices: Iterable[Indices]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield samples [B, ...] and labels int64 [B] for each array of indices int64 [B]."""


class DiffusionData(Configurable, LightningDataModule, ABC):
    """Base class of data modules, whose batches are :class:`~ddpm_lightning.batch.Batch`.

    Under a trainer the loaders yield raw batches, which ``on_after_batch_transfer`` finishes on
    the device; without one, as in a notebook, the loaders finish them. A subclass defines
    ``shape``, ``num_classes``, ``source`` and ``finish``; ImageData (images in memory) and
    MapStyleImages (images larger than memory) require less.

    Args:
        global_batch_size: Samples per optimizer step = processes × accumulation × per device.
        predict_n: Number of samples that `predict` draws.
        seed: Seed of order and flips; None: the module's, or 0 without a trainer.
        flip: Mirror half of the training samples.

    Raises:
        InputError: An argument is out of range.
    """

    num_classes: int | None
    data_range: tuple[float, float] | None = None
    image_channels: int = 0

    def __init__(
        self, global_batch_size: int, predict_n: int, seed: int | None, flip: bool = False
    ) -> None:
        super().__init__()
        self.global_batch_size = global_batch_size
        self.predict_n = predict_n
        self.seed = seed
        self.flip = flip
        for name, value, least in (
            ("global_batch_size", global_batch_size, 1),
            ("predict_n", predict_n, 1),
            ("seed", seed or 0, 0),
        ):
            if value < least:
                raise InputError(f"{name} is {value}; use {least} or more (--data.{name})")

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample x0; known before any data is read."""

    @abstractmethod
    def source(self, split: Split) -> Source:
        """Open a split."""

    @abstractmethod
    def finish(self, raw: RawBatch) -> Batch:
        """Convert a raw batch to a Batch, on the raw batch's device."""

    @property
    def spec(self) -> DataSpec:
        """Specification of the data; known before any data is read."""
        return DataSpec(self.shape, self.data_range, self.num_classes, self.image_channels)

    def shown(self, condition: Condition) -> Tensor | None:
        """Convert condition images to images [B, C, H, W] in [−1, 1]; None: there are none."""
        return None

    def finished(self, split: Split, at_most: int | None = None) -> Batch:
        """Return a split, or its first samples, as one Batch, never mirrored."""
        source = self.source(split)
        index = np.arange(len(source))[:at_most]
        samples, labels = next(source.batches([index]))
        return self.finish(RawBatch(samples, labels, torch.from_numpy(index)))

    def setup(self, stage: str | None = None) -> None:
        """Open the splits of a stage: fit, validate, test or predict; None opens all."""
        needed: dict[str | None, tuple[Split, ...]] = {
            "fit": ("train", "val"),
            "validate": ("val",),
            "test": ("test",),
            "predict": (),
            None: ("train", "val", "test"),
        }
        for split in needed[stage]:
            self.source(split)

    def train_dataloader(self) -> TrainingStream:
        """The endless training stream, starting at the trainer's optimizer step."""
        layout = self._layout()
        source = self.source("train")
        n = len(source)
        steps_per_epoch = max(1, n // layout.global_batch)
        trainer = self._running_trainer()
        module = trainer.lightning_module if trainer else None
        overfit: int | float = getattr(trainer, "overfit_batches", 0)
        if overfit:
            # Lightning limits the number of batches, but does not repeat the same ones.
            steps = overfit if isinstance(overfit, int) else int(overfit * steps_per_epoch)
            n = min(n, max(1, steps) * layout.global_batch)
        return TrainingStream(
            n,
            layout,
            lambda places: self._batches(source, places),
            seed=getattr(module, "seed", 0) if self.seed is None else self.seed,
            flip=self.flip,
            shuffle=not overfit,
            steps_per_epoch=steps_per_epoch,
            # Because Lightning restores the stream only from a checkpoint within an epoch.
            step=trainer.global_step if trainer else 0,
        )

    def val_dataloader(self) -> EvaluationLoader:
        """The validation samples in order, never mirrored."""
        return self._evaluation_loader("val")

    def test_dataloader(self) -> EvaluationLoader:
        """The test samples in order, never mirrored."""
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> EvaluationLoader:
        """Sample indices 0…predict_n − 1 as int64 [B]."""
        return EvaluationLoader(
            self.predict_n,
            self._layout(),
            lambda places: (torch.from_numpy(place.index) for place in places),
        )

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """Move a raw batch, but not index and row, which key the noise on the CPU."""
        if not isinstance(batch, RawBatch):
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        rest = batch._replace(index=None, row=None)  # type: ignore[arg-type]
        moved = super().transfer_batch_to_device(rest, device, dataloader_idx)
        return moved._replace(index=batch.index, row=batch.row)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Finish a raw batch on its device; predict's sample indices pass through."""
        return self.finish(batch) if isinstance(batch, RawBatch) else batch

    def _running_trainer(self) -> Trainer | None:
        """The attached trainer, unless it has finished."""
        if self.trainer is not None and self.trainer.state.status == TrainerStatus.RUNNING:
            return self.trainer
        return None

    def _layout(self) -> Layout:
        trainer = self._running_trainer()
        if trainer is None:
            return Layout(self.global_batch_size)
        share = trainer.distributed_sampler_kwargs or {"rank": 0, "num_replicas": 1}
        world, accumulate = share["num_replicas"], trainer.accumulate_grad_batches
        return Layout(self.global_batch_size, share["rank"], world, accumulate)

    def _evaluation_loader(self, split: Split) -> EvaluationLoader:
        source = self.source(split)
        return EvaluationLoader(
            len(source), self._layout(), lambda places: self._batches(source, places)
        )

    def _batches(self, source: Source, places: Iterable[Places]) -> Iterator[RawBatch | Batch]:
        trainer = self._running_trainer()
        pin = trainer is not None and trainer.strategy.root_device.type == "cuda"
        places, read = tee(places)
        loaded = source.batches(place.index for place in read)
        for place, (samples, labels) in zip(places, loaded, strict=True):
            index, flip, row = (None if p is None else torch.from_numpy(p) for p in place)
            raw = RawBatch(samples, labels, index, flip, row)  # type: ignore[arg-type]
            if pin:  # so that transfers to CUDA overlap with computation
                pinned: Any = (part if part is None else part.pin_memory() for part in raw)
                raw = RawBatch(*pinned)
            yield self.finish(raw) if trainer is None else raw
