"""Ancestral sampling."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from typing_extensions import override

from ddpm_lightning.diffusion.posterior import posterior
from ddpm_lightning.diffusion.prediction import Prediction
from ddpm_lightning.diffusion.samplers.sampler import SingleStep


class DDPM(SingleStep):
    """Ancestral sampling with the model's reverse variance (DDPM algorithm 2), on any levels.

    x_s = mean of q(x_s | x_t, x0_hat) + sqrt(variance)·noise; the last step adds no noise.
    """

    @override
    def step(self, prediction: Prediction, s: int, noise: Callable[[], Tensor]) -> Tensor:
        q = posterior(prediction.level.at(s), prediction.level)
        mean = q.x0 * prediction.x0 + q.x_t * prediction.x_t
        return mean if s == 0 else mean + prediction.variance(s) ** 0.5 * noise()
