"""Base class of labelled image data sets: files, official splits, sizes and batches."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from ddpm_lightning.batch import Batch
from ddpm_lightning.data.data_module import InMemoryData, RawBatch, Split
from ddpm_lightning.data.image_set import ImageSet, check_subset, chosen, finish_images
from ddpm_lightning.errors import InputError, at_least
from ddpm_lightning.memory import check_memory

OfficialSplit = Literal["train", "test"]


class ImageData(ImageSet, InMemoryData):
    """A labelled image data set, kept in memory as 8 bits.

    x0 is float32 [B, C, H, W] in [−1, 1]. A subclass defines ``native_shape``, ``num_classes``
    and ``read``, and for a data set in files also ``files`` and optionally ``fetch``.

    Args:
        root: Folder with one subfolder per data set, also for downloads.
        download: Fetch missing files from the internet.
        image_size: Height and width in pixels; by default the data set's own.
        resize: How to reach image_size: pad (centred on black, only enlarges) or bilinear
            (antialiased).
        flip: Mirror half of the training images left to right, at random. Not for digits.
        subset: Train on a fixed random subset of the training images: a share in (0, 1.0], or an
            integer number of images (1 is one image, 1.0 is all).
        held_out: Training images kept for validation, the last ones of the official training
            split; 0 trains on all and validates on the test split. By default the data set's own
            number.
        global_batch_size: Images per optimizer step = processes × accumulation × per device.
        predict_n: Number of images that `predict` samples.
        seed: Seed of order, flips and subset. By default the run's seed for order and flips, and
            0 for the subset.
    """

    native_shape: tuple[int, int, int]
    num_classes: int
    default_held_out: int = 0

    def __init__(
        self,
        root: str = "data",
        download: bool = True,
        image_size: int | None = None,
        resize: Literal["pad", "bilinear"] = "pad",
        flip: bool = False,
        subset: int | float = 1.0,
        held_out: int | None = None,
        global_batch_size: int = 128,
        predict_n: int = 64,
        seed: int | None = None,
    ) -> None:
        super().__init__(global_batch_size, predict_n, seed, flip)
        self.root = Path(root).expanduser()
        self.download = download
        self.image_size = image_size
        self.resize = resize
        self.subset = subset
        self.held_out = self.default_held_out if held_out is None else held_out
        self._official: dict[OfficialSplit, tuple[Tensor, Tensor]] = {}
        self._check_arguments()

    # ---------------------------------------------------- to be defined by a data set

    @abstractmethod
    def read(self, split: OfficialSplit) -> tuple[Tensor, Tensor]:
        """Read an official split: images uint8 [N, C, H, W] and labels int64 [N]."""

    def files(self, split: OfficialSplit) -> list[Path]:
        """List the files that ``read`` needs; none by default."""
        return []

    def fetch(self) -> None:
        """Download the files of both splits into ``root``."""
        raise RuntimeError(f"no address is known for {type(self).__name__}")

    # ------------------------------------------------------------------------- images

    @property
    @override
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.native_shape
        return channels, self.image_size or height, self.image_size or width

    @override
    def images(self, split: Split) -> tuple[Tensor, Tensor]:
        if split == "test" or (split == "val" and self.held_out == 0):
            return self._read_once("test")
        images, labels = self._read_once("train")
        trained = len(images) - self.held_out
        if trained < 1:
            raise InputError(
                f"held_out {self.held_out} leaves none of the {len(images)} training images of "
                f"{type(self).__name__}; use less (--data.held_out)"
            )
        if split == "val":
            return images[trained:], labels[trained:]
        rows = torch.from_numpy(chosen(self.subset, trained, self.seed or 0, type(self).__name__))
        if len(rows) == trained:
            return images[:trained], labels[:trained]
        return images[rows], labels[rows]

    @override
    def captions(self, split: Split) -> list[str] | None:
        """The captions of a split: of each image the text that has its label's place."""
        texts = self.texts
        return [texts[label] for label in self.images(split)[1].tolist()] if texts else None

    @override
    def samples(self, split: Split) -> tuple[Tensor, Tensor]:
        return self.images(split)

    @override
    def finish(self, raw: RawBatch) -> Batch:
        return finish_images(raw)

    # -------------------------------------------------------------------------- files

    @override
    def prepare_data(self) -> None:
        trainer = self._running_trainer()
        if trainer is not None and trainer.predicting:
            return  # because samples come from the model alone
        missing = self._missing("train") + self._missing("test")
        if missing and self.download:
            try:
                self.fetch()
            except Exception as error:
                raise self._not_found(missing, error) from error

    def _read_once(self, split: OfficialSplit) -> tuple[Tensor, Tensor]:
        if split not in self._official:
            if self._running_trainer() is None:
                self.prepare_data()
            if missing := self._missing(split):
                raise self._not_found(missing)
            images, labels = self.read(split)
            self._check_data(split, images, labels)
            self._official[split] = resized(images, self.shape[1:], self.resize), labels
        return self._official[split]

    def _missing(self, split: OfficialSplit) -> list[Path]:
        return [file for file in self.files(split) if not file.is_file()]

    def _not_found(self, missing: list[Path], error: Exception | None = None) -> InputError:
        folder = missing[0].parent
        names = ", ".join(file.name for file in missing)
        fix = "allow the download (--data.download true)"
        if error is not None:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            fix = f"the download failed ({reason}): connect to the internet"
        return InputError(
            f"{type(self).__name__}: {folder.absolute()} lacks {names}; {fix}, put the files "
            f"there, or name the folder that holds {folder.relative_to(self.root)} (its root, "
            "e.g. --data.root)"
        )

    # ------------------------------------------------------------------------- checks

    def _check_arguments(self) -> None:
        size, native = self.image_size, max(self.native_shape[1:])
        check_subset(self.subset)
        at_least(0, self, held_out=self.held_out)
        at_least(1, self, image_size=size)
        if size is not None:
            bytes_a_step = 4 * self.global_batch_size * self.native_shape[0] * size**2
            check_memory(f"a batch at image_size {size}", bytes_a_step)
        if size is not None and size < native and self.resize == "pad":
            raise InputError(
                f"image_size {size} is below the {native} pixels of {type(self).__name__}, and "
                f"pad only enlarges; use --data.resize bilinear, or image_size {native} or more"
            )

    def _check_data(self, split: OfficialSplit, images: Tensor, labels: Tensor) -> None:
        found = [f"{what.dtype} {list(what.shape)}" for what in (images, labels)]
        n, top = len(images), self.num_classes - 1
        wanted = [f"torch.uint8 {[n, *self.native_shape]}", f"torch.int64 {[n]}"]
        spans = f"{labels.min()}…{labels.max()}" if len(labels) else "nothing"
        if found != wanted or not n or labels.min() < 0 or labels.max() > top:
            raise InputError(
                f"{type(self).__name__} {split} split: images {found[0]} and labels {found[1]} of "
                f"{spans} instead of {wanted[0]} and {wanted[1]} of 0…{top}; these are other "
                "files (--data.root)"
            )


def resized(images: Tensor, size: tuple[int, int], how: str) -> Tensor:
    """Resize images uint8 [N, C, h, w] to [N, C, *size].

    ``how`` is pad (centred on black, nearer to the top left if the margin is odd) or bilinear
    (antialiased, rounded).
    """
    down, right = size[0] - images.shape[2], size[1] - images.shape[3]
    if down == right == 0:
        return images
    if how == "pad":
        top, left = down // 2, right // 2
        return F.pad(images, (left, right - left, top, down - top))
    # In parts, because float32 takes four times the memory of the result.
    scaled = (
        F.interpolate(part.float(), size, mode="bilinear", antialias=True)
        for part in images.split(1024)
    )
    return torch.cat([part.round_().clamp_(0, 255).to(torch.uint8) for part in scaled])
