"""Noise levels: T+1 of them make a schedule, with x_t = alpha_t·x_0 + sigma_t·eps."""

from __future__ import annotations

import math
import warnings
from abc import ABC
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ddpm_lightning.configurable import Configurable
from ddpm_lightning.errors import InputError

Time = int | Tensor
"""A level t in 0…T: an int, one for the whole batch, or int64 [B], one for each row."""

Scalar = float | Tensor
"""A Python float (one level for the whole batch) or a tensor [B, 1, …] (a level per row)."""


@dataclass(frozen=True, eq=False)
class Level:
    """Level t of a schedule: how much data and how much noise x_t holds.

    Args:
        schedule: The schedule that it belongs to.
        t: An int, one level for the whole batch, or int64 [B], one for each row.
        alpha: Factor of the data, a float for an int t, else [B, 1, …].
        sigma: Standard deviation of the noise, likewise.
        log_snr: ln(alpha²/sigma²), likewise; inf at t = 0, −inf where alpha = 0.
        log_snr_rest: What float32 leaves out of log_snr, for differences between neighbours.
    """

    schedule: Schedule
    t: Time
    alpha: Scalar
    sigma: Scalar
    log_snr: Scalar
    log_snr_rest: Scalar = 0.0

    @property
    def snr(self) -> Scalar:
        """Signal-to-noise ratio, alpha²/sigma²."""
        return (self.alpha / self.sigma) ** 2

    def at(self, t: Time) -> Level:
        """Another level of the same schedule, in the same dtype and rank."""
        return self.schedule.level(t, self.alpha if isinstance(self.alpha, Tensor) else None)

    def matching(self, other: Level) -> Level:
        """This level, stated row by row where the other is."""
        if isinstance(self.t, int) and isinstance(other.t, Tensor):
            return other.at(torch.full_like(other.t, self.t))
        return self

    def entry(self, table: Tensor) -> Scalar:
        """Look up this level in a table [T+1]; a float or [B, 1, …], like alpha."""
        if isinstance(self.alpha, Tensor):
            return table.to(self.alpha)[self.t].view(self.alpha.shape)
        return float(table[self.t])


class Schedule(Configurable, nn.Module, ABC):
    """Levels t = 0…T of the forward process q(x_t | x_0) = N(alpha_t·x_0, sigma_t²·I).

    Level 0 is clean data (alpha = 1, sigma = 0). The tables are float64 [T+1] on the CPU, and so
    is ``log_snr``, ln(alpha²/sigma²); float32 copies travel with the module that owns the schedule
    and never change dtype.

    Args:
        alpha: [T+1], alpha_0 = 1.
        sigma: [T+1], sigma_0 = 0, sigma/alpha strictly increasing.

    Raises:
        InputError: The tables are not such levels.
    """

    alpha: Tensor
    sigma: Tensor
    log_snr: Tensor
    _float64: Tensor
    _float32: Tensor

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
        log_snr = 2 * (alpha.log() - sigma.log())
        rest = (log_snr - log_snr.float()).nan_to_num()  # infinity minus itself
        self.alpha, self.sigma, self.log_snr = alpha, sigma, log_snr
        self._float64 = torch.stack([alpha, sigma, log_snr, torch.zeros_like(rest)])
        float32 = torch.stack([alpha, sigma, log_snr, rest]).float()
        self.register_buffer("_float32", float32, persistent=False)
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

    def level(self, t: Time, like: Tensor | None = None) -> Level:
        """Look up a level: floats for an int t, tensors [B, 1, …] for int64 [B].

        Args:
            t: 0…T for the whole batch, or int64 [B].
            like: [B, ...] tensor whose rank and dtype (float32 at least) the tensors suit.
        """
        if isinstance(t, int):
            return Level(self, t, *(float(v[t]) for v in (self.alpha, self.sigma, self.log_snr)))
        double = like is not None and like.dtype == torch.float64
        values = (self._float64 if double else self._float32).to(t.device)[:, t]
        rank = 1 if like is None else like.ndim
        return Level(self, t, *values.view(4, -1, *[1] * (rank - 1)))

    def add_noise(self, x0: Tensor, t: Time, eps: Tensor) -> Tensor:
        """Noise data x0 [B, ...] to level(s) t: x_t = alpha_t·x_0 + sigma_t·eps (DDPM eq. 4)."""
        x0 = x0.to(torch.promote_types(x0.dtype, torch.float32))
        level = self.level(t, like=x0)
        return level.alpha * x0 + level.sigma * eps

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # Move with the module, but keep float32 whatever bf16-true or half ask for.
        return super()._apply(lambda table: table.to(fn(table).device), recurse)


def as_tensor(scalar: Scalar, like: Tensor) -> Tensor:
    """Make a float a tensor of another's dtype and device; a tensor is brought there."""
    return torch.as_tensor(scalar, dtype=like.dtype, device=like.device)
