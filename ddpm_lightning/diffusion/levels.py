"""What a noise schedule is: T+1 levels with x_t = alpha_t·x_0 + sigma_t·eps."""

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
    CPU, and so is ``log_snr``, ln(alpha²/sigma²) from +inf at level 0 downwards; float32 copies
    travel with the module that owns the schedule and never change dtype.

    Args:
        alpha: float64 [T+1], alpha_0 = 1.
        sigma: float64 [T+1], sigma_0 = 0, sigma/alpha strictly increasing.

    Raises:
        InputError: The tables are not such levels.
    """

    alpha: Tensor
    sigma: Tensor
    log_snr: Tensor
    _alpha32: Tensor
    _sigma32: Tensor
    _log_snr32: Tensor
    _log_snr32_rest: Tensor

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
        self.log_snr = 2 * (alpha.log() - sigma.log())
        # Two float32 numbers a level: between neighbours one alone keeps two or three digits.
        log_snr32 = self.log_snr.float()
        rest = (self.log_snr - log_snr32).nan_to_num()  # infinity minus itself
        self.register_buffer("_log_snr32", log_snr32, persistent=False)
        self.register_buffer("_log_snr32_rest", rest.float(), persistent=False)
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

    def log_snr_at(self, t: int | Tensor, like: Tensor) -> Scalar:
        """Look up ln(alpha_t²/sigma_t²); arguments and result as for :meth:`at`."""
        if isinstance(t, int):
            return float(self.log_snr[t])
        table = self.log_snr.to(like.device) if like.dtype == torch.float64 else self._log_snr32
        return table[t].view((-1,) + (1,) * (like.ndim - 1))

    def new_noise(self, s: int | Tensor, t: int | Tensor, like: Tensor) -> Scalar:
        """Share of x_t's noise variance that came since level s: 1 − SNR_t/SNR_s (VDM, app. A).

        By expm1 of the difference in log SNR, which keeps the digits that sigma_t² −
        (alpha_t/alpha_s)²·sigma_s² loses between neighbours. 1 at s = 0 and where alpha_t = 0.

        Args:
            s: Lower level(s), an int or int64 [B]; s < t.
            t: Upper level(s), of the same kind.
            like: [B, ...] tensor that fixes dtype, device and rank.

        Returns:
            A float for ints, a tensor [B, 1, …] for tensors.
        """
        if isinstance(s, int) and isinstance(t, int):
            return -math.expm1(float(self.log_snr[t]) - float(self.log_snr[s]))
        if like.dtype == torch.float64:
            log_snr = self.log_snr.to(like.device)
            difference = log_snr[t] - log_snr[s]
        else:
            log_snr, rest = self._log_snr32, self._log_snr32_rest
            difference = (log_snr[t] - log_snr[s]) + (rest[t] - rest[s])
        return -torch.expm1(difference).view((-1,) + (1,) * (like.ndim - 1))

    def add_noise(self, x0: Tensor, t: int | Tensor, eps: Tensor) -> Tensor:
        """Noise data: x_t = alpha_t·x_0 + sigma_t·eps (DDPM eq. 4).

        Args:
            x0: [B, ...] data.
            t: Level(s), an int or int64 [B].
            eps: [B, ...] standard normal noise.
        """
        x0 = x0.to(torch.promote_types(x0.dtype, torch.float32))
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
