"""Data with a given image beside every sample: super-resolution, colourisation, inpainting.

The network sees the given image, the condition, as more channels of its input and learns
p(x0 | condition) instead of p(x0) (SR3, Saharia et al. 2021; Palette, Saharia et al. 2022).
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
from ddpm_lightning.data.data_module import RawBatch, Split
from ddpm_lightning.data.image_data import ImageData
from ddpm_lightning.data.in_memory import InMemoryData
from ddpm_lightning.errors import InputError
from ddpm_lightning.images import read_image, read_transparent

Shape = tuple[int, ...]


class Task(Configurable, ABC):
    """What becomes of an image before the model has to find it again.

    A task of your own states how many channels its condition has, makes it, reads it from a file
    and shows it.
    """

    @abstractmethod
    def channels(self, shape: Shape) -> int:
        """Channels of the condition of an image [C, H, W].

        Raises:
            InputError: The task cannot be set on such images.
        """

    @abstractmethod
    def __call__(self, x0: Tensor, index: Tensor) -> Tensor:
        """Make the conditions of a batch, on its device.

        Args:
            x0: float [B, C, H, W] in [−1, 1].
            index: int64 [B], the images' places in their split; chance depends on them alone.

        Returns:
            float [B, channels, H, W]
        """

    @abstractmethod
    def read(self, path: Path, shape: Shape) -> Tensor:
        """Read a condition [channels, H, W] from a file, for images of shape [C, H, W].

        Raises:
            InputError: The file does not suit.
        """

    @abstractmethod
    def shown(self, condition: Tensor, shape: Shape) -> Tensor:
        """Show conditions [B, channels, H, W] as images [B, C, H, W] in [−1, 1]."""


class SuperResolution(Task):
    """Enlarge: the condition is the mean over squares of pixels, each mean a square again.

    A file holds the small image itself, [H/factor, W/factor] pixels.

    Args:
        factor: Side of the squares; must divide height and width.

    Raises:
        InputError: The factor is below 2.
    """

    def __init__(self, factor: int = 4) -> None:
        if factor < 2:
            raise InputError(f"SuperResolution(factor={factor}): give 2 or more")
        self.factor = factor

    def channels(self, shape: Shape) -> int:
        """Those of the image."""
        if shape[1] % self.factor or shape[2] % self.factor:
            raise InputError(
                f"SuperResolution(factor={self.factor}) needs a height and width that it divides, "
                f"not {shape[1]}×{shape[2]}; give another factor or the data an image_size"
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
    """Colour: the condition is the image in grey, its luma 0.299 R + 0.587 G + 0.114 B.

    A file holds a grey image of the data's size.
    """

    def channels(self, shape: Shape) -> int:
        """One."""
        if shape[0] != 3:
            raise InputError(
                f"Colourisation needs RGB images, the data has {shape[0]} channel(s); choose "
                "another task or other data, e.g. CIFAR10"
            )
        return 1

    @override
    def __call__(self, x0: Tensor, index: Tensor) -> Tensor:
        # The weights of ITU-R BT.601.
        red, green, blue = x0.unbind(1)
        return (0.299 * red + 0.587 * green + 0.114 * blue).unsqueeze(1)

    @override
    def read(self, path: Path, shape: Shape) -> Tensor:
        return read_image(path, (1, *shape[1:]))

    @override
    def shown(self, condition: Tensor, shape: Shape) -> Tensor:
        return condition.expand(-1, shape[0], -1, -1)


class Inpainting(Task):
    """Fill a hole: the condition is the image with a square of it at 0, and the square as a mask.

    Where the square lies depends on the image's place in its split: it is the same in every epoch
    and run. A file holds an image of the data's size with transparency (RGBA, or LA for grey):
    what is transparent is painted.

    Args:
        size: Side of the square in pixels.

    Raises:
        InputError: The size is below 1.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise InputError(f"Inpainting(size={size}): give 1 or more")
        self.size = size

    def channels(self, shape: Shape) -> int:
        """Those of the image and the mask."""
        if self.size > min(shape[1:]):
            raise InputError(
                f"Inpainting(size={self.size}) is larger than the {shape[1]}×{shape[2]} images; "
                f"give {min(shape[1:])} or less"
            )
        return shape[0] + 1

    def __call__(self, x0: Tensor, index: Tensor) -> Tensor:
        """[x0 · (1 − mask), mask], the mask 1 in the hole and 0 around it."""
        return _holed(x0, self._holes(index, x0.shape[-2], x0.shape[-1]))

    @override
    def read(self, path: Path, shape: Shape) -> Tensor:
        image, hole = read_transparent(path, shape)
        return _holed(image[None], hole[None])[0]

    @override
    def shown(self, condition: Tensor, shape: Shape) -> Tensor:
        return condition[:, : shape[0]]

    def _holes(self, index: Tensor, height: int, width: int) -> Tensor:
        """The squares, bool [B, 1, H, W].

        Corners are multiples of (1/ρ, 1/ρ²) mod 1 with ρ³ = ρ + 1, which cover all places evenly
        in any stretch of indices (Roberts 2018), in whole numbers of 2^−32: exact on any device.
        """
        inside = torch.ones(len(index), 1, height, width, dtype=torch.bool, device=index.device)
        for axis, side, step in ((2, height, 3242174889), (3, width, 2447445414)):
            share = ((index + 1) * step) % 2**32
            first = (share * (side - self.size + 1)) >> 32
            shape = [1, 1, 1, 1]
            shape[axis] = side
            places = torch.arange(side, device=index.device).view(shape)
            first = first.view(-1, 1, 1, 1)
            inside = inside & (places >= first) & (places < first + self.size)
        return inside


class Conditioned(InMemoryData):
    """Any image data with a condition image beside every image, made from it by a task.

    `predict` takes the conditions of the test split.

    Args:
        data: The images; they also say how many make a batch, the order and the rest.
        task: What the model learns.

    Raises:
        InputError: The task cannot be set on these images.
    """

    data_range = ImageData.data_range

    def __init__(self, data: ImageData, task: Task) -> None:
        super().__init__(data.global_batch_size, data.predict_n, data.seed, data.flip)
        self.data = data
        self.task = task
        self.num_classes = data.num_classes
        self.image_channels = task.channels(data.shape)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return self.data.shape

    def samples(self, split: Split) -> tuple[Tensor, Tensor]:
        """Give the images of a split, as the data does."""
        return self.data.samples(split)

    def finish(self, raw: RawBatch) -> Batch:
        """Mirror and normalise, then make the condition images."""
        batch = self.data.finish(raw)
        image = self.task(batch.x0, raw.index.to(batch.x0.device))
        return batch._replace(condition=batch.condition._replace(image=image))

    @override
    def shown(self, condition: Condition) -> Tensor | None:
        assert condition.image is not None
        return self.task.shown(condition.image, self.shape)

    def prepare_data(self) -> None:
        """Download what is missing, if allowed. Lightning calls this on one process."""
        self.data.prepare_data()


def _holed(x0: Tensor, hole: Tensor) -> Tensor:
    return torch.cat([x0.masked_fill(hole, 0.0), hole.to(x0)], dim=1)
