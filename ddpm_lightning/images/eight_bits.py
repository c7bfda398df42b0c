"""Conversion between [−1, 1] and 8 bits."""

from __future__ import annotations

import torch
from torch import Tensor


def from_uint8(images: Tensor) -> Tensor:
    """Map uint8 0…255 to float32 [−1, 1]: x = images / 127.5 − 1."""
    return images.float().div_(127.5).sub_(1.0)


def to_uint8(x: Tensor) -> Tensor:
    """Map float [−1, 1] to uint8 0…255, rounded to the nearest and clamped."""
    return x.float().add(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
