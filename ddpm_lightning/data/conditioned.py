"""Image-conditioned data: super-resolution, colourisation, inpainting.

The network gets the condition image as additional input channels and learns p(x0 | condition)
instead of p(x0) (SR3, Saharia et al. 2021; Palette, Saharia et al. 2022).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from ddpm_lightning.batch import Batch, Condition
from ddpm_lightning.configurable import Configurable
from ddpm_lightning.data.data_module import RawBatch
from ddpm_lightning.data.image_set import ImageSet
from ddpm_lightning.data.wrapper import DataWrapper
from ddpm_lightning.errors import InputError, at_least
from ddpm_lightning.images import read_image, read_transparent

Shape = tuple[int, ...]


class Task(Configurable, ABC):
    """The degradation of an image that the model learns to undo: computes condition images."""

    @abstractmethod
    def channels(self, shape: Shape) -> int:
        """Channels of the condition images for images [C, H, W]; refuse unsuitable shapes."""

    @abstractmethod
    def __call__(self, x0: Tensor, index: Tensor) -> Tensor:
        """Compute the condition images [B, channels, H, W] of x0 in [−1, 1], on its device.

        Anything random depends on the indices in the split, int64 [B], alone.
        """

    @abstractmethod
    def read(self, path: Path, shape: Shape) -> Tensor:
        """Read a condition image [channels, H, W] from a file, for images of shape [C, H, W]."""

    @abstractmethod
    def shown(self, condition: Tensor, shape: Shape) -> Tensor:
        """Convert condition images [B, channels, H, W] to images [B, C, H, W] in [−1, 1]."""


class SuperResolution(Task):
    """Super-resolution: the condition is x0, downsampled by averaging and enlarged to its size.

    A condition file is the small image, [H/factor, W/factor] pixels.

    Args:
        factor: Downsampling factor; must divide height and width.
    """

    def __init__(self, factor: int = 4) -> None:
        at_least(2, self, factor=factor)
        self.factor = factor

    @override
    def channels(self, shape: Shape) -> int:
        if shape[1] % self.factor or shape[2] % self.factor:
            raise InputError(
                f"SuperResolution(factor={self.factor}) needs a height and width that it divides, "
                f"not {shape[1]}×{shape[2]}; give another factor, or choose images of another size"
            )
        return shape[0]

    @override
    def __call__(self, x0: Tensor, index: Tensor) -> Tensor:
        return self._enlarged(F.avg_pool2d(x0, self.factor))

    @override
    def read(self, path: Path, shape: Shape) -> Tensor:
        small = (shape[0], shape[1] // self.factor, shape[2] // self.factor)
        return self._enlarged(read_image(path, small))

    @override
    def shown(self, condition: Tensor, shape: Shape) -> Tensor:
        return condition

    def _enlarged(self, small: Tensor) -> Tensor:
        return small.repeat_interleave(self.factor, -2).repeat_interleave(self.factor, -1)


class Colourisation(Task):
    """Colourisation: the condition is the luma 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601).

    A condition file is a grey image of the data's size.
    """

    @override
    def channels(self, shape: Shape) -> int:
        if shape[0] != 3:
            raise InputError(
                f"Colourisation needs RGB images, the data has {shape[0]} channel(s); choose "
                "another task or other data, e.g. CIFAR10"
            )
        return 1

    @override
    def __call__(self, x0: Tensor, index: Tensor) -> Tensor:
        red, green, blue = x0.unbind(1)
        return (0.299 * red + 0.587 * green + 0.114 * blue).unsqueeze(1)

    @override
    def read(self, path: Path, shape: Shape) -> Tensor:
        return read_image(path, (1, *shape[1:]))

    @override
    def shown(self, condition: Tensor, shape: Shape) -> Tensor:
        return condition.expand(-1, shape[0], -1, -1)


class Inpainting(Task):
    """Inpainting: the condition is [x0 · (1 − mask), mask], the mask 1 in a square hole.

    The position of the square depends on the image's index in the split, so it is the same in
    every epoch and run. A condition file is an image of the data's size with transparency (RGBA,
    or LA for grey); the transparent pixels are inpainted.

    Args:
        size: Side of the square in pixels.
    """

    def __init__(self, size: int) -> None:
        at_least(1, self, size=size)
        self.size = size

    @override
    def channels(self, shape: Shape) -> int:
        if self.size > min(shape[1:]):
            raise InputError(
                f"Inpainting(size={self.size}) is larger than the {shape[1]}×{shape[2]} images; "
                f"give {min(shape[1:])} or less"
            )
        return shape[0] + 1

    @override
    def __call__(self, x0: Tensor, index: Tensor) -> Tensor:
        return _masked(x0, self._masks(index, x0.shape[-2], x0.shape[-1]))

    @override
    def read(self, path: Path, shape: Shape) -> Tensor:
        image, mask = read_transparent(path, shape)
        return _masked(image[None], mask[None])[0]

    @override
    def shown(self, condition: Tensor, shape: Shape) -> Tensor:
        return condition[:, : shape[0]]

    def _masks(self, index: Tensor, height: int, width: int) -> Tensor:
        """The squares, bool [B, 1, H, W].

        Corners are multiples of (1/ρ, 1/ρ²) mod 1 with ρ³ = ρ + 1, which cover the image evenly
        in any range of indices (Roberts 2018), as integers / 2^32 to be exact on any device.
        """

        def inside(side: int, step: int) -> Tensor:  # bool [B, side]
            first = (((index + 1) * step) % 2**32 * (side - self.size + 1)) >> 32
            offset = torch.arange(side, device=index.device) - first[:, None]
            return (offset >= 0) & (offset < self.size)

        rows, columns = inside(height, 3242174889), inside(width, 2447445414)
        return rows[:, None, :, None] & columns[:, None, None, :]


class Conditioned(DataWrapper):
    """Image data with condition images that a task computes; `predict` takes the test split's.

    Args:
        data: The images, with the batch size, seed and other settings.
        task: The task, which computes the condition images.
    """

    def __init__(self, data: ImageSet, task: Task) -> None:
        super().__init__(data)
        self.task = task
        self.image_channels = task.channels(data.shape)

    @override
    def finish(self, raw: RawBatch) -> Batch:
        batch = self.data.finish(raw)
        image = self.task(batch.x0, raw.index.to(batch.x0.device, non_blocking=True))
        return batch._replace(condition=batch.condition._replace(image=image))

    @override
    def shown(self, condition: Condition) -> Tensor | None:
        assert condition.image is not None
        return self.task.shown(condition.image, self.shape)


def _masked(x0: Tensor, mask: Tensor) -> Tensor:
    return torch.cat([x0.masked_fill(mask, 0.0), mask.to(x0)], dim=1)
