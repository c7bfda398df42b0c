"""The Gaussians between two levels s < t of the forward process, any two: no respacing needed."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ddpm_lightning.diffusion.schedules import Scalar, Schedule


class Posterior(NamedTuple):
    """q(x_s | x_t, x_0) = N(x0·x_0 + x_t·x_t, variance·I): two coefficients and the variance."""

    x0: Scalar
    x_t: Scalar
    variance: Scalar


def transition_variance(
    schedule: Schedule, s: int | Tensor, t: int | Tensor, like: Tensor
) -> Scalar:
    """Variance of q(x_t | x_s) = N(alpha_t/alpha_s·x_s, ·); beta_t of DDPM where s = t − 1.

    sigma_t² − (alpha_t/alpha_s)²·sigma_s² (VDM, app. A).

    Args:
        schedule: The forward process.
        s: Lower level(s), an int or int64 [B]; s < t.
        t: Upper level(s), of the same kind.
        like: [B, ...] tensor that fixes dtype, device and rank.
    """
    (alpha_s, sigma_s), (alpha_t, sigma_t) = schedule.at(s, like), schedule.at(t, like)
    return sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2


def posterior(schedule: Schedule, s: int | Tensor, t: int | Tensor, like: Tensor) -> Posterior:
    """Mean coefficients and variance of q(x_s | x_t, x_0) (DDPM eq. 6–7; any pair: VDM, app. A).

    Finite from alpha_T = 0 down to sigma_0 = 0, where it is x_0 itself.

    Args:
        schedule: The forward process.
        s: Lower level(s), an int or int64 [B]; s < t.
        t: Upper level(s), of the same kind.
        like: [B, ...] tensor that fixes dtype, device and rank.
    """
    (alpha_s, sigma_s), (alpha_t, sigma_t) = schedule.at(s, like), schedule.at(t, like)
    noise_ratio = (sigma_s / sigma_t) ** 2
    added = transition_variance(schedule, s, t, like)
    return Posterior(
        x0=alpha_s * added / sigma_t**2,
        x_t=alpha_t / alpha_s * noise_ratio,
        variance=added * noise_ratio,
    )
