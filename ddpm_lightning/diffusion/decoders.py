"""Decoders p(x_0 | x_1) of the variational bound, in bits or nats a dimension."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from typing_extensions import override

from ddpm_lightning.configurable import Configurable
from ddpm_lightning.diffusion.levels import Scalar, as_tensor
from ddpm_lightning.errors import at_least


class Decoder(Configurable, ABC):
    """Decoder p(x_0 | x_1): the last step as a density of the data, and the unit of the bound."""

    unit: str
    """``bits`` for data in steps, ``nats`` for continuous data; a dimension each."""
    nats: float
    """Nats in one unit."""

    @abstractmethod
    def __call__(self, x0: Tensor, mean: Tensor, variance: Scalar) -> Tensor:
        """Give −log p(x_0) [B, ...] of each dimension, in nats, from the Gaussian's parameters."""


class DiscretizedGaussian(Decoder):
    """Discretized Gaussian, its mass in the bin around x_0 (DDPM eq. 13): for images, in bits.

    The outermost bins reach to infinity. The mass is computed from the tail it lies in, so it is
    exact however improbable x_0 is, without a floor.

    Args:
        bins: Grey levels in [−1, 1]: 256 for 8-bit images.
    """

    unit = "bits"
    nats = math.log(2)

    def __init__(self, bins: int = 256) -> None:
        at_least(2, self, bins=bins)
        self.bins = bins

    @override
    def __call__(self, x0: Tensor, mean: Tensor, variance: Scalar) -> Tensor:
        half = 1 / (self.bins - 1)
        std = variance**0.5
        lower, upper = (x0 - mean - half) / std, (x0 - mean + half) / std
        # Mirrored if it lies above the mean: Φ is close to 0 there and not to 1.
        mirror = lower + upper > 0
        a, b = torch.where(mirror, -upper, lower), torch.where(mirror, -lower, upper)
        log_a, log_b = _log_cdf(a), _log_cdf(b)
        # log(Φ(b) − Φ(a)); a bin too narrow for the dtype keeps the dtype's smallest share.
        tiny = torch.finfo(log_a.dtype).tiny
        inner = log_b + torch.log(-torch.expm1(log_a - log_b).clamp(max=-tiny))
        lowest, highest = x0 < half - 1, x0 > 1 - half
        return -torch.where(lowest, _log_cdf(upper), torch.where(highest, _log_cdf(-lower), inner))


class GaussianDecoder(Decoder):
    """Gaussian density: for continuous data such as the 2-D toys, in nats."""

    unit = "nats"
    nats = 1.0

    @override
    def __call__(self, x0: Tensor, mean: Tensor, variance: Scalar) -> Tensor:
        variance = as_tensor(variance, x0)
        return 0.5 * ((x0 - mean).square() / variance + (2 * math.pi * variance).log())


def _log_cdf(z: Tensor) -> Tensor:
    """Log Φ(z), with all digits and a finite gradient however far in the tail."""
    root = math.sqrt(0.5)
    left, right = z.clamp(max=0), z.clamp(min=0)
    below = torch.log(0.5 * torch.special.erfcx(-left * root)) - 0.5 * left.square()
    above = torch.log1p(-0.5 * torch.special.erfc(right * root))
    return torch.where(z < 0, below, above)
