"""Variance of the reverse step p(x_s | x_t), for any pair of levels s < t."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from ddpm_lightning.configurable import Configurable
from ddpm_lightning.diffusion.posterior import posterior, transition_variance
from ddpm_lightning.diffusion.schedules import Scalar

if TYPE_CHECKING:
    from ddpm_lightning.diffusion.denoiser import Prediction


class Variance(Configurable, ABC):
    """Variance of the reverse step. A learned one asks the network for extra output channels."""

    def extra_channels(self, channels: int) -> int:
        """How many output channels it needs beside the prediction's, for data of C channels."""
        return 0

    @abstractmethod
    def __call__(self, prediction: Prediction, s: int) -> Scalar:
        """Variance of p(x_s | x_t) for a prediction at level t.

        Args:
            prediction: What the denoiser said at x_t, with the extra channels if there are any.
            s: The level to step to, s < t.
        """


class FixedSmall(Variance):
    """The posterior's beta_tilde: optimal where data is a single point (DDPM sec. 3.2)."""

    def __call__(self, prediction: Prediction, s: int) -> Scalar:
        """See the base class."""
        return posterior(prediction.schedule, s, prediction.t, prediction.x_t).variance


class FixedLarge(Variance):
    """The forward process's beta: optimal where data is standard normal (DDPM sec. 3.2)."""

    def __call__(self, prediction: Prediction, s: int) -> Scalar:
        """See the base class."""
        return transition_variance(prediction.schedule, s, prediction.t, prediction.x_t)
