"""Base classes of the data modules: sources of samples, loaders, and batches on the device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import tee
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder
from lightning.pytorch.trainer.states import TrainerStatus
from torch import Tensor
from typing_extensions import override

from ddpm_lightning.batch import Batch, Condition, DataSpec
from ddpm_lightning.configurable import Configurable
from ddpm_lightning.data.stream import EvaluationLoader, Indices, Layout, Places, TrainingStream
from ddpm_lightning.errors import InputError, at_least
from ddpm_lightning.memory import check_memory
from ddpm_lightning.randomness import check_seed
from ddpm_lightning.text.words import vocabulary

Split = Literal["train", "val", "test"]

NO_BATCH_SIZE_FINDER = (
    "BatchSizeFinder changes the images of a step, and noise, data order and learning rate belong "
    "to data.global_batch_size; leave it out, and if memory does not suffice, divide the step by "
    "--trainer.accumulate_grad_batches 2 (4, …), which keeps all three; doctor forecasts memory"
)


PLACES = ("root", "download", "predict_n", "workers", "store", "cache")
"""Arguments that say where and how samples are read, not which."""


class RawBatch(NamedTuple):
    """A batch as loaded, to be finished on the device, where it becomes a :class:`Batch`.

    Samples [B, ...] as stored, e.g. uint8 images, labels int64 [B], and their Places, of which
    index, row and crop stay on the CPU; captions, one a sample, if there are any.
    """

    samples: Tensor
    labels: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    flip: Tensor | None = None
    row: Tensor | None = None
    crop: Tensor | None = None
    captions: list[str] | None = None


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

    Attributes:
        places: Arguments that change no sample; a class whose ``root`` is the data set itself
            leaves it out.

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
    crop_draws: int = 0
    places: tuple[str, ...] = PLACES

    def __init__(
        self, global_batch_size: int, predict_n: int, seed: int | None, flip: bool = False
    ) -> None:
        super().__init__()
        self.global_batch_size = global_batch_size
        self.predict_n = predict_n
        self.seed = seed
        self.flip = flip
        check_seed(seed or 0)
        at_least(1, self, global_batch_size=global_batch_size, predict_n=predict_n)
        check_memory(f"global_batch_size {global_batch_size}", 8 * global_batch_size)

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
        words, longest = vocabulary(self.texts)
        return DataSpec(
            self.shape,
            self.data_range,
            self.num_classes,
            self.image_channels,
            words=words,
            caption_length=longest,
        )

    @property
    def texts(self) -> Sequence[str]:
        """Every caption that a sample may have; empty: there are none."""
        return ()

    def captions(self, split: Split) -> Sequence[str] | None:
        """The captions of a split, one a sample, in order; None: there are none."""
        return None

    def shown(self, condition: Condition) -> Tensor | None:
        """Convert condition images to images [B, C, H, W] in [−1, 1]; None: there are none."""
        return None

    def finished(self, split: Split, at_most: int | None = None) -> Batch:
        """Return a split, or its first samples, as one Batch, never mirrored."""
        source = self.source(split)
        index = np.arange(len(source))[:at_most]
        samples, labels = next(source.batches([index]))
        raw = RawBatch(samples, labels, torch.from_numpy(index))
        return self._finish(_with_captions(raw, self.captions(split)))

    def setup(self, stage: str | None = None) -> None:
        """Open the splits of a stage: fit, validate, test or predict; None opens all."""
        needed: dict[str | None, tuple[Split, ...]] = {
            "fit": ("train", "val"),
            "validate": ("val",),
            "test": ("test",),
            "predict": (),
            None: ("train", "val", "test"),
        }
        callbacks: Any = getattr(self.trainer, "callbacks", ())
        if any(isinstance(one, BatchSizeFinder) for one in callbacks):
            raise InputError(NO_BATCH_SIZE_FINDER)
        for split in needed[stage]:
            self.source(split)

    def train_dataloader(self) -> TrainingStream:
        """The endless training stream, starting at the trainer's optimizer step."""
        layout = self._layout()
        source, captions = self.source("train"), self.captions("train")
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
            lambda places: self._batches(source, captions, places),
            seed=getattr(module, "seed", 0) if self.seed is None else self.seed,
            flip=self.flip,
            shuffle=not overfit,
            crop_draws=self.crop_draws,
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
        """Move a raw batch, but not index, row and crop, which are read on the CPU."""
        if not isinstance(batch, RawBatch):
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        names = ("index", "row", "crop", "captions")
        kept: dict[str, Any] = {name: getattr(batch, name) for name in names}
        empty: dict[str, Any] = dict.fromkeys(names)
        rest = batch._replace(**empty)
        moved = super().transfer_batch_to_device(rest, device, dataloader_idx)
        return moved._replace(**kept)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Finish a raw batch on its device; predict's sample indices pass through."""
        return self._finish(batch) if isinstance(batch, RawBatch) else batch

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
        source, captions = self.source(split), self.captions(split)
        return EvaluationLoader(
            len(source), self._layout(), lambda places: self._batches(source, captions, places)
        )

    def _batches(
        self, source: Source, captions: Sequence[str] | None, places: Iterable[Places]
    ) -> Iterator[RawBatch | Batch]:
        trainer = self._running_trainer()
        pin = trainer is not None and trainer.strategy.root_device.type == "cuda"
        places, read = tee(places)
        loaded = source.batches(place.index for place in read)
        for place, (samples, labels) in zip(places, loaded, strict=True):
            parts: Any = (None if p is None else torch.from_numpy(p) for p in place)
            raw = RawBatch(samples, labels, *parts)
            if pin:  # so that transfers to CUDA overlap with computation
                tensors: Any = raw
                pinned: Any = (part if part is None else part.pin_memory() for part in tensors)
                raw = RawBatch(*pinned)
            raw = _with_captions(raw, captions)
            yield self._finish(raw) if trainer is None else raw

    def _finish(self, raw: RawBatch) -> Batch:
        return self.finish(raw)._replace(captions=raw.captions)


def _with_captions(raw: RawBatch, captions: Sequence[str] | None) -> RawBatch:
    if captions is None:
        return raw
    return raw._replace(captions=[captions[place] for place in raw.index.tolist()])


@dataclass(frozen=True, eq=False)
class Tensors:
    """A split in memory: samples [N, ...] as stored and labels int64 [N]."""

    samples: Tensor
    labels: Tensor

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


def identity(data: object) -> Any:
    """Describe a data set by the arguments that determine its samples; None: not Configurable."""
    passing = {*getattr(data, "places", PLACES), "global_batch_size", "flip"}

    def stripped(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: stripped(part) for name, part in value.items() if name not in passing}
        return value

    return stripped(data.describe()) if isinstance(data, Configurable) else None
