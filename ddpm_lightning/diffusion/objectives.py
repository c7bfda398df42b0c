"""Training losses: an error of the network's output, weighted over noise levels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from ddpm_lightning.configurable import Configurable
from ddpm_lightning.diffusion.denoiser import Denoiser
from ddpm_lightning.diffusion.schedules import Scalar, Schedule


@dataclass(frozen=True, eq=False)
class NoisedBatch:
    """A training batch: clean data, the noise added to it and the result, at one level a row.

    Args:
        x0: [B, ...] data.
        eps: [B, ...] standard normal noise.
        t: int64 [B] levels in 1…T.
        x_t: [B, ...] alpha_t·x0 + sigma_t·eps.
        y: int64 [B] labels (−1: dropped), or None.
    """

    x0: Tensor
    eps: Tensor
    t: Tensor
    x_t: Tensor
    y: Tensor | None = None


class Weighting(Configurable, ABC):
    """Weight over noise levels, stated on the squared error of x0 under any parameterization."""

    @abstractmethod
    def __call__(self, schedule: Schedule, t: Tensor, c_out: Scalar, like: Tensor) -> Scalar:
        """Weight of ‖x_0 − x0_hat‖² at level t.

        Args:
            schedule: The forward process.
            t: int64 [B] levels in 1…T.
            c_out: The parameterization's output coefficient at t.
            like: [B, ...] tensor that fixes dtype, device and rank.
        """


class Plain(Weighting):
    """1/c_out²: the unweighted error of the network's output, whatever it predicts."""

    def __call__(self, schedule: Schedule, t: Tensor, c_out: Scalar, like: Tensor) -> Scalar:
        """See the base class."""
        return 1 / c_out**2


class EpsMSE(Weighting):
    """SNR: the paper's L_simple (DDPM eq. 14), an unweighted error of eps, for any prediction."""

    def __call__(self, schedule: Schedule, t: Tensor, c_out: Scalar, like: Tensor) -> Scalar:
        """See the base class."""
        return _snr(schedule, t, like)


class MinSNR(Weighting):
    """min(SNR, gamma): levels with little noise stop dominating (Hang et al. 2023, sec. 3.4).

    Args:
        gamma: The cap; the paper's 5.
    """

    def __init__(self, gamma: float = 5.0) -> None:
        self.gamma = gamma

    def __call__(self, schedule: Schedule, t: Tensor, c_out: Scalar, like: Tensor) -> Scalar:
        """See the base class."""
        snr = _snr(schedule, t, like)
        return snr.clamp(max=self.gamma)


class Objective(Configurable, ABC):
    """A training loss: per-sample terms of a noised batch, averaged and logged by the module."""

    @abstractmethod
    def __call__(self, denoiser: Denoiser, batch: NoisedBatch) -> dict[str, Tensor]:
        """Give per-sample terms [B]; ``loss`` is minimised, all are logged.

        Args:
            denoiser: The denoiser in training.
            batch: The noised batch.
        """


class MSE(Objective):
    """Mean squared error of the network's output, times the weight (DDPM eq. 12 and 14).

    Args:
        weighting: Weight over noise levels; Plain weighs the output's error equally.
    """

    def __init__(self, weighting: Weighting = Plain()) -> None:
        self.weighting = weighting

    def __call__(self, denoiser: Denoiser, batch: NoisedBatch) -> dict[str, Tensor]:
        """See the base class."""
        schedule, parameterization = denoiser.schedule, denoiser.parameterization
        output = denoiser(batch.x_t, batch.t, batch.y).output
        assert output is not None
        target = parameterization.target(schedule, batch.t, batch.x0, batch.eps)
        c_out = parameterization.coefficients(schedule, batch.t, like=batch.x_t).c_out
        weight = self.weighting(schedule, batch.t, c_out, like=batch.x_t) * c_out**2
        return {"loss": (weight * (output - target).square()).flatten(1).mean(1)}


def _snr(schedule: Schedule, t: Tensor, like: Tensor) -> Tensor:
    alpha, sigma = schedule.at(t, like)
    assert isinstance(alpha, Tensor)
    return (alpha / sigma) ** 2
