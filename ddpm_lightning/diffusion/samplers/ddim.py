"""Denoising diffusion implicit models, and the step that all deterministic samplers share."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from typing_extensions import override

from ddpm_lightning.diffusion.posterior import posterior
from ddpm_lightning.diffusion.prediction import Prediction
from ddpm_lightning.diffusion.samplers.sampler import SingleStep
from ddpm_lightning.diffusion.samplers.spacings import Spacing, UniformSpacing
from ddpm_lightning.errors import InputError


class DDIM(SingleStep):
    """Denoising diffusion implicit model, deterministic at eta = 0 (DDIM eq. 12 and 16).

    x_s = alpha_s·x0 + sqrt(sigma_s² − std²)·eps + std·noise with std = eta·sqrt(beta_tilde);
    eta = 1 is DDPM with the fixed-small variance, eta = 0 an Euler step of the probability-flow
    ODE in x/alpha over sigma/alpha (DDIM eq. 14).

    Args:
        steps: Number of network evaluations; None visits every level.
        eta: Share of the posterior's noise, 0 to 1.
        spacing: Which levels are visited.
        clip: Limit each prediction of x0 to this range, e.g. [-1, 1]; None never does.
        threshold: Dynamic thresholding: share of values kept in the range, e.g. 0.995.

    Raises:
        InputError: eta is outside [0, 1].
    """

    def __init__(
        self,
        steps: int | None = 50,
        eta: float = 0.0,
        spacing: Spacing = UniformSpacing(),
        clip: tuple[float, float] | None = None,
        threshold: float | None = None,
    ) -> None:
        super().__init__(steps, spacing, clip, threshold)
        if not 0 <= eta <= 1:
            raise InputError(f"DDIM(eta={eta}): eta lies between 0 (deterministic) and 1 (DDPM)")
        self.eta = eta

    @override
    def step(self, prediction: Prediction, s: int, noise: Callable[[], Tensor]) -> Tensor:
        return ddim_step(prediction, s, self.eta, noise)


def ddim_step(
    prediction: Prediction,
    s: int,
    eta: float = 0.0,
    noise: Callable[[], Tensor] | None = None,
) -> Tensor:
    """Step from x_t to x_s (DDIM eq. 12); finite from alpha_T = 0 and to sigma_0 = 0.

    Higher-order samplers take this very step with an x0 that they combined from several
    predictions; eps follows from x_t and x0. noise() is not called where eta or sigma_s is 0.
    """
    level = prediction.level.at(s)
    variance = eta**2 * posterior(level, prediction.level).variance
    x_s = level.alpha * prediction.x0 + (level.sigma**2 - variance) ** 0.5 * prediction.eps
    return x_s + variance**0.5 * noise() if noise is not None and variance > 0 else x_s
