"""What the network predicts, as four coefficients: x0_hat = c_skip·x_t + c_out·F(c_in·x_t)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm_lightning.configurable import Configurable
from ddpm_lightning.diffusion.schedules import Scalar, Schedule
from ddpm_lightning.errors import InputError


class Coefficients(NamedTuple):
    """x0_hat = c_skip·x_t + c_out·F(c_in·x_t, c_noise) (EDM eq. 7)."""

    c_skip: Scalar
    c_out: Scalar
    c_in: Scalar
    c_noise: Scalar
    """Noise coordinate for the network: a float or [B]."""


class Parameterization(Configurable, ABC):
    """How a prediction of x0 is read off the network's output F. All are affine in F."""

    @abstractmethod
    def coefficients(self, schedule: Schedule, t: int | Tensor, like: Tensor) -> Coefficients:
        """Give the four coefficients at level(s) t.

        Args:
            schedule: The forward process.
            t: A level in 1…T, or int64 [B].
            like: [B, ...] tensor that fixes dtype, device and rank.
        """

    def target(self, schedule: Schedule, t: int | Tensor, x0: Tensor, eps: Tensor) -> Tensor:
        """Give what F should be: the F for which x0_hat = x0, as a function of x0 and eps.

        target = ((1 − c_skip·alpha)·x_0 − c_skip·sigma·eps) / c_out

        Args:
            schedule: The forward process.
            t: A level in 1…T, or int64 [B].
            x0: [B, ...] data.
            eps: [B, ...] the noise in x_t.
        """
        alpha, sigma = schedule.at(t, like=x0)
        c_skip, c_out, _, _ = self.coefficients(schedule, t, like=x0)
        return ((1 - c_skip * alpha) * x0 - c_skip * sigma * eps) / c_out

    def check(self, schedule: Schedule) -> None:
        """Raise InputError if x0 cannot be recovered at some level of this schedule."""
        # The last level is the extreme one. Finite in float32, in which networks are trained:
        # alpha_T = 1e-60 is 0 there.
        try:
            coefficients = self.coefficients(schedule, schedule.T, like=torch.empty(0))
            worst = max(abs(float(c)) for c in coefficients)
        except (ZeroDivisionError, OverflowError, ValueError):
            worst = math.inf
        if not worst < torch.finfo(torch.float32).max:
            raise InputError(
                f"{type(self).__name__} cannot predict x0 with {type(schedule).__name__}: where "
                "alpha is 0 the noisy input says nothing about x0, so a prediction of the noise "
                "does not either; use V or X0"
            )


def discrete_time(t: int | Tensor, like: Tensor) -> Scalar:
    """The noise coordinate t − 1: networks count the noise levels 1…T from 0 (DDPM's code)."""
    if isinstance(t, int):
        return float(t - 1)
    return (t - 1).to(torch.promote_types(like.dtype, torch.float32))


class Eps(Parameterization):
    """F predicts the noise: x0_hat = (x_t − sigma·F) / alpha (DDPM eq. 15)."""

    def coefficients(self, schedule: Schedule, t: int | Tensor, like: Tensor) -> Coefficients:
        """See the base class."""
        alpha, sigma = schedule.at(t, like)
        return Coefficients(1 / alpha, -sigma / alpha, 1.0, discrete_time(t, like))


class X0(Parameterization):
    """F predicts the data: x0_hat = F (DDPM sec. 3.2)."""

    def coefficients(self, schedule: Schedule, t: int | Tensor, like: Tensor) -> Coefficients:
        """See the base class."""
        return Coefficients(0.0, 1.0, 1.0, discrete_time(t, like))


class V(Parameterization):
    """F predicts v = alpha·eps − sigma·x0 (progressive distillation, app. D).

    x0_hat = (alpha·x_t − sigma·F) / (alpha² + sigma²); the denominator is 1 when the process
    preserves variance. Safe at zero terminal SNR.
    """

    def coefficients(self, schedule: Schedule, t: int | Tensor, like: Tensor) -> Coefficients:
        """See the base class."""
        alpha, sigma = schedule.at(t, like)
        norm = alpha**2 + sigma**2
        return Coefficients(alpha / norm, -sigma / norm, 1.0, discrete_time(t, like))
