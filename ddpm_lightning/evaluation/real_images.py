"""The real images that samples are held against: a split of a data set, or a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm_lightning.data.identity import identity
from ddpm_lightning.data.image_data import ImageData
from ddpm_lightning.data.in_memory import Split
from ddpm_lightning.images import ImageFolder


@dataclass(frozen=True, eq=False)
class RealImages:
    """Un-augmented images, in a fixed order, and what they are.

    Args:
        source: The images: uint8 [N, C, H, W], or a folder, which is read as needed.
        description: What they are, as plain data: source, split and count.
        labels: int64 [N] classes, or None.
        data: The data set that they are of, or None.
    """

    source: Tensor | ImageFolder
    description: dict[str, Any]
    labels: Tensor | None = None
    data: ImageData | None = None

    @classmethod
    def of_data(cls, data: ImageData, split: Split) -> RealImages:
        """Take a whole split of a data set, never mirrored."""
        images, labels = data.images(split)
        description = {"data": identity(data), "split": split, "count": len(images)}
        return cls(images, description, labels, data)

    @classmethod
    def of_folder(cls, folder: Path) -> RealImages:
        """Take all images of a folder and its subfolders."""
        images = ImageFolder(folder)
        return cls(images, {"folder": str(folder), "count": len(images)})

    def __len__(self) -> int:
        return len(self.source)

    @property
    def shape(self) -> tuple[int, ...]:
        """[C, H, W] of an image."""
        if isinstance(self.source, ImageFolder):
            return self.source.shape
        return tuple(self.source.shape[1:])

    def take(self, rows: Tensor) -> Tensor:
        """The images of these rows, uint8 [n, C, H, W]."""
        if isinstance(self.source, ImageFolder):
            return self.source.read([self.source.files[row] for row in rows.tolist()])
        return self.source[torch.as_tensor(rows)]
