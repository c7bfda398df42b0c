"""Crops: which part of a stored image becomes x0, at random in training.

Images are stored somewhat larger than x0, and random numbers that belong to a position of the
training stream choose the part, so that crops are the same for any number of processes or workers
and after a resume.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from typing_extensions import override

from ddpm_lightning.configurable import Configurable
from ddpm_lightning.errors import InputError, at_least

Size = tuple[int, int]

TRIES = 10
"""How often RandomResizedCrop draws a size before it takes the largest that fits."""


class Crop(Configurable, ABC):
    """How x0 of H × W pixels is cut from stored images.

    Attributes:
        enlarge: Height and width of the stored images, as a multiple of x0's.
        draws: Random numbers that the crop of an image takes.
    """

    enlarge: float = 1.0
    draws: int = 0

    def stored(self, size: Size) -> Size:
        """Height and width of the stored images for x0 of this height and width."""
        return round(self.enlarge * size[0]), round(self.enlarge * size[1])

    @abstractmethod
    def __call__(self, images: Tensor, random: Tensor, size: Size) -> Tensor:
        """Crop training images at random.

        Args:
            images: uint8 [B, C, H', W'] as stored, on any device.
            random: float64 [B, draws] in [0, 1), on the CPU.
            size: Height H and width W of x0.

        Returns:
            uint8 [B, C, H, W].
        """

    def view(self, images: Tensor, size: Size) -> Tensor:
        """Crop images uint8 [B, C, H', W'] for evaluation, in the centre: [B, C, H, W]."""
        top, left = (images.shape[2] - size[0]) // 2, (images.shape[3] - size[1]) // 2
        return images[..., top : top + size[0], left : left + size[1]]


class CentreCrop(Crop):
    """The centre, in training as in evaluation: images are stored as they are used."""

    @override
    def __call__(self, images: Tensor, random: Tensor, size: Size) -> Tensor:
        return self.view(images, size)


class RandomCrop(Crop):
    """A part of H × W pixels from anywhere in the stored image; evaluation takes the centre.

    Args:
        enlarge: Height and width of the stored images, as a multiple of x0's; above 1.
    """

    draws = 2

    def __init__(self, enlarge: float = 1.25) -> None:
        _check_enlarge(self, enlarge)
        self.enlarge = enlarge

    @override
    def stored(self, size: Size) -> Size:
        stored = super().stored(size)
        if stored == size:
            raise InputError(
                f"RandomCrop(enlarge={self.enlarge:g}) stores {size[0]}×{size[1]} pixels for as "
                "many, which leaves nothing to choose from; give e.g. "
                f"{max(1.25, 1 + 1 / max(size)):.3g}"
            )
        return stored

    @override
    def __call__(self, images: Tensor, random: Tensor, size: Size) -> Tensor:
        room = torch.tensor([have - want for have, want in zip(images.shape[2:], size)])  # noqa: B905
        top, left = (random * (room + 1)).long().to(images.device).unbind(1)
        rows = top[:, None] + torch.arange(size[0], device=images.device)
        columns = left[:, None] + torch.arange(size[1], device=images.device)
        batch = torch.arange(len(images), device=images.device)[:, None, None]
        return images.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None]].permute(
            0, 3, 1, 2
        )


class RandomResizedCrop(Crop):
    """A part of random area and aspect ratio, resampled to H × W (torchvision's of that name).

    Resampling is bilinear and antialiased. Evaluation resamples the whole stored image.

    Args:
        enlarge: Height and width of the stored images, as a multiple of x0's; at least 1.
        scale: Least and greatest area, as a share of the stored image's.
        ratio: Least and greatest width / height; its logarithm is uniform.
    """

    draws = 2 * TRIES + 2

    def __init__(
        self,
        enlarge: float = 1.25,
        scale: tuple[float, float] = (0.8, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
    ) -> None:
        at_least(1, self, enlarge=enlarge)
        self.enlarge = enlarge
        self.scale = scale
        self.ratio = ratio
        if not 0 < scale[0] <= scale[1] <= 1 or not 0 < ratio[0] <= ratio[1]:
            raise InputError(
                f"RandomResizedCrop(scale={list(scale)}, ratio={list(ratio)}): give two areas "
                "above 0 and up to 1, and two ratios above 0, the lesser first"
            )

    @override
    def __call__(self, images: Tensor, random: Tensor, size: Size) -> Tensor:
        return resample(images, self.boxes(random, (images.shape[2], images.shape[3])), size)

    @override
    def view(self, images: Tensor, size: Size) -> Tensor:
        if images.shape[2:] == size:
            return images
        whole = torch.tensor([[0, 0, images.shape[2], images.shape[3]]]).expand(len(images), 4)
        return resample(images, whole, size)

    def boxes(self, random: Tensor, stored: Size) -> Tensor:
        """Draw boxes int64 [B, 4] (top, left, height, width) in stored images H' × W'.

        Args:
            random: float64 [B, draws].
            stored: H' and W'.
        """
        height, width = stored
        areas, ratios = random[:, :TRIES], random[:, TRIES : 2 * TRIES]
        low, high = (math.log(bound) for bound in self.ratio)
        area = height * width * (self.scale[0] + areas * (self.scale[1] - self.scale[0]))
        ratio = (low + ratios * (high - low)).exp()
        w, h = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
        fits = (w >= 1) & (w <= width) & (h >= 1) & (h <= height)
        first = fits.long().argmax(1, keepdim=True)
        nearest = min(max(width / height, self.ratio[0]), self.ratio[1])  # after ten failures
        largest = torch.tensor([min(height, round(width / nearest)), width])
        if width / height > nearest:
            largest = torch.tensor([height, round(height * nearest)])
        chosen = torch.cat([h.gather(1, first), w.gather(1, first)], 1)
        found = fits.any(1, keepdim=True)
        sides = torch.where(found, chosen, largest.double()).long()
        room = torch.tensor(stored) - sides
        corner = torch.where(found, (random[:, -2:] * (room + 1)).long(), room // 2)
        return torch.cat([corner, sides], 1)


def resample(images: Tensor, boxes: Tensor, size: Size) -> Tensor:
    """Resample boxes of images to one size, bilinear with antialiasing: uint8 [B, C, H, W].

    out = R · image · Cᵀ, where a row of R and of C holds the weights of one output pixel. Weights
    are whole multiples of 2^−14 and both products are rounded to 8 bits. So every sum is exact,
    and the result is the same for any batch size, layout and device, and within 1 of Pillow's.

    Args:
        images: uint8 [B, C, H', W'].
        boxes: int64 [B, 4] (top, left, height, width), on the CPU.
        size: H and W.
    """
    # float32 holds the sums (22 bits), but CUDA may be allowed to multiply it with fewer (TF32).
    dtype = torch.float64 if images.device.type == "cuda" else torch.float32
    top, left, height, width = boxes.unbind(1)
    rows = _weights(top, height, images.shape[2], size[0]).to(images.device, dtype)
    columns = _weights(left, width, images.shape[3], size[1]).to(images.device, dtype)
    tall = (rows[:, None] @ images.to(dtype)).round().clamp(max=255)
    return (tall @ columns[:, None].mT).round().clamp(max=255).to(torch.uint8)


def _weights(first: Tensor, length: Tensor, have: int, want: int) -> Tensor:
    """Triangular weights float64 [B, want, have] of ``length`` pixels from ``first`` on."""
    pixel = torch.arange(have)
    step = (length.double() / want)[:, None, None]
    centre = (torch.arange(want)[:, None] + 0.5) * step
    offset = (pixel - first[:, None, None] + 0.5 - centre) / step.clamp(min=1)
    inside = (pixel >= first[:, None, None]) & (pixel < (first + length)[:, None, None])
    weight = (1 - offset.abs()).clamp(min=0) * inside
    return (weight / weight.sum(-1, keepdim=True) * 2**14).round() / 2**14


def _check_enlarge(crop: Crop, enlarge: float) -> None:
    if enlarge <= 1:
        raise InputError(
            f"{type(crop).__name__}(enlarge={enlarge:g}) leaves nothing to choose from; give more "
            "than 1, e.g. 1.25"
        )
