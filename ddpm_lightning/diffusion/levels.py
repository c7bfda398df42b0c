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

Time = int | float | Tensor
"""A level t in 0…T: an int, one for the whole batch, or int64 [B], one for each row; a float or
floating [B] is a real time in (0, T]."""

Scalar = float | Tensor
"""A Python float (one level for the whole batch) or a tensor [B, 1, …] (a level per row)."""


class NoLevelError(InputError):
    """A level is needed at a real time."""


@dataclass(frozen=True, eq=False)
class Level:
    """Level t of a schedule: how much data and how much noise x_t holds.

    Args:
        schedule: The schedule that it belongs to.
        t: A number, one level for the whole batch, or a tensor [B], one for each row; int or
            int64 is a level 0…T, a float or floating a real time in (0, T].
        alpha: Factor of the data, a float for a number t, else [B, 1, …].
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

    @property
    def angle(self) -> Scalar:
        """arctan(sigma/alpha): 0 for clean data, π/2 where alpha = 0."""
        if isinstance(self.alpha, Tensor) and isinstance(self.sigma, Tensor):
            return torch.atan2(self.sigma, self.alpha)
        return math.atan2(self.sigma, self.alpha)

    @property
    def length(self) -> Scalar:
        """√(alpha² + sigma²): 1 when variance is preserved."""
        if isinstance(self.alpha, Tensor) and isinstance(self.sigma, Tensor):
            return torch.hypot(self.alpha, self.sigma)
        return math.hypot(self.alpha, self.sigma)

    def at(self, t: Time) -> Level:
        """Another level of the same schedule, in the same dtype and rank."""
        return self.schedule.level(t, self.alpha if isinstance(self.alpha, Tensor) else None)

    @property
    def previous(self) -> Level:
        """Level t − 1; raises NoLevelError at a real time, which has no level before it."""
        if is_real(self.t):
            raise NoLevelError(
                "a step t − 1 → t is asked for at a real time, which has no level before it: "
                "train on levels with PosteriorMean, MeanShift, LearnedDiagonal, VLB, "
                "VariationalBound and Hybrid (--model.timesteps Uniform), or on real times with "
                "another parameterization, MSE and EpsMSE"
            )
        return self.at(self.t - 1)

    def matching(self, other: Level) -> Level:
        """This level, stated row by row where the other is."""
        if not isinstance(self.t, Tensor) and isinstance(other.t, Tensor):
            dtype = torch.int64 if isinstance(self.t, int) else torch.float32
            return other.at(torch.full_like(other.t, self.t, dtype=dtype))
        return self

    def entry(self, table: Tensor) -> Scalar:
        """Look up this level in a table [T+1]; a float or [B, 1, …], like alpha.

        Raises NoLevelError: It is a real time, which a table does not know.
        """
        t = self.t
        if isinstance(t, float) or is_real(t):
            raise NoLevelError("a table by level has no entry for a real time; use levels")
        if isinstance(self.alpha, Tensor):
            return table.to(self.alpha)[t].view(self.alpha.shape)
        return float(table[t])


def is_real(t: Time) -> bool:
    """Whether t is a real time and not a level."""
    return t.is_floating_point() if isinstance(t, Tensor) else isinstance(t, float)


class Schedule(Configurable, nn.Module, ABC):
    """Levels t = 0…T of the forward process q(x_t | x_0) = N(alpha_t·x_0, sigma_t²·I).

    Level 0 is clean data (alpha = 1, sigma = 0). The tables are float64 [T+1] on the CPU, and so
    is ``log_snr``, ln(alpha²/sigma²); float32 copies travel with the module that owns the schedule
    and never change dtype. Between the levels :meth:`curve` gives alpha and sigma at real times.

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
    _polar: Tensor
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
        self._polar = torch.stack([torch.atan2(sigma, alpha), torch.hypot(alpha, sigma)])
        float32 = torch.stack([alpha, sigma, log_snr, rest]).float()
        self.register_buffer("_float32", float32, persistent=False)
        if alpha[-1] > 0.1 * sigma[-1]:
            warnings.warn(
                f"{name}: x_T is not noise, alpha_T/sigma_T = {float(alpha[-1] / sigma[-1]):.3g} "
                "(samples start from pure noise, so keep it below 0.1): use more levels or "
                "larger betas, as Linear's rescale: true does",
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
        """Look up a level: floats for a number t, tensors [B, 1, …] for a tensor [B].

        Args:
            t: 0…T for the whole batch, or int64 [B]; a float or floating [B] is a real time in
                (0, T], for which :meth:`curve` is computed.
            like: [B, ...] tensor whose rank and dtype (float32 at least) the tensors suit.
        """
        if isinstance(t, int):
            return Level(self, t, *(float(v[t]) for v in (self.alpha, self.sigma, self.log_snr)))
        if isinstance(t, float):
            one = torch.tensor([t], dtype=torch.float64)
            return Level(self, t, *map(float, self._between(one)[:3]))
        double = like is not None and like.dtype == torch.float64
        if t.is_floating_point():
            values = self._between(t).to(torch.float64 if double else torch.float32)
        else:
            values = (self._float64 if double else self._float32).to(t.device)[:, t]
        rank = 1 if like is None else like.ndim
        return Level(self, t, *values.view(4, -1, *[1] * (rank - 1)))

    def curve(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Give alpha and sigma at the real times t = u·T, u [B] in (0, 1], in u's dtype.

        A schedule that has a closed form overrides this with it. Here the angle
        arctan(sigma/alpha) and the length √(alpha² + sigma²) are linear in t from each level to
        the next, finite from clean data to alpha_T = 0.
        """
        t = u * self.T
        upper = t.ceil().long().clamp(1, self.T)
        polar = self._polar.to(u)
        above, below = polar[:, upper], polar[:, upper - 1]
        angle, length = above - (upper - t) * (above - below)
        return length * torch.cos(angle), length * torch.sin(angle)

    def time_at(self, angle: Tensor) -> Tensor:
        """Find the real times t [B] in (0, T] at which arctan(sigma/alpha) is this angle [B].

        By bisection between two levels, to 2⁻³⁰ of a level, because the angle rises with t on
        every schedule. One with a closed form may override this with its inverse.
        """
        upper = torch.searchsorted(self._polar[0].to(angle), angle).clamp(1, self.T)
        high = upper.to(angle.dtype)
        low = high - 1
        for _ in range(30):
            middle = (low + high) / 2
            alpha, sigma = self.curve(middle / self.T)
            is_above = torch.atan2(sigma, alpha) >= angle
            low, high = torch.where(is_above, low, middle), torch.where(is_above, middle, high)
        return high

    def _between(self, t: Tensor) -> Tensor:
        """Alpha, sigma, log SNR and what float32 leaves out of it at real times, [4, B]."""
        # MPS has no float64.
        u = t.to(torch.float32 if t.device.type == "mps" else torch.float64) / self.T
        alpha, sigma = self.curve(u)
        log_snr = 2 * (alpha.log() - sigma.log())
        return torch.stack([alpha, sigma, log_snr, (log_snr - log_snr.float()).nan_to_num()])

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
