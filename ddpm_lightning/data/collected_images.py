"""Base class of data modules of image files of any kind: decoding, splits, crops, stores."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from typing_extensions import override

from ddpm_lightning.batch import Batch
from ddpm_lightning.data.collection import Collection
from ddpm_lightning.data.crops import CentreCrop, Crop
from ddpm_lightning.data.data_module import RawBatch, Split, Tensors
from ddpm_lightning.data.decoded_files import (
    Bad,
    Cache,
    Files,
    Part,
    Views,
    bad_files,
    decoded_into_memory,
    in_words,
)
from ddpm_lightning.data.image_set import (
    ImageSet,
    StoredImages,
    check_subset,
    chosen,
    finish_images,
)
from ddpm_lightning.data.stream import Indices, Purpose, permutation
from ddpm_lightning.errors import InputError, at_least
from ddpm_lightning.images.decoding import Decoding, Resize
from ddpm_lightning.memory import check_memory

SMALL = 2**30
"""Bytes of decoded images up to which ``store: auto`` holds a set in memory."""


class CollectedImages(ImageSet):
    """Images from files of many kinds and sizes; x0 is float32 [B, C, H, W] in [−1, 1].

    A subclass defines ``collect``. Every file is decoded before training, and all that cannot be
    used are named at once. A set that is not held in memory is decoded once, when a trainer
    prepares it to train, validate or test, and its file in ``cache`` is used again by whatever has
    the same files and settings; where it is missing, commands that take a checkpoint read the
    images themselves and write nothing.

    Args:
        size: Height and width of x0 in pixels: one number, or [H, W].
        channels: 1 (grey), 3 (RGB) or 4 (RGBA).
        resize: How images reach the size: cover (scaled to cover it, the centre is cut out), pad
            (scaled to fit inside, the rest is background), stretch, none (the centre is cut out
            unscaled).
        background: Colour behind transparent pixels and in the margins of pad, by name or #rrggbb.
        crop: Which part of the image is trained on: CentreCrop, or at random RandomCrop or
            RandomResizedCrop.
        flip: Mirror half of the training images left to right, at random.
        held_out: Training images for validation where the set has no split for it, chosen at
            random once: a share in [0, 1) or a number. The test split, where there is none, is
            that of validation.
        subset: Train on a fixed random subset of the training images: a share in (0, 1.0], or an
            integer number of images.
        bad_files: What to do with files that cannot be read: stop, or skip them.
        store: Where decoded images are: in memory, mapped from one file in ``cache``, or streamed
            (decoded each time by the workers); auto: memory up to 1 GiB, else mapped.
        cache: Folder for files of decoded images; they may be removed at any time.
        workers: Processes that decode; 0 decodes in the main one.
        global_batch_size: Images per optimizer step = processes × accumulation × per device.
        predict_n: Number of images that `predict` samples.
        seed: Seed of order, flips, crops and subset. By default the run's seed for order, flips
            and crops, and 0 for the subset and what is held out.
    """

    def __init__(
        self,
        size: int | tuple[int, int] = 64,
        channels: int = 3,
        resize: Resize = "cover",
        background: str = "white",
        crop: Crop = CentreCrop(),
        flip: bool = False,
        held_out: int | float = 0.05,
        subset: int | float = 1.0,
        bad_files: Literal["stop", "skip"] = "stop",
        store: Literal["auto", "memory", "mapped", "streamed"] = "auto",
        cache: str = "data/cache",
        workers: int = 2,
        global_batch_size: int = 64,
        predict_n: int = 64,
        seed: int | None = None,
    ) -> None:
        self.state_defaults(CollectedImages)
        super().__init__(global_batch_size, predict_n, seed, flip)
        self.size = (size, size) if isinstance(size, int) else (size[0], size[1])
        at_least(1, self, size=min(self.size))
        at_least(0, self, workers=workers)
        self.decoding = Decoding(channels, crop.stored(self.size), resize, background)
        self.crop = crop
        self.crop_draws = crop.draws
        self.held_out = held_out
        self.subset = subset
        self.bad_files = bad_files
        self.store = store
        self.cache = Path(cache).expanduser()
        self.workers = workers
        check_subset(subset)
        if not (held_out >= 0 if isinstance(held_out, int) else 0 <= held_out < 1):
            raise InputError(
                f"held_out {held_out} is neither a share from 0 and below 1 nor a whole number of "
                "images; use e.g. 0.05 or 500 (--data.held_out)"
            )
        height, width = self.decoding.size
        check_memory(f"a batch at size {size}", 4 * global_batch_size * channels * height * width)

    @abstractmethod
    def collect(self) -> Collection:
        """List the files; raise InputError if there are none."""

    @cached_property
    def collection(self) -> Collection:
        """The files, listed once."""
        return self.collect()

    @property
    @override
    def shape(self) -> tuple[int, int, int]:
        return self.decoding.channels, *self.size

    @property
    def num_classes(self) -> int | None:  # type: ignore[override]
        """Number of classes; None: no labels. The files are listed for it."""
        return len(self.collection.classes) or None

    @property
    @override
    def texts(self) -> Sequence[str]:
        return self.collection.texts

    @override
    def captions(self, split: Split) -> list[str] | None:
        texts = self.texts
        return [texts[row] for row in self._rows(split).tolist()] if texts else None

    @override
    def source(self, split: Split) -> Part:
        view = partial(self.crop.view, size=self.size)
        return Part(self._store, self._rows(split), self.shape, view)

    @override
    def images(self, split: Split) -> tuple[Tensor | StoredImages, Tensor]:
        part = self.source(split)
        labels = torch.from_numpy(self.collection.labels[part.rows])
        if self._place == "memory":
            return part.view(part.store.samples[torch.from_numpy(part.rows)]), labels  # type: ignore[union-attr]
        return StoredImages(Views(part)), labels

    @override
    def finish(self, raw: RawBatch) -> Batch:
        if raw.crop is None:
            images = self.crop.view(raw.samples, self.size)
        else:
            images = self.crop(raw.samples, raw.crop, self.size)
        return finish_images(raw._replace(samples=images))

    @override
    def prepare_data(self) -> None:
        trainer = self._running_trainer()
        if self._place != "memory" and not (trainer is not None and trainer.predicting):
            self._cache.fill(pixels=self._place == "mapped")

    # ------------------------------------------------------------------------- stores

    @cached_property
    def _files(self) -> Files:
        return Files(self.collection, self.decoding, self.workers)

    @cached_property
    def _cache(self) -> Cache:
        return Cache(self.cache, self._files)

    @cached_property
    def _place(self) -> str:
        if self.store != "auto":
            return self.store
        height, width = self.decoding.size
        size = len(self.collection) * self.decoding.channels * height * width
        return "memory" if size <= SMALL else "mapped"

    @cached_property
    def _decoded(self) -> tuple[Tensor | None, Bad]:
        """All images, unless they are read as they are needed, and which are bad."""
        if self._place == "memory":
            return decoded_into_memory(self._files)
        bad = self._cache.bad()
        if bad is not None and self._place == "mapped" and self._cache.complete(pixels=True):
            return self._cache.pixels(), bad
        if bad is None and self.bad_files == "skip":  # because the rows of the splits depend on it
            bad = self._files.bad()
        return None, bad or {}

    @cached_property
    def _store(self) -> Tensors | Files:
        images, bad = self._decoded
        if bad and self.bad_files == "stop":
            raise bad_files(bad)
        if bad:
            rank_zero_warn(f"left out: {in_words(bad)}")
        if images is None:
            return self._files
        return Tensors(images, torch.from_numpy(self.collection.labels))

    # ------------------------------------------------------------------------- splits

    def _rows(self, split: Split) -> Indices:
        """Places of a split's images in the store, in order, without bad ones."""
        parts = {name: self._usable(rows) for name, rows in self.collection.parts.items()}
        if split == "test" and "test" in parts:
            return self._some(parts["test"], split)
        if split != "train" and "val" in parts:
            return self._some(parts["val"], split)
        train = parts["train"]
        n = len(train)
        if "val" not in parts:
            share = self.held_out
            held = share if isinstance(share, int) else round(share * n)
            held = max(held, 1) if share else 0
            if split == "val" and held == 0 and "test" in parts:
                return self._some(parts["test"], split)
            order = permutation(self.seed or 0, n, 0, Purpose.HELD_OUT)
            if split != "train":
                return self._some(train[np.sort(order[:held])], split)
            train = train[np.sort(order[held:])]
        self._some(train, split)
        return train[chosen(self.subset, len(train), self.seed or 0, type(self).__name__)]

    def _usable(self, rows: Indices) -> Indices:
        bad, names = self._decoded[1], self.collection.names
        return rows[[names[row] not in bad for row in rows]] if bad else rows

    def _some(self, rows: Indices, split: Split) -> Indices:
        if not len(rows):
            raise InputError(
                f"{type(self).__name__}: no image is left for the {split} split; hold out "
                "another number (--data.held_out, e.g. 0.05), or give the set a folder for it"
            )
        return rows
