"""Training losses: an error of the network's output, weighted over noise levels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import huber_loss

from ddpm_lightning.configurable import Configurable
from ddpm_lightning.diffusion.denoiser import Denoiser, Prediction
from ddpm_lightning.diffusion.likelihood import Decoder, DiscretizedGaussian, bound_term
from ddpm_lightning.diffusion.posterior import first_variance
from ddpm_lightning.diffusion.schedules import Scalar, Schedule
from ddpm_lightning.errors import InputError


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

    def __call__(self, schedule: Schedule, t: Tensor, c_out: Scalar, like: Tensor) -> Scalar:
        """See the base class."""
        snr = _snr(schedule, t, like)
        return snr / (self.k + snr) ** self.gamma


class EDM(Weighting):
    """SNR + 1/sigma_data²: EDM's lambda(sigma) = (sigma² + sigma_data²)/(sigma·sigma_data)².

    EDM table 1 at the noise level sigma/alpha. Under EDMPreconditioning with the same sigma_data
    it is Plain.

    Args:
        sigma_data: Standard deviation of the data.

    Raises:
        InputError: sigma_data is not above 0.
    """

    def __init__(self, sigma_data: float = 0.5) -> None:
        if not sigma_data > 0:
            raise InputError(
                f"EDM(sigma_data={sigma_data}): give the data's standard deviation, above 0"
            )
        self.sigma_data = sigma_data

    def __call__(self, schedule: Schedule, t: Tensor, c_out: Scalar, like: Tensor) -> Scalar:
        """See the base class."""
        return _snr(schedule, t, like) + self.sigma_data**-2


class VLB(Weighting):
    """½·(SNR_{t−1} − SNR_t): the variational bound with FixedSmall, in nats (VDM eq. 13).

    The KL terms of DDPM eq. 12 for any prediction, up to the factor T of their number. At t = 1,
    where SNR_0 is infinite, it is 1/(2·beta_tilde_2), the Gaussian decoder of VariationalBound.
    """

    def __call__(self, schedule: Schedule, t: Tensor, c_out: Scalar, like: Tensor) -> Scalar:
        """See the base class."""
        before = _snr(schedule, t - 1, like)
        term = 0.5 * before * schedule.new_noise(t - 1, t, like)
        return torch.where(before.isinf(), 0.5 / first_variance(schedule), term)


class Objective(Configurable, ABC):
    """A training loss: per-sample terms of a noised batch, averaged and logged by the module."""

    @abstractmethod
    def __call__(self, denoiser: Denoiser, batch: NoisedBatch) -> dict[str, Tensor]:
        """Give per-sample terms [B]; ``loss`` is minimised, all are logged.

        Args:
            denoiser: The denoiser in training.
            batch: The noised batch.
        """

    def check(self, denoiser: Denoiser) -> None:
        """Raise InputError if this loss cannot train this denoiser."""


class Regression(Objective):
    """An elementwise error of the network's output, times the weight; MSE, L1 and Huber.

    Args:
        weighting: Weight over noise levels; Plain weighs the output's error equally.
    """

    def __init__(self, weighting: Weighting = Plain()) -> None:
        self.weighting = weighting

    @abstractmethod
    def error(self, output: Tensor, target: Tensor) -> Tensor:
        """Error of the output F, element by element."""

    def check(self, denoiser: Denoiser) -> None:
        """See the base class: it trains no variance."""
        if denoiser.variance.extra_channels(1) > 0:
            raise InputError(
                f"{type(self).__name__} leaves what {type(denoiser.variance).__name__} learns "
                "untrained; use the objective Hybrid or VariationalBound, or variance FixedLarge"
            )

    def score(self, denoiser: Denoiser, prediction: Prediction, batch: NoisedBatch) -> Tensor:
        """Weighted error [B] of a prediction that has been made.

        Args:
            denoiser: The denoiser in training.
            prediction: What it said about the batch.
            batch: The noised batch.
        """
        schedule, parameterization = denoiser.schedule, denoiser.parameterization
        assert prediction.output is not None
        target = parameterization.target(schedule, batch.t, batch.x0, batch.eps)
        c_out = parameterization.coefficients(schedule, batch.t, like=batch.x_t).c_out
        weight = self.weighting(schedule, batch.t, c_out, like=batch.x_t) * c_out**2
        return (weight * self.error(prediction.output, target)).flatten(1).mean(1)

    def __call__(self, denoiser: Denoiser, batch: NoisedBatch) -> dict[str, Tensor]:
        """See the base class."""
        prediction = denoiser(batch.x_t, batch.t, batch.y)
        return {"loss": self.score(denoiser, prediction, batch)}


class MSE(Regression):
    """Mean squared error of the network's output, times the weight (DDPM eq. 12 and 14).

    Args:
        weighting: Weight over noise levels; Plain weighs the output's error equally.
    """

    def error(self, output: Tensor, target: Tensor) -> Tensor:
        """See the base class."""
        return (output - target).square()


class L1(Regression):
    """Mean absolute error of the network's output, times the weight of the squared one.

    Args:
        weighting: Weight over noise levels; Plain weighs the output's error equally.
    """

    def error(self, output: Tensor, target: Tensor) -> Tensor:
        """See the base class."""
        return (output - target).abs()


class Huber(Regression):
    """Half the squared error up to delta, linear beyond, times the weight of the squared one.

    e²/2 where |e| ≤ delta, else delta·(|e| − delta/2), with e the error of the network's output.

    Args:
        delta: Where it turns linear.
        weighting: Weight over noise levels; Plain weighs the output's error equally.

    Raises:
        InputError: delta is not above 0.
    """

    def __init__(self, delta: float = 1.0, weighting: Weighting = Plain()) -> None:
        super().__init__(weighting)
        if not delta > 0:
            raise InputError(f"Huber(delta={delta}): delta must be above 0")
        self.delta = delta

    def error(self, output: Tensor, target: Tensor) -> Tensor:
        """See the base class."""
        return huber_loss(output, target, reduction="none", delta=self.delta)


class VariationalBound(Objective):
    """The variational bound itself, T times the term of the level drawn (DDPM eq. 5).

    KL of the two Gaussians of the step t → t − 1, and at t = 1 the decoder. Averaged over the
    levels 1…T it is the bound but for L_T, which has nothing to learn. Trains mean and variance.

    Args:
        decoder: p(x_0 | x_1): DiscretizedGaussian for images (the loss is in bits a dimension),
            GaussianDecoder for continuous data (nats a dimension).
    """

    def __init__(self, decoder: Decoder = DiscretizedGaussian()) -> None:
        self.decoder = decoder

    def __call__(self, denoiser: Denoiser, batch: NoisedBatch) -> dict[str, Tensor]:
        """See the base class."""
        prediction = denoiser(batch.x_t, batch.t, batch.y)
        return {"loss": denoiser.schedule.T * bound_term(prediction, batch.x0, self.decoder)}


class Hybrid(Objective):
    """L_simple + weight·L_vlb, where the bound trains the variance alone (improved DDPM eq. 16).

    The mean is detached in the bound. L_vlb is T times the term of the level drawn, as in
    VariationalBound.

    Args:
        simple: What trains the mean.
        weight: The paper's lambda.
        decoder: p(x_0 | x_1), as for VariationalBound.
    """

    def __init__(
        self,
        simple: Regression = MSE(),
        weight: float = 0.001,
        decoder: Decoder = DiscretizedGaussian(),
    ) -> None:
        self.simple = simple
        self.weight = weight
        self.decoder = decoder

    def check(self, denoiser: Denoiser) -> None:
        """See the base class."""
        if denoiser.variance.extra_channels(1) == 0:
            raise InputError(
                f"Hybrid trains a variance, but {type(denoiser.variance).__name__} learns "
                "nothing; use variance LearnedRange, or the objective MSE"
            )

    def __call__(self, denoiser: Denoiser, batch: NoisedBatch) -> dict[str, Tensor]:
        """See the base class."""
        self.check(denoiser)
        prediction = denoiser(batch.x_t, batch.t, batch.y)
        simple = self.simple.score(denoiser, prediction, batch)
        mean_detached = replace(prediction, x0=prediction.x0.detach())
        vlb = denoiser.schedule.T * bound_term(mean_detached, batch.x0, self.decoder)
        return {"loss": simple + self.weight * vlb, "simple": simple, "vlb": vlb}


def _snr(schedule: Schedule, t: Tensor, like: Tensor) -> Tensor:
    alpha, sigma = schedule.at(t, like)
    assert isinstance(alpha, Tensor)
    return (alpha / sigma) ** 2
