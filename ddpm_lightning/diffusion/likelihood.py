"""The variational bound on −log p(x_0), term by term (DDPM eq. 5), in bits or nats a dimension."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ddpm_lightning.configurable import Configurable
from ddpm_lightning.diffusion.denoiser import Prediction
from ddpm_lightning.diffusion.posterior import posterior
from ddpm_lightning.diffusion.schedules import Scalar, Schedule
from ddpm_lightning.errors import InputError


class Decoder(Configurable, ABC):
    """p(x_0 | x_1), the last step as a density of the data, and the unit of the bound with it."""

    unit: str
    """``bits`` for data in steps, ``nats`` for continuous data; a dimension each."""
    nats: float
    """Nats in one unit."""

    @abstractmethod
    def __call__(self, x0: Tensor, mean: Tensor, variance: Scalar) -> Tensor:
        """Give −log p(x_0) [B, ...] of each dimension, in nats.

        Args:
            x0: [B, ...] data.
            mean: [B, ...] of the decoder's Gaussian.
            variance: Of the decoder's Gaussian.
        """


class DiscretizedGaussian(Decoder):
    """The Gaussian's mass in the bin around x_0 (DDPM eq. 13): for images, in bits.

    The outermost bins reach to infinity. The mass is computed from the tail it lies in, so it is
    exact however improbable x_0 is, without a floor.

    Args:
        bins: Grey levels in [−1, 1]: 256 for 8-bit images.

    Raises:
        InputError: Fewer than two bins.
    """

    unit = "bits"
    nats = math.log(2)

    def __init__(self, bins: int = 256) -> None:
        if bins < 2:
            raise InputError(f"DiscretizedGaussian(bins={bins}): at least two, 256 for 8 bits")
        self.bins = bins

    def __call__(self, x0: Tensor, mean: Tensor, variance: Scalar) -> Tensor:
        """See the base class."""
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
    """The Gaussian density itself: for continuous data such as the 2-D toys, in nats."""

    unit = "nats"
    nats = 1.0

    def __call__(self, x0: Tensor, mean: Tensor, variance: Scalar) -> Tensor:
        """See the base class."""
        variance = _tensor(variance, x0)
        return 0.5 * ((x0 - mean).square() / variance + (2 * math.pi * variance).log())


def gaussian_kl(difference: Tensor, variance_q: Scalar, variance_p: Scalar) -> Tensor:
    """KL(q‖p) [B, ...] of two Gaussians, dimension by dimension, in nats.

    ½·(r − 1 − ln r + difference²/variance_p) with r = variance_q/variance_p.

    Args:
        difference: [B, ...] of the means.
        variance_q: Variance of q.
        variance_p: Variance of p.
    """
    log_ratio = _tensor(variance_q, difference).log() - _tensor(variance_p, difference).log()
    return 0.5 * (torch.expm1(log_ratio) - log_ratio + difference.square() / variance_p)


def bound_term(prediction: Prediction, x0: Tensor, decoder: Decoder) -> Tensor:
    """L_{t−1} of the bound (DDPM eq. 5): KL for t > 1, the decoder's −log p(x_0 | x_1) at t = 1.

    Args:
        prediction: Of the model at x_t, each row at a level of its own or all at one.
        x0: [B, ...] the data under x_t.
        decoder: p(x_0 | x_1).

    Returns:
        [B], averaged over dimensions, in the decoder's unit.
    """
    schedule, x_t, variance = prediction.schedule, prediction.x_t, prediction.reverse_variance
    t = prediction.t
    if isinstance(t, int):
        t = torch.full((len(x_t),), t, device=x_t.device)
    first = (t == 1).view((-1,) + (1,) * (x_t.ndim - 1))
    # Both are computed for every row, each at a level where it is finite, as its gradient is.
    s = t - 1
    q = posterior(schedule, s, t, like=x_t)
    variance_q = torch.where(first, 1.0, _tensor(q.variance, x_t))
    variance_p = torch.where(first, 1.0, _tensor(variance(prediction, s), x_t))
    kl = gaussian_kl(q.x0 * (x0 - prediction.x0), variance_q, variance_p)
    variance_0 = torch.where(first, _tensor(variance.decoder(prediction), x_t), 1.0)
    nll = decoder(x0, prediction.x0, variance_0)
    return torch.where(first, nll, kl).flatten(1).mean(1) / decoder.nats


def prior_term(schedule: Schedule, x0: Tensor, decoder: Decoder) -> Tensor:
    """L_T of the bound (DDPM eq. 5): KL(q(x_T | x_0) ‖ N(0, prior_std²)); nothing to learn in it.

    Args:
        schedule: The forward process.
        x0: [B, ...] data.
        decoder: Gives the unit.

    Returns:
        [B], averaged over dimensions, in the decoder's unit.
    """
    alpha, sigma = schedule.at(schedule.T, like=x0)
    kl = gaussian_kl(alpha * x0, sigma**2, schedule.prior_std**2)
    return kl.flatten(1).mean(1) / decoder.nats


def _log_cdf(z: Tensor) -> Tensor:
    """Log Φ(z), with all digits and a finite gradient however far in the tail."""
    root = math.sqrt(0.5)
    left, right = z.clamp(max=0), z.clamp(min=0)
    below = torch.log(0.5 * torch.special.erfcx(-left * root)) - 0.5 * left.square()
    above = torch.log1p(-0.5 * torch.special.erfc(right * root))
    return torch.where(z < 0, below, above)


def _tensor(scalar: Scalar, like: Tensor) -> Tensor:
    return torch.as_tensor(scalar, dtype=like.dtype, device=like.device)
