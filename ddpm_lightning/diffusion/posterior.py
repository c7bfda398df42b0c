"""The Gaussians between two levels s < t of the forward process, any two: no respacing needed."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm_lightning.diffusion.levels import Level, Scalar, Schedule


class Posterior(NamedTuple):
    """q(x_s | x_t, x_0) = N(x0·x_0 + x_t·x_t, variance·I): two coefficients and the variance."""

    x0: Scalar
    x_t: Scalar
    variance: Scalar


def new_noise(s: Level, t: Level) -> Scalar:
    """Share of x_t's noise variance that came since level s < t: 1 − SNR_t/SNR_s (VDM, app. A).

    By expm1 of the difference in log SNR, which keeps the digits that sigma_t² −
    (alpha_t/alpha_s)²·sigma_s² loses between neighbours. 1 at s = 0 and where alpha_t = 0.
    """
    s, t = s.matching(t), t.matching(s)
    difference = (t.log_snr - s.log_snr) + (t.log_snr_rest - s.log_snr_rest)
    return -torch.expm1(difference) if isinstance(difference, Tensor) else -math.expm1(difference)


def transition_variance(s: Level, t: Level) -> Scalar:
    """Variance of q(x_t | x_s) = N(alpha_t/alpha_s·x_s, ·); beta_t of DDPM where s = t − 1.

    sigma_t² − (alpha_t/alpha_s)²·sigma_s² = sigma_t²·(1 − SNR_t/SNR_s) (VDM, app. A).
    """
    return t.sigma**2 * new_noise(s, t)


def posterior(s: Level, t: Level) -> Posterior:
    """Mean coefficients and variance of q(x_s | x_t, x_0) (DDPM eq. 6–7; any s < t: VDM, app. A).

    Mean alpha_s·n·x_0 + (alpha_t/alpha_s)·(sigma_s/sigma_t)²·x_t and variance sigma_s²·n, with
    n = 1 − SNR_t/SNR_s. Finite from alpha_T = 0 down to sigma_0 = 0, where it is x_0 itself.
    """
    n = new_noise(s, t)
    return Posterior(
        x0=s.alpha * n,
        x_t=t.alpha / s.alpha * (s.sigma / t.sigma) ** 2,
        variance=s.sigma**2 * n,
    )


def first_variance(schedule: Schedule) -> float:
    """beta_tilde_2, which stands for beta_tilde_1 = 0 where a variance must not vanish.

    The variance of the decoder p(x_0 | x_1), and the lower end of a learned range there (improved
    DDPM's code). sigma_1² if there is one level only.
    """
    first = schedule.level(1)
    variance = first.sigma**2 if schedule.T == 1 else posterior(first, first.at(2)).variance
    return float(variance)
