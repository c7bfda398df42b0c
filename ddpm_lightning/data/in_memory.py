"""Samples in memory as a LightningDataModule: from tensors to the batches of every stage."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.trainer.states import TrainerStatus
from torch import Tensor

from ddpm_lightning.configurable import Configurable
from ddpm_lightning.data.stream import EvaluationLoader, Flips, Indices, Layout, TrainingStream
from ddpm_lightning.errors import InputError

Split = Literal["train", "val", "test"]


class RawBatch(NamedTuple):
    """A batch on its way to the device, where it becomes (x0, y) or (x0, y, condition).

    Attributes:
        samples: [B, ...] as they are kept in memory, e.g. uint8 images.
        labels: int64 [B].
        flip: bool [B], the rows to mirror; None: none.
        places: int64 [B], where the samples stand in their split; None: 0, 1, 2, …
    """

    samples: Tensor
    labels: Tensor
    flip: Tensor | None = None
    places: Tensor | None = None

    def pin_memory(self) -> RawBatch:
        """Copy to pinned memory, from which transfers to CUDA overlap with computation."""
        flip = None if self.flip is None else self.flip.pin_memory()
        places = None if self.places is None else self.places.pin_memory()
        return RawBatch(self.samples.pin_memory(), self.labels.pin_memory(), flip, places)


class InMemoryData(Configurable, LightningDataModule, ABC):
    """A data set that fits in memory.

    Batches are (x0 float32 [B, *shape], y int64 [B]). Under a trainer the loaders give the
    samples as they are kept and ``on_after_batch_transfer`` finishes them on the device; without
    one, as in a notebook, the loaders finish them themselves.

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
    def samples(self, split: Split) -> tuple[Tensor, Tensor]:
        """Give a whole split, never mirrored: samples [N, ...] and labels int64 [N]."""

    @abstractmethod
    def finish(self, batch: RawBatch) -> tuple[Tensor, ...]:
        """Turn a raw batch into (x0, y), on whatever device it is."""

    def finished(self, split: Split, at_most: int | None = None) -> tuple[Tensor, Tensor]:
        """Give a split, or its first samples, as the network sees it: x0 and y, never mirrored."""
        samples, labels = self.samples(split)
        x0, y = self.finish(RawBatch(samples[:at_most], labels[:at_most]))[:2]
        return x0, y

    def setup(self, stage: str | None = None) -> None:
        """Read what a stage needs: fit, validate, test or predict; None reads all."""
        needed: dict[str | None, tuple[Split, ...]] = {
            "fit": ("train", "val"),
            "validate": ("val",),
            "test": ("test",),
            "predict": (),
            None: ("train", "val", "test"),
        }
        for split in needed[stage]:
            self.samples(split)

    def train_dataloader(self) -> TrainingStream:
        """The endless training stream, from the trainer's optimizer step on.

        Raises:
            InputError: global_batch_size is not divisible by processes × accumulation.
        """
        layout = self._layout()
        samples, labels = self.samples("train")
        n = len(samples)
        steps_per_epoch = max(1, n // layout.global_batch)
        trainer = self._running_trainer()
        module = trainer.lightning_module if trainer else None
        overfit: int | float = getattr(trainer, "overfit_batches", 0)
        if overfit:
            # Lightning limits the batches of an epoch; that they are always the same is up to us.
            steps = overfit if isinstance(overfit, int) else int(overfit * steps_per_epoch)
            n = min(n, max(1, steps) * layout.global_batch)
        return TrainingStream(
            n,
            layout,
            self._gatherer(samples, labels),
            seed=getattr(module, "seed", 0) if self.seed is None else self.seed,
            flip=self.flip,
            shuffle=not overfit,
            steps_per_epoch=steps_per_epoch,
            # Lightning loads the position of a checkpoint only if it was saved within an epoch.
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
        return EvaluationLoader(self.predict_n, self._layout(), torch.from_numpy)

    def on_after_batch_transfer(
        self, batch: RawBatch | Tensor, dataloader_idx: int
    ) -> tuple[Tensor, ...] | Tensor:
        """Finish a raw batch on its device; sample indices pass through."""
        return self.finish(batch) if isinstance(batch, RawBatch) else batch

    def _running_trainer(self) -> Trainer | None:
        """The trainer at work; after its work it stays attached but must not matter."""
        if self.trainer is not None and self.trainer.state.status == TrainerStatus.RUNNING:
            return self.trainer
        return None

    def _layout(self) -> Layout:
        trainer = self._running_trainer()
        if trainer is None:
            return Layout(self.global_batch_size)
        share = trainer.distributed_sampler_kwargs or {"rank": 0, "num_replicas": 1}
        return Layout(
            self.global_batch_size,
            rank=share["rank"],
            world=share["num_replicas"],
            accumulate=trainer.accumulate_grad_batches,
        )

    def _evaluation_loader(self, split: Split) -> EvaluationLoader:
        samples, labels = self.samples(split)
        return EvaluationLoader(len(samples), self._layout(), self._gatherer(samples, labels))

    def _gatherer(
        self, samples: Tensor, labels: Tensor
    ) -> Callable[[Indices, Flips | None], RawBatch | tuple[Tensor, ...]]:
        trainer = self._running_trainer()
        pin = trainer is not None and trainer.strategy.root_device.type == "cuda"

        def gather(indices: Indices, flips: Flips | None = None) -> RawBatch | tuple[Tensor, ...]:
            rows = torch.from_numpy(indices)
            flip = None if flips is None else torch.from_numpy(flips)
            # index_select copies whole rows, which is many times faster than samples[rows].
            batch = RawBatch(samples.index_select(0, rows), labels[rows], flip, rows)
            if trainer is None:
                return self.finish(batch)
            return batch.pin_memory() if pin else batch

        return gather
