"""Denoising diffusion implicit models."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ddpm_lightning.diffusion.denoiser import Prediction
from ddpm_lightning.diffusion.posterior import posterior
from ddpm_lightning.diffusion.samplers.sampler import Sampler
from ddpm_lightning.diffusion.samplers.spacings import Spacing, Uniform
from ddpm_lightning.diffusion.schedules import Schedule
from ddpm_lightning.errors import InputError


class DDIM(Sampler):
    """Few-step sampling, deterministic at eta = 0 (DDIM eq. 12 and 16).

    x_s = alpha_s·x0 + sqrt(sigma_s² − std²)·eps + std·noise with std = eta·sqrt(beta_tilde);
    eta = 1 is DDPM with the fixed-small variance.

    Args:
        steps: Number of network evaluations; None visits every level.
        eta: Share of the posterior's noise, 0 to 1.
        spacing: Which levels are visited.
        clip: Limit each prediction of x0 to this range, e.g. [-1, 1]; None never does.

    Raises:
        InputError: eta is outside [0, 1].
    """

    def __init__(
        self,
        steps: int | None = 50,
        eta: float = 0.0,
        spacing: Spacing = Uniform(),
        clip: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(steps, spacing, clip)
        if not 0 <= eta <= 1:
            raise InputError(f"DDIM(eta={eta}): eta lies between 0 (deterministic) and 1 (DDPM)")
        self.eta = eta

    def tag(self, schedule: Schedule) -> str:
        """See the base class; eta is told where it is not 0: ``ddim50_eta1``."""
        tag = super().tag(schedule)
        return f"{tag}_eta{self.eta:g}" if self.eta else tag

    def step(self, prediction: Prediction, s: int, noise: Callable[[], Tensor]) -> Tensor:
        """See the base class."""
        alpha_s, sigma_s = prediction.schedule.at(s, like=prediction.x_t)
        q = posterior(prediction.schedule, s, prediction.t, like=prediction.x_t)
        variance = self.eta**2 * q.variance
        # Never below 0, where rounding takes it at alpha_T = 0 and eta = 1: the root is complex.
        remaining = max(sigma_s**2 - variance, 0.0)
        x_s = alpha_s * prediction.x0 + remaining**0.5 * prediction.eps
        return x_s + variance**0.5 * noise() if variance > 0 else x_s
