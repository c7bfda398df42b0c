"""The reverse SDE, discretised as the forward process is."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from typing_extensions import override

from ddpm_lightning.diffusion.posterior import transition_variance
from ddpm_lightning.diffusion.prediction import Prediction
from ddpm_lightning.diffusion.samplers.sampler import SingleStep


class ReverseDiffusion(SingleStep):
    """The reverse SDE by the steps of the forward process (Song et al. 2021, app. E).

    With a = alpha_t/alpha_s and v the variance of q(x_t | x_s),
    x_s = (2 − a)·x_t + v·score + √v·noise; the last step adds no noise. For neighbouring levels a
    is √(1 − beta_t) where variance is preserved and 1 where it explodes: the predictors of
    algorithms 3 and 2.
    """

    @override
    def step(self, prediction: Prediction, s: int, noise: Callable[[], Tensor]) -> Tensor:
        level, end = prediction.level, prediction.level.at(s)
        variance = transition_variance(end, level)
        drift = (2 - level.alpha / end.alpha) * prediction.x_t
        mean = drift - variance / level.sigma * prediction.eps
        return mean if s == 0 else mean + variance**0.5 * noise()
