"""The real images that samples are compared with: a split of a data set, or a folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from ddpm_lightning.data.data_module import Split, identity
from ddpm_lightning.data.image_set import ImageSet, StoredImages
from ddpm_lightning.data.wrapper import innermost
from ddpm_lightning.errors import InputError
from ddpm_lightning.images import ImageArchive, UniformFolder, images_at
from ddpm_lightning.metrics import Features, Measures, Reference
from ddpm_lightning.metrics.cache import pixels_digest


@dataclass(frozen=True, eq=False)
class RealImages:
    """Real images, never mirrored; by default those that a checkpoint was trained on.

    Args:
        data: A data set, e.g. --reference.data MNIST --reference.data.root data.
        folder: A folder of images, or an .npz with arr_0, uint8 [N, H, W, C], in
            place of a data set.
        split: Split of the data set: train (as published numbers do), val or test.

    Raises:
        InputError: Both are given.
    """

    data: ImageSet | None = None
    folder: Path | None = None
    split: Split = "train"

    def __post_init__(self) -> None:
        if self.data is not None and self.folder is not None:
            raise InputError("--reference.data and --reference.folder: give one of them")

    @property
    def given(self) -> bool:
        """Whether a data set or a folder is named."""
        return self.data is not None or self.folder is not None

    def of(self, data: object) -> RealImages:
        """Take the images of a data module; refuse one that is no ImageSet."""
        data = innermost(data)
        if not isinstance(data, ImageSet):
            raise InputError(
                f"{type(data).__name__} has no images that samples could be compared with (it is "
                "no ImageSet); distances of points are measured in training (PointMetrics)"
            )
        return replace(self, data=data)

    @cached_property
    def source(self) -> Tensor | UniformFolder | ImageArchive | StoredImages:
        """The images: uint8 [N, C, H, W], or what is read as needed.

        Raises:
            InputError: Files are missing or damaged.
        """
        if self.folder is not None:
            return images_at(self.folder)
        if self.data is None:
            raise InputError(
                "which real images? Give --reference.folder DIR or --reference.data MNIST, …"
            )
        return self.data.images(self.split)[0]

    @property
    def labels(self) -> Tensor | None:
        """int64 [N] classes, or None for those of a folder."""
        return None if self.data is None else self.data.images(self.split)[1]

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.source)

    @property
    def shape(self) -> tuple[int, ...]:
        """[C, H, W] of an image."""
        source = self.source
        return tuple(source.shape[1:] if isinstance(source, Tensor) else source.shape)

    def take(self, rows: Tensor) -> Tensor:
        """The images of these rows, uint8 [n, C, H, W]."""
        source: Any = self.source
        if isinstance(source, Tensor):
            return source[rows]
        return source.read([source.files[row] for row in rows.tolist()])

    def batches(self, rows: Tensor, batch_size: int) -> Iterator[Tensor]:
        """The images of these rows, a batch at a time; what is stored is read ahead."""
        chunks = rows.split(batch_size)
        if isinstance(self.source, StoredImages):
            return self.source.taken(chunk.numpy() for chunk in chunks)
        return (self.take(chunk) for chunk in chunks)

    def digest(self) -> str:
        """The sha256 of all pixels."""
        source = self.source
        return pixels_digest([source] if isinstance(source, Tensor) else source.batches(256))

    def reference(self, measures: Measures, features: Features, sha256: str) -> Reference:
        """What samples are scored against, with the sha256 of all pixels."""
        origin: dict[str, Any] = {"data": identity(self.data), "split": self.split}
        if self.folder is not None:
            origin = {"folder": str(self.folder)}
        known = measures.extractor is not None and measures.extractor.knows_classes_of(self.data)
        description = {**origin, "count": self.count, "sha256": sha256}
        return Reference(measures, features, description, self.labels if known else None)
