"""A prediction of x0 with its reverse variance, and the two fixed variances."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

from torch import Tensor
from typing_extensions import override

from ddpm_lightning.configurable import Configurable
from ddpm_lightning.diffusion.levels import Level, Scalar, Schedule, Time
from ddpm_lightning.diffusion.parameterizations import Coefficients
from ddpm_lightning.diffusion.posterior import first_variance, posterior, transition_variance


@dataclass(frozen=True, eq=False)
class Prediction:
    """Prediction from noisy data: x0, and from it eps and the reverse variance.

    Args:
        x0: [B, ...] expectation of the data given x_t.
        x_t: [B, ...] the noisy input.
        level: Its level(s).
        reverse_variance: The rule behind :meth:`variance`.
        output: [B, ...] the network's raw output F; None where x0 was changed since.
        coefficients: By which x0 was read off the output; None without one.
        extra: [B, ...] the network's extra channels for a learned variance, or None.
    """

    x0: Tensor
    x_t: Tensor
    level: Level
    reverse_variance: Variance
    output: Tensor | None = None
    coefficients: Coefficients | None = None
    extra: Tensor | None = None

    @property
    def t(self) -> Time:
        """Number of the level(s)."""
        return self.level.t

    @property
    def schedule(self) -> Schedule:
        """The forward process."""
        return self.level.schedule

    @property
    def eps(self) -> Tensor:
        """[B, ...] the noise that belongs to x0: (x_t − alpha·x0) / sigma, whatever changed x0."""
        return (self.x_t - self.level.alpha * self.x0) / self.level.sigma

    def variance(self, s: Time) -> Scalar:
        """Variance of the reverse step p(x_s | x_t), for any s < t."""
        return self.reverse_variance(self, self.level.at(s))

    def rows(self, index: slice) -> Prediction:
        """Choose rows of a prediction; its output is dropped."""
        return replace(
            self,
            x0=self.x0[index],
            x_t=self.x_t[index],
            level=self.level.at(self.t[index]) if isinstance(self.t, Tensor) else self.level,
            output=None,
            coefficients=None,
            extra=None if self.extra is None else self.extra[index],
        )

    def with_x0(self, x0: Tensor) -> Prediction:
        """Change x0: eps follows, and the output is dropped."""
        return replace(self, x0=x0, output=None, coefficients=None)

    def with_eps(self, eps: Tensor) -> Prediction:
        """Change eps: x0 = (x_t − sigma·eps) / alpha. Needs alpha > 0."""
        return self.with_x0((self.x_t - self.level.sigma * eps) / self.level.alpha)

    def clip(
        self, data_range: tuple[float, float] | None, threshold: float | None = None
    ) -> Prediction:
        """Limit x0 to the data's range; eps follows. Without a range nothing changes.

        Args:
            data_range: [low, high], or None.
            threshold: Share of each sample's values that stays, for dynamic thresholding (Imagen,
                sec. 2.3): with r their reach from the range's middle, in half ranges, x0 is cut
                at r and divided by it where r > 1. None cuts at the range.
        """
        if data_range is None:
            return self
        low, high = data_range
        if threshold is None:
            return self.with_x0(self.x0.clamp(low, high))
        middle, half = (low + high) / 2, (high - low) / 2
        scaled = (self.x0 - middle) / half
        distances = scaled.abs().flatten(1)
        # Less 1e-9, because 0.55·100 is a little more than 55 in floating point.
        kept = math.ceil(threshold * distances.shape[1] - 1e-9)
        # kthvalue, because quantile refuses more than 2^24 numbers.
        reach = distances.kthvalue(max(kept, 1), dim=1).values.clamp(min=1)
        reach = reach.view(-1, *[1] * (self.x0.ndim - 1))  # [B, 1, …]
        return self.with_x0(middle + half * scaled.clamp(-reach, reach) / reach)


class Variance(Configurable, ABC):
    """Variance of the reverse step. A learned one asks the network for extra output channels."""

    def extra_channels(self, channels: int) -> int:
        """How many output channels it needs beside the prediction's, for data of C channels."""
        return 0

    @abstractmethod
    def __call__(self, prediction: Prediction, s: Level) -> Scalar:
        """Variance of p(x_s | x_t), from the prediction at x_t and its extra channels if any."""

    def decoder(self, prediction: Prediction) -> Scalar:
        """Variance of p(x_0 | x_1) as a density of the data, in the variational bound.

        beta_tilde_2 unless a class knows better: the step to level 0 itself adds no noise, and a
        density without variance is infinite (improved DDPM's code does the same).
        """
        return first_variance(prediction.schedule)


class FixedSmall(Variance):
    """The posterior's beta_tilde: optimal where data is a single point (DDPM sec. 3.2)."""

    @override
    def __call__(self, prediction: Prediction, s: Level) -> Scalar:
        return posterior(s, prediction.level).variance


class FixedLarge(Variance):
    """The forward process's beta: optimal where data is standard normal (DDPM sec. 3.2)."""

    @override
    def __call__(self, prediction: Prediction, s: Level) -> Scalar:
        return transition_variance(s, prediction.level)
