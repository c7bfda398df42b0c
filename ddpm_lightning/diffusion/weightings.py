"""Weights of the training loss over noise levels."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from typing_extensions import override

from ddpm_lightning.configurable import Configurable
from ddpm_lightning.diffusion.levels import Level, Scalar
from ddpm_lightning.diffusion.posterior import first_variance, new_noise
from ddpm_lightning.errors import above


class Weighting(Configurable, ABC):
    """Weight over noise levels, stated on the squared error of x0 under any parameterization."""

    @abstractmethod
    def __call__(self, level: Level, c_out: Scalar) -> Scalar:
        """Weight of ‖x_0 − x0_hat‖² at level(s) in 1…T, with the output's coefficient c_out."""


class Plain(Weighting):
    """1/c_out²: the unweighted error of the network's output, whatever it predicts."""

    @override
    def __call__(self, level: Level, c_out: Scalar) -> Scalar:
        return 1 / c_out**2


class EpsMSE(Weighting):
    """SNR: the paper's L_simple (DDPM eq. 14), an unweighted error of eps, for any prediction.

    It is score matching weighted by lambda = sigma² (Song et al. 2021, eq. 7).
    """

    @override
    def __call__(self, level: Level, c_out: Scalar) -> Scalar:
        return level.snr


class ScoreMSE(Weighting):
    """SNR/sigma²: an unweighted error of the score −eps/sigma, lambda = 1 in score matching.

    It is dominated by the lowest levels, where the score is largest (Song & Ermon 2019, sec. 4.2).
    """

    @override
    def __call__(self, level: Level, c_out: Scalar) -> Scalar:
        return level.snr / level.sigma**2


class MinSNR(Weighting):
    """min(SNR, gamma): levels with little noise stop dominating (Hang et al. 2023, sec. 3.4).

    Args:
        gamma: The cap; the paper's 5.
    """

    def __init__(self, gamma: float = 5.0) -> None:
        self.gamma = gamma

    @override
    def __call__(self, level: Level, c_out: Scalar) -> Scalar:
        return torch.as_tensor(level.snr).clamp(max=self.gamma)


class P2(Weighting):
    """SNR/(k + SNR)^gamma: less for the levels of fine detail (Choi et al. 2022).

    L_simple's weight divided by (k + SNR)^gamma; gamma = 0 is EpsMSE.

    Args:
        k: Keeps the divisor away from 0; the paper's 1.
        gamma: Strength; the paper's 0.5 or 1.
    """

    def __init__(self, k: float = 1.0, gamma: float = 1.0) -> None:
        self.k = k
        self.gamma = gamma

    @override
    def __call__(self, level: Level, c_out: Scalar) -> Scalar:
        return level.snr / (self.k + level.snr) ** self.gamma


class EDM(Weighting):
    """SNR + 1/sigma_data²: EDM's lambda(sigma) = (sigma² + sigma_data²)/(sigma·sigma_data)².

    EDM table 1 at the noise level sigma/alpha. Under EDMPreconditioning with the same sigma_data
    it is Plain.

    Args:
        sigma_data: Standard deviation of the data.
    """

    def __init__(self, sigma_data: float = 0.5) -> None:
        above(0, self, sigma_data=sigma_data)
        self.sigma_data = sigma_data

    @override
    def __call__(self, level: Level, c_out: Scalar) -> Scalar:
        return level.snr + self.sigma_data**-2


class VLB(Weighting):
    """½·(SNR_{t−1} − SNR_t): the variational bound with FixedSmall, in nats (VDM eq. 13).

    The KL terms of DDPM eq. 12 for any prediction, up to the factor T of their number. At t = 1,
    where SNR_0 is infinite, it is 1/(2·beta_tilde_2), the Gaussian decoder of VariationalBound.
    """

    @override
    def __call__(self, level: Level, c_out: Scalar) -> Scalar:
        before = level.previous
        snr = torch.as_tensor(before.snr)
        term = 0.5 * snr * new_noise(before, level)
        return torch.where(snr.isinf(), 0.5 / first_variance(level.schedule), term)
