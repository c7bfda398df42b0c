"""Training losses: an error of the network's output, weighted over noise levels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import huber_loss
from typing_extensions import override

from ddpm_lightning.batch import Condition
from ddpm_lightning.configurable import Configurable
from ddpm_lightning.diffusion.bound import bound_term
from ddpm_lightning.diffusion.decoders import Decoder, DiscretizedGaussian
from ddpm_lightning.diffusion.denoiser import Denoiser
from ddpm_lightning.diffusion.levels import NoLevelError
from ddpm_lightning.diffusion.parameterizations import Eps
from ddpm_lightning.diffusion.prediction import Prediction
from ddpm_lightning.diffusion.weightings import Plain, Weighting
from ddpm_lightning.errors import InputError, above
from ddpm_lightning.networks.network import Network


@dataclass(frozen=True, eq=False)
class NoisedBatch:
    """A batch with noise: x_t = alpha_t·x0 + sigma_t·eps [B, ...], at levels t int64 [B]."""

    x0: Tensor
    eps: Tensor
    t: Tensor
    x_t: Tensor
    condition: Condition = Condition()


class Objective(Configurable, ABC):
    """A training loss: per-sample terms of a noised batch, averaged and logged by the module.

    Attributes:
        real_time_flag: The flag that makes of it a loss for real times.
    """

    real_time_flag = "--model.objective MSE"

    @abstractmethod
    def __call__(self, denoiser: Denoiser, batch: NoisedBatch) -> dict[str, Tensor]:
        """Give per-sample terms [B] of a noised batch; ``loss`` is minimised, all are logged."""

    def check(self, denoiser: Denoiser) -> None:
        """Raise InputError if this loss cannot train this denoiser."""

    def check_real_time(self, denoiser: Denoiser, t: float, shape: tuple[int, ...]) -> None:
        """Raise InputError if there is no loss at real time t; a trial without the network."""
        x, time = torch.zeros(1, *shape), torch.tensor([t])
        outputs = _Zeros(shape[0] + denoiser.variance.extra_channels(shape[0]))
        part = f"parameterization {_in_words(denoiser.parameterization)}"
        flag = f"--model.parameterization {Eps.__name__}"
        try:
            denoiser.parameterization.coefficients(denoiser.schedule.level(time, like=x))
            part, flag = f"objective {_in_words(self)}", self.real_time_flag
            self(replace(denoiser, net=outputs), NoisedBatch(x, x, time, x))
        except NoLevelError as error:
            raise InputError(
                f"model.{part} needs whole levels, and model.timesteps draws real times between "
                f"them: train on levels (--model.timesteps Uniform), or on real times with {flag}"
            ) from error


def _in_words(part: Configurable) -> str:
    """Name the class of a part, and those that stand in it in place of its own: MSE(VLB)."""
    own = [one for one in part.changed().values() if isinstance(one, Configurable)]
    inside = ", ".join(type(one).__name__ for one in own)
    return type(part).__name__ + f"({inside})" * bool(own)


class _Zeros(Network):
    """Stands for a network of so many output channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    @override
    def forward(self, x: Tensor, c_noise: Tensor, condition: Condition = Condition()) -> Tensor:
        return x.new_zeros(len(x), self.channels, *x.shape[2:])


class Regression(Objective):
    """An elementwise error of the network's output, times the weight; MSE, L1 and Huber.

    Args:
        weighting: Weight over noise levels; Plain weighs the output's error equally.
    """

    real_time_flag = "--model.objective.weighting EpsMSE"  # another objective keeps its weighting

    def __init__(self, weighting: Weighting = Plain()) -> None:
        self.weighting = weighting

    @abstractmethod
    def error(self, output: Tensor, target: Tensor) -> Tensor:
        """Error of the output F, element by element."""

    @override
    def check(self, denoiser: Denoiser) -> None:
        if denoiser.variance.extra_channels(1) > 0:
            raise InputError(
                f"{type(self).__name__} leaves what {type(denoiser.variance).__name__} learns "
                "untrained; use the objective Hybrid or VariationalBound, or variance FixedLarge"
            )

    def score(self, denoiser: Denoiser, prediction: Prediction, batch: NoisedBatch) -> Tensor:
        """Weighted error [B] of a prediction that was made of the noised batch."""
        level, c = prediction.level, prediction.coefficients
        assert prediction.output is not None
        assert c is not None
        target = denoiser.parameterization.target(level, c, batch.x0, batch.eps)
        weight = self.weighting(level, c.c_out) * c.c_out**2
        return (weight * self.error(prediction.output, target)).flatten(1).mean(1)

    @override
    def __call__(self, denoiser: Denoiser, batch: NoisedBatch) -> dict[str, Tensor]:
        prediction = denoiser(batch.x_t, batch.t, batch.condition)
        return {"loss": self.score(denoiser, prediction, batch)}


class MSE(Regression):
    """Mean squared error of the network's output, times the weight (DDPM eq. 12 and 14)."""

    @override
    def error(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square()


class L1(Regression):
    """Mean absolute error of the network's output, times the weight of the squared one."""

    @override
    def error(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - target).abs()


class Huber(Regression):
    """Half the squared error up to delta, linear beyond, times the weight of the squared one.

    e²/2 where |e| ≤ delta, else delta·(|e| − delta/2), with e the error of the network's output.

    Args:
        delta: Where it turns linear, above 0.
        weighting: Weight over noise levels; Plain weighs the output's error equally.
    """

    def __init__(self, delta: float = 1.0, weighting: Weighting = Plain()) -> None:
        super().__init__(weighting)
        above(0, self, delta=delta)
        self.delta = delta

    @override
    def error(self, output: Tensor, target: Tensor) -> Tensor:
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

    @override
    def __call__(self, denoiser: Denoiser, batch: NoisedBatch) -> dict[str, Tensor]:
        prediction = denoiser(batch.x_t, batch.t, batch.condition)
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

    @override
    def check(self, denoiser: Denoiser) -> None:
        if denoiser.variance.extra_channels(1) == 0:
            raise InputError(
                f"Hybrid trains a variance, but {type(denoiser.variance).__name__} learns "
                "nothing; use variance LearnedRange, or the objective MSE"
            )

    @override
    def __call__(self, denoiser: Denoiser, batch: NoisedBatch) -> dict[str, Tensor]:
        prediction = denoiser(batch.x_t, batch.t, batch.condition)
        simple = self.simple.score(denoiser, prediction, batch)
        mean_detached = prediction.with_x0(prediction.x0.detach())
        vlb = denoiser.schedule.T * bound_term(mean_detached, batch.x0, self.decoder)
        return {"loss": simple + self.weight * vlb, "simple": simple, "vlb": vlb}
