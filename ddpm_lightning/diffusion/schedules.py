"""Noise schedules: T+1 levels with x_t = alpha_t·x_0 + sigma_t·eps, from clean data to noise."""

from __future__ import annotations

import math
import warnings
from abc import ABC
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ddpm_lightning.configurable import Configurable
from ddpm_lightning.errors import InputError

Scalar = float | Tensor
"""A Python float (one level for the whole batch) or a tensor [B, 1, …] (a level per row)."""


class Schedule(Configurable, nn.Module, ABC):
    """Levels t = 0…T of the forward process q(x_t | x_0) = N(alpha_t·x_0, sigma_t²·I).

    Level 0 is clean data (alpha = 1, sigma = 0). ``alpha`` and ``sigma`` are float64 [T+1] on the
    CPU; float32 copies travel with the module that owns the schedule and never change dtype.

    Args:
        alpha: float64 [T+1], alpha_0 = 1.
        sigma: float64 [T+1], sigma_0 = 0, sigma/alpha strictly increasing.

    Raises:
        InputError: The tables are not such levels.
    """

    alpha: Tensor
    sigma: Tensor
    _alpha32: Tensor
    _sigma32: Tensor

    def __init__(self, alpha: Tensor, sigma: Tensor) -> None:
        super().__init__()
        alpha, sigma = alpha.double().cpu(), sigma.double().cpu()
        name = type(self).__name__
        if alpha.ndim != 1 or alpha.shape != sigma.shape or len(alpha) < 2:
            raise InputError(f"{name}: alpha and sigma must be two tables of T+1 ≥ 2 levels")
        if alpha[0] != 1 or sigma[0] != 0:
            raise InputError(f"{name}: level 0 is clean data, so alpha_0 = 1 and sigma_0 = 0")
        # alpha_s·sigma_t > alpha_t·sigma_s says SNR_t < SNR_s without dividing by alpha_T = 0.
        if not (alpha[:-1] * sigma[1:] > alpha[1:] * sigma[:-1]).all():
            raise InputError(f"{name}: sigma_t/alpha_t must increase strictly with t")
        self.alpha, self.sigma = alpha, sigma
        self.register_buffer("_alpha32", alpha.float(), persistent=False)
        self.register_buffer("_sigma32", sigma.float(), persistent=False)
        if alpha[-1] > 0.1 * sigma[-1]:
            warnings.warn(
                f"{name}: x_T is not noise, alpha_T/sigma_T = {float(alpha[-1] / sigma[-1]):.3g} "
                "(samples start from pure noise, so keep it below 0.1): use more levels or "
                "larger betas",
                stacklevel=3,
            )

    @property
    def T(self) -> int:
        """Number of noise levels."""
        return len(self.alpha) - 1

    @property
    def prior_std(self) -> float:
        """Standard deviation of x_T for data of unit variance: 1 when variance is preserved."""
        return math.hypot(float(self.alpha[-1]), float(self.sigma[-1]))

    def at(self, t: int | Tensor, like: Tensor) -> tuple[Scalar, Scalar]:
        """Look up alpha_t and sigma_t.

        Args:
            t: A level in 0…T for the whole batch, or int64 [B].
            like: [B, ...] tensor whose dtype (at least float32), device and rank the result suits.

        Returns:
            Two floats for an int, two tensors [B, 1, …] for a tensor.
        """
        if isinstance(t, int):
            return float(self.alpha[t]), float(self.sigma[t])
        if like.dtype == torch.float64:
            alpha, sigma = self.alpha.to(like.device), self.sigma.to(like.device)
        else:
            alpha, sigma = self._alpha32, self._sigma32
        rows = (-1,) + (1,) * (like.ndim - 1)
        return alpha[t].view(rows), sigma[t].view(rows)

    def add_noise(self, x0: Tensor, t: int | Tensor, eps: Tensor) -> Tensor:
        """Noise data: x_t = alpha_t·x_0 + sigma_t·eps (DDPM eq. 4).

        Args:
            x0: [B, ...] data.
            t: Level(s), an int or int64 [B].
            eps: [B, ...] standard normal noise.
        """
        alpha, sigma = self.at(t, like=x0)
        return alpha * x0 + sigma * eps

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # Move with the module, but keep float32 whatever bf16-true or half ask for.
        return super()._apply(lambda table: table.to(fn(table).device), recurse)


def tables_from_betas(betas: Tensor) -> tuple[Tensor, Tensor]:
    """Turn beta_1…beta_T into alpha and sigma of the levels 0…T.

    alpha_t² = prod_{i≤t} (1 − beta_i) (DDPM, above eq. 4); sigma_t² = 1 − alpha_t² by expm1, which
    keeps every digit where alpha_t² is close to 1.

    Args:
        betas: float64 [T], in (0, 1].

    Raises:
        InputError: A beta is outside (0, 1].
    """
    if not bool(((betas > 0) & (betas <= 1)).all()):
        raise InputError(
            f"betas must lie in (0, 1], but here they span {float(betas.min()):.4g} to "
            f"{float(betas.max()):.4g}"
        )
    log_alpha_bar = torch.cat([betas.new_zeros(1), torch.log1p(-betas).cumsum(0)])
    return torch.exp(0.5 * log_alpha_bar), torch.sqrt(-torch.expm1(log_alpha_bar))


class Linear(Schedule):
    """Betas rise linearly (DDPM, sec. 4): the schedule of the CIFAR-10 recipe at T = 1000.

    The end points are meant for 1000 levels; for another T they are scaled by 1000/T, so that x_T
    is noise for every T.

    Args:
        T: Number of noise levels, more than 20.
        beta_start: beta_1 at 1000 levels.
        beta_end: beta_T at 1000 levels.
        rescale: Scale both by 1000/T; false takes them as they stand.

    Raises:
        InputError: A beta leaves (0, 1].
    """

    def __init__(
        self,
        T: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        rescale: bool = True,
    ) -> None:
        scale = 1000 / T if rescale and T > 0 else 1.0
        if T < 1 or not 0 < scale * beta_start <= scale * beta_end < 1:
            raise InputError(
                f"Linear(T={T}): betas from {scale * beta_start:.4g} to {scale * beta_end:.4g} "
                "do not rise within (0, 1); use more levels (T > 20 with the paper's end points) "
                "or smaller end points"
            )
        betas = torch.linspace(scale * beta_start, scale * beta_end, T, dtype=torch.float64)
        super().__init__(*tables_from_betas(betas))


class Cosine(Schedule):
    """alpha_bar follows a squared cosine (improved DDPM, eq. 17); betas are capped from above.

    Use V or X0 with it: at t = T an error of eps is amplified 20,000-fold in x0.

    Args:
        T: Number of noise levels.
        offset: The paper's s, which keeps the first betas from vanishing.
        max_beta: Cap on beta_t, the paper's 0.999.
    """

    def __init__(self, T: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> None:
        if T < 1:
            raise InputError(f"Cosine(T={T}): at least one level is needed")
        t = torch.arange(T + 1, dtype=torch.float64) / T
        f = torch.cos((t + offset) / (1 + offset) * math.pi / 2).square()
        super().__init__(*tables_from_betas((1 - f[1:] / f[:-1]).clamp(max=max_beta)))
