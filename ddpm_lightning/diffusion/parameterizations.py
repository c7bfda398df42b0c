"""What the network predicts, as four coefficients: x0_hat = c_skip·x_t + c_out·F(c_in·x_t)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from ddpm_lightning.configurable import Configurable
from ddpm_lightning.diffusion.levels import Level, Scalar, Schedule
from ddpm_lightning.diffusion.posterior import new_noise, posterior
from ddpm_lightning.errors import InputError, above


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
    def coefficients(self, level: Level) -> Coefficients:
        """Give the four coefficients at a level in 1…T."""

    def target(self, level: Level, c: Coefficients, x0: Tensor, eps: Tensor) -> Tensor:
        """Give what F should be, the F for which x0_hat = x0.

        target = ((1 − c_skip·alpha)·x_0 − c_skip·sigma·eps) / c_out, of data and noise [B, ...].
        """
        return ((1 - c.c_skip * level.alpha) * x0 - c.c_skip * level.sigma * eps) / c.c_out

    def check(self, schedule: Schedule) -> None:
        """Raise InputError if x0 cannot be recovered at some level of this schedule."""
        t = torch.arange(1, schedule.T + 1)
        coefficients = self.coefficients(schedule.level(t, like=schedule.alpha))
        for name, coefficient in zip(coefficients._fields, coefficients, strict=True):
            # Finite in float32, in which the network is trained, and squared there by the loss:
            # alpha_T = 1e-60 is 0.
            finite = torch.as_tensor(coefficient).float().square().isfinite().flatten()
            if not finite.all():
                level = int(t[~finite][0]) if len(finite) == len(t) else schedule.T
                raise InputError(
                    f"{type(self).__name__} cannot predict x0 with {type(schedule).__name__}: "
                    f"{name} is not finite at level {level}, where alpha = "
                    f"{float(schedule.alpha[level]):.3g}; a noisy input without data in it says "
                    "nothing about x0, and a prediction of its noise does not either: use V or X0 "
                    "(with Straight: Velocity)"
                )


def discrete_time(level: Level) -> Scalar:
    """The noise coordinate t − 1: networks count the noise levels 1…T from 0 (DDPM's code).

    A real time t = u·T gives a real number, the same one at a whole t.
    """
    t = level.t - 1
    return t.to(level.alpha.dtype) if isinstance(t, Tensor) else float(t)  # type: ignore[union-attr]


class Eps(Parameterization):
    """F predicts the noise: x0_hat = (x_t − sigma·F) / alpha (DDPM eq. 15)."""

    @override
    def coefficients(self, level: Level) -> Coefficients:
        alpha, sigma = level.alpha, level.sigma
        return Coefficients(1 / alpha, -sigma / alpha, 1.0, discrete_time(level))


class Score(Parameterization):
    """F predicts the score ∇ log q(x_t), times sigma or as it is (Song et al. 2021, eq. 7).

    Denoising score matching: the score of q(x_t | x_0) is −eps/sigma, and the best F of a squared
    error is its mean given x_t, the score of q(x_t) (Vincent 2011). So sigma·score is −eps_hat and
    x0_hat = (x_t + sigma²·score) / alpha: this is Eps with the other sign. Under the objective MSE
    with EpsMSE the loss is score matching weighted by lambda = sigma², with ScoreMSE by 1.

    Args:
        scaled: F = sigma·score, of one size at all levels; false: F = score.
    """

    def __init__(self, scaled: bool = True) -> None:
        self.scaled = scaled

    @override
    def coefficients(self, level: Level) -> Coefficients:
        alpha, sigma = level.alpha, level.sigma
        c_out = (sigma if self.scaled else sigma**2) / alpha
        return Coefficients(1 / alpha, c_out, 1.0, discrete_time(level))

    @override
    def target(self, level: Level, c: Coefficients, x0: Tensor, eps: Tensor) -> Tensor:
        return -eps if self.scaled else -eps / level.sigma  # the same, without its cancellation


class X0(Parameterization):
    """F predicts the data: x0_hat = F (DDPM sec. 3.2)."""

    @override
    def coefficients(self, level: Level) -> Coefficients:
        return Coefficients(0.0, 1.0, 1.0, discrete_time(level))


class V(Parameterization):
    """F predicts v = alpha·eps − sigma·x0 (progressive distillation, app. D).

    x0_hat = (alpha·x_t − sigma·F) / (alpha² + sigma²); the denominator is 1 when the process
    preserves variance. Safe at zero terminal SNR.
    """

    @override
    def coefficients(self, level: Level) -> Coefficients:
        alpha, sigma = level.alpha, level.sigma
        norm = alpha**2 + sigma**2
        return Coefficients(alpha / norm, -sigma / norm, 1.0, discrete_time(level))


class PosteriorMean(Parameterization):
    """F predicts the mean of q(x_{t−1} | x_t, x_0), as the first diffusion papers do.

    F = A·x0_hat + B·x_t with the posterior's coefficients (DDPM eq. 7), so
    x0_hat = (F − B·x_t) / A.
    """

    @override
    def coefficients(self, level: Level) -> Coefficients:
        q = posterior(level.previous, level)
        return Coefficients(-q.x_t / q.x0, 1 / q.x0, 1.0, discrete_time(level))


class MeanShift(Parameterization):
    """F predicts what the reverse mean adds to the forward one, in forward standard deviations.

    mean of x_{t−1} = sqrt(1 − beta_t)·x_t + sqrt(beta_t)·F, as in the code of the first diffusion
    paper (Sohl-Dickstein et al. 2015). PosteriorMean asks the network for x_t itself, exact to
    sqrt(beta_t), where beta_t is small; here all levels ask for numbers of one size.
    F = sqrt(beta_t)·alpha_{t−1}·(x0 − alpha/sigma·eps), which defines it on every schedule, so
    x0_hat = (alpha·x_t + sigma²/(sqrt(beta_t)·alpha_{t−1})·F) / (alpha² + sigma²).
    """

    @override
    def coefficients(self, level: Level) -> Coefficients:
        alpha, sigma, before = level.alpha, level.sigma, level.previous
        norm = alpha**2 + sigma**2
        std = sigma * new_noise(before, level) ** 0.5  # sqrt(beta_t)
        return Coefficients(
            alpha / norm, sigma**2 / (std * before.alpha * norm), 1.0, discrete_time(level)
        )


class Velocity(Parameterization):
    """F predicts eps − x0: flow matching, rectified flow (Liu et al. 2023, eq. 1).

    With the schedule Straight this is T times dx_t/dt. x0_hat = (x_t − sigma·F) / (alpha + sigma)
    on any schedule. Safe at zero terminal SNR.
    """

    @override
    def coefficients(self, level: Level) -> Coefficients:
        total = level.alpha + level.sigma
        return Coefficients(1 / total, -level.sigma / total, 1.0, discrete_time(level))

    @override
    def target(self, level: Level, c: Coefficients, x0: Tensor, eps: Tensor) -> Tensor:
        return eps - x0  # the same, without its cancellation at small sigma


class EDMPreconditioning(Parameterization):
    """Inputs, outputs and targets of F have unit variance at every level (EDM table 1, app. B.6).

    EDM's coefficients at the noise level sigma/alpha, for an x_t that still carries its alpha:
    with D² = sigma² + alpha²·sigma_data²,
    c_skip = alpha·sigma_data²/D², c_out = sigma·sigma_data/D, c_in = 1/D and
    c_noise = ln(sigma/alpha)/4.

    Args:
        sigma_data: Standard deviation of the data; 0.5 suits images in [−1, 1].
    """

    def __init__(self, sigma_data: float = 0.5) -> None:
        above(0, self, sigma_data=sigma_data)
        self.sigma_data = sigma_data

    @override
    def coefficients(self, level: Level) -> Coefficients:
        total = level.sigma**2 + (level.alpha * self.sigma_data) ** 2
        c_noise = -level.log_snr / 8
        return Coefficients(
            c_skip=level.alpha * self.sigma_data**2 / total,
            c_out=level.sigma * self.sigma_data / total**0.5,
            c_in=total**-0.5,
            c_noise=c_noise.flatten() if isinstance(c_noise, Tensor) else c_noise,
        )

    @override
    def target(self, level: Level, c: Coefficients, x0: Tensor, eps: Tensor) -> Tensor:
        # (sigma/sigma_data·x0 − alpha·sigma_data·eps) / D: the same, without its cancellation.
        alpha, sigma, data = level.alpha, level.sigma, self.sigma_data
        total = sigma**2 + (alpha * data) ** 2
        return (sigma / data * x0 - alpha * data * eps) / total**0.5
