"""The Gaussians between two levels s < t of the forward process, any two: no respacing needed."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from ddpm_lightning.diffusion.levels import Scalar, Schedule


class Posterior(NamedTuple):
    """q(x_s | x_t, x_0) = N(x0·x_0 + x_t·x_t, variance·I): two coefficients and the variance."""

    x0: Scalar
    x_t: Scalar
    variance: Scalar


def transition_variance(
    schedule: Schedule, s: int | Tensor, t: int | Tensor, like: Tensor
) -> Scalar:
    """Variance of q(x_t | x_s) = N(alpha_t/alpha_s·x_s, ·); beta_t of DDPM where s = t − 1.

    sigma_t² − (alpha_t/alpha_s)²·sigma_s² = sigma_t²·(1 − SNR_t/SNR_s) (VDM, app. A).

    Args:
        schedule: The forward process.
        s: Lower level(s), an int or int64 [B]; s < t.
        t: Upper level(s), of the same kind.
        like: [B, ...] tensor that fixes dtype, device and rank.
    """
    _, sigma_t = schedule.at(t, like)
    return sigma_t**2 * schedule.new_noise(s, t, like)


def posterior(schedule: Schedule, s: int | Tensor, t: int | Tensor, like: Tensor) -> Posterior:
    """Mean coefficients and variance of q(x_s | x_t, x_0) (DDPM eq. 6–7; any pair: VDM, app. A).

    Mean alpha_s·n·x_0 + (alpha_t/alpha_s)·(sigma_s/sigma_t)²·x_t and variance sigma_s²·n, with
    n = 1 − SNR_t/SNR_s. Finite from alpha_T = 0 down to sigma_0 = 0, where it is x_0 itself.

    Args:
        schedule: The forward process.
        s: Lower level(s), an int or int64 [B]; s < t.
        t: Upper level(s), of the same kind.
        like: [B, ...] tensor that fixes dtype, device and rank.
    """
    (alpha_s, sigma_s), (alpha_t, sigma_t) = schedule.at(s, like), schedule.at(t, like)
    new_noise = schedule.new_noise(s, t, like)
    return Posterior(
        x0=alpha_s * new_noise,
        x_t=alpha_t / alpha_s * (sigma_s / sigma_t) ** 2,
        variance=sigma_s**2 * new_noise,
    )


def first_variance(schedule: Schedule) -> float:
    """beta_tilde_2, which stands for beta_tilde_1 = 0 where a variance must not vanish.

    The variance of the decoder p(x_0 | x_1), and the lower end of a learned range there (improved
    DDPM's code). sigma_1² if there is one level only.

    Args:
        schedule: The forward process.
    """
    sigma_1 = float(schedule.sigma[1])
    if schedule.T == 1:
        return sigma_1**2
    return sigma_1**2 * -math.expm1(float(schedule.log_snr[2]) - float(schedule.log_snr[1]))
