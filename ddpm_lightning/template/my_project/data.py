"""The data set."""

from __future__ import annotations

import torch
from torch import Tensor

from ddpm_lightning.data import ImageData


class Shapes(ImageData):
    """Grey images of 16×16 pixels, each a disc (label 0) or a square (1), drawn when read.

    For data of your own, ``read`` returns all images of a split in one tensor; MapStyleImages is
    the base class of data larger than memory.
    """

    native_shape = (1, 16, 16)
    num_classes = 2
    default_held_out = 100

    def read(self, split: str) -> tuple[Tensor, Tensor]:
        """Draw a split: images uint8 [N, 1, 16, 16] and labels int64 [N]."""
        n = {"train": 2100, "test": 100}[split]
        generator = torch.Generator().manual_seed(n)
        labels = torch.randint(2, (n,), generator=generator)
        radius = 2 + 3 * torch.rand(n, 1, 1, generator=generator)
        centre = 5 + 5 * torch.rand(2, n, 1, 1, generator=generator)
        rows, columns = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
        y, x = (rows - centre[0]).abs(), (columns - centre[1]).abs()
        distance = torch.where(labels[:, None, None] == 0, torch.hypot(x, y), torch.maximum(x, y))
        images = (255 * (radius - distance).clamp(0, 1)).to(torch.uint8)
        return images[:, None], labels
