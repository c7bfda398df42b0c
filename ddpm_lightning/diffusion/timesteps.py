"""Which noise levels a training batch sees."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import lru_cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from ddpm_lightning.configurable import Configurable
from ddpm_lightning.diffusion.levels import Schedule
from ddpm_lightning.errors import InputError, above
from ddpm_lightning.randomness import BatchNoise


class Drawn(NamedTuple):
    """Levels t int64 [B] or real times [B], and the importance weights [B] of the loss."""

    t: Tensor
    weight: Tensor


class UniformNoise(Protocol):
    """The part of a noise source (IndexedNoise, BatchNoise) that a distribution uses."""

    def uniform(self, draw: int) -> Tensor:
        """Uniform numbers [B] in [0, 1), one a row."""


class Timesteps(Configurable, ABC):
    """Distribution of the training levels over 1…T, or of real times over (0, T]."""

    @property
    def learns(self) -> bool:
        """Whether :meth:`update` does something."""
        return type(self).update is not Timesteps.update

    def lowest(self, schedule: Schedule) -> int | float:
        """Give the lowest time that is learned: level 1 (int), or a real time (float)."""
        return 1

    @abstractmethod
    def __call__(self, schedule: Schedule, noise: UniformNoise) -> Drawn:
        """Draw a level for each row of the batch.

        The noise is bound to the rows of the global batch; draws 1, 2, 3, … are free, all others
        are reserved (randomness.Draw).
        """

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Learn from the losses [N] of an optimizer step at levels t [N], of all processes.

        They are in the same order on each process, and without importance weights.
        """

    def state_dict(self) -> dict[str, Tensor]:
        """What was learned, as plain tensors on the CPU, for the checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what :meth:`state_dict` gave; refuse the state of other settings."""


class Uniform(Timesteps):
    """Every level 1…T equally often (DDPM algorithm 1)."""

    @override
    def __call__(self, schedule: Schedule, noise: UniformNoise) -> Drawn:
        u = noise.uniform(1)
        return Drawn(level_of(u, schedule), torch.ones_like(u))


class RealTimes(Timesteps):
    """Continuous time: t = u·T with u uniform in (smallest, 1] (Song et al. 2021, eq. 7).

    t is a real number. alpha and sigma are those of the schedule's closed form there (VP, VE,
    Cosine, Straight, Karras; other schedules are interpolated), and the network is given t − 1, as
    at a level. So samplers may visit any levels of the same schedule.

    Args:
        smallest: Below it nothing is learned, because the score grows without bound towards the
            data; the paper's 1e-5, at T = 1000 a hundredth of level 1.

    Raises:
        InputError: smallest is not in (0, 1).
    """

    def __init__(self, smallest: float = 1e-5) -> None:
        if not 0 < smallest < 1:
            raise InputError(f"RealTimes(smallest={smallest}): give a time above 0 and below 1")
        self.smallest = smallest

    @override
    def lowest(self, schedule: Schedule) -> float:
        return self.smallest * schedule.T

    @override
    def __call__(self, schedule: Schedule, noise: UniformNoise) -> Drawn:
        u = 1 - (1 - self.smallest) * noise.uniform(1)
        return Drawn(u * schedule.T, torch.ones_like(u))


class LogNormal(Timesteps):
    """ln(sigma/alpha) is normal, and the nearest level is taken (EDM table 1 and sec. 5).

    What falls beyond the schedule's first or last level goes there. The weights stay 1: the
    distribution is part of EDM's loss.

    Args:
        mean: Mean of ln(sigma/alpha), EDM's P_mean.
        std: Its standard deviation, EDM's P_std.
    """

    def __init__(self, mean: float = -1.2, std: float = 1.2) -> None:
        above(0, self, std=std)
        self.mean = mean
        self.std = std

    @override
    def __call__(self, schedule: Schedule, noise: UniformNoise) -> Drawn:
        u = noise.uniform(1)
        levels = torch.arange(1, schedule.T + 1, device=u.device)
        log_snr = torch.as_tensor(schedule.level(levels, like=u).log_snr)
        midpoints = -(log_snr[1:] + log_snr[:-1]) / 4  # of ln(sigma/alpha)
        t = 1 + torch.searchsorted(midpoints, self.mean + self.std * torch.special.ndtri(u))
        return Drawn(t, torch.ones_like(u))


class LogitNormal(Timesteps):
    """The logit of t/T is normal: the middle levels more often (Esser et al. 2024, eq. 19).

    The weights stay 1: the distribution is part of the loss. Its density vanishes at both ends:
    at T = 1000 a draw in 600 lies above t = 950, and levels 2 to 4 and 997 to 1000, where every
    sampler starts, are never drawn but for the uniform share.

    Args:
        mean: Mean of ln(t/(T − t)); above 0 favours noise.
        std: Its standard deviation; the paper's best is (0, 1).
        uniform: Share of the draws that is uniform over all levels; the paper's 0.

    Raises:
        InputError: std is not above 0, or uniform not in [0, 1].
    """

    def __init__(self, mean: float = 0.0, std: float = 1.0, uniform: float = 0.0) -> None:
        above(0, self, std=std)
        if not 0 <= uniform <= 1:
            raise InputError(f"LogitNormal(uniform={uniform}): give a share in [0, 1]")
        self.mean = mean
        self.std = std
        self.uniform = uniform

    @override
    def __call__(self, schedule: Schedule, noise: UniformNoise) -> Drawn:
        u = noise.uniform(1)
        # The uniform share takes the lowest u, the normal the rest, each stretched to [0, 1).
        even = u / max(self.uniform, 1e-12)
        rest = ((u - self.uniform) / max(1 - self.uniform, 1e-12)).clamp(0, 1)
        normal = torch.sigmoid(self.mean + self.std * torch.special.ndtri(rest))
        share = torch.where(u < self.uniform, even, normal)
        return Drawn(level_of(share, schedule), torch.ones_like(u))


class Stratified(Timesteps):
    """Stratified sampling: another distribution's quantiles spread evenly over the global batch.

    Of N rows, exactly one falls into each N-th of the distribution, counted from a place that
    changes with the step, so the loss varies less (as in VDM, app. I.1), while each row alone has
    the distribution. The N-ths are dealt out in golden-ratio strides, which spreads the rows of
    one process, too.

    Args:
        timesteps: The distribution to stratify.
    """

    def __init__(self, timesteps: Timesteps = Uniform()) -> None:
        self.timesteps = timesteps

    @override
    def lowest(self, schedule: Schedule) -> int | float:
        return self.timesteps.lowest(schedule)

    @override
    def __call__(self, schedule: Schedule, noise: UniformNoise) -> Drawn:
        if not isinstance(noise, BatchNoise):
            raise InputError(
                f"Stratified needs the rows' places in the global batch, which "
                f"{type(noise).__name__} does not know; use the distribution it wraps"
            )
        return self.timesteps(schedule, _StratifiedNoise(noise))

    @override
    @property
    def learns(self) -> bool:
        return self.timesteps.learns

    @override
    def update(self, t: Tensor, losses: Tensor) -> None:
        self.timesteps.update(t, losses)

    @override
    def state_dict(self) -> dict[str, Tensor]:
        return self.timesteps.state_dict()

    @override
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.timesteps.load_state_dict(state)


class LossSecondMoment(Timesteps):
    """Importance sampling by the root mean square of the last losses (improved DDPM eq. 18).

    p_t ~ sqrt(mean of the last losses at t, squared), with importance weights 1/(T·p_t); uniform
    until every level has a full history. Meant for the bound, whose terms differ in size.

    Args:
        history: Losses remembered a level, the paper's 10.
        uniform: Share of the draws that stays uniform, so that no level is forgotten.

    Raises:
        InputError: The settings are out of range.
    """

    def __init__(self, history: int = 10, uniform: float = 0.001) -> None:
        if history < 1 or not 0 < uniform <= 1:
            raise InputError(
                f"LossSecondMoment(history={history}, uniform={uniform}): history must be 1 at "
                "least and uniform in (0, 1]"
            )
        self.history = history
        self.uniform = uniform
        self._losses = torch.zeros(0, history)
        self._counts = torch.zeros(0, dtype=torch.int64)

    @override
    def __call__(self, schedule: Schedule, noise: UniformNoise) -> Drawn:
        self._grow(schedule.T)
        if len(self._counts) > schedule.T:
            raise InputError(
                f"LossSecondMoment: its statistics cover {len(self._counts)} levels, but the "
                f"schedule has {schedule.T}; start a new run"
            )
        u = noise.uniform(1)
        edges = self.probabilities().cumsum(0)
        edges = (edges / edges[-1]).to(u.device)
        index = torch.searchsorted(edges, u, right=True).clamp_(max=schedule.T - 1)
        # The share that is really drawn, rounding of the sum included.
        drawn = torch.diff(edges, prepend=edges.new_zeros(1))[index]
        return Drawn(1 + index, 1 / (schedule.T * drawn))

    def probabilities(self) -> Tensor:
        """Probability [T] of each level 1…T, on the CPU."""
        levels = len(self._counts)
        flat = torch.full((levels,), 1 / levels)
        rms = self._losses.square().mean(1).sqrt()
        total = rms.sum()
        if bool((self._counts < self.history).any()) or not 0 < float(total) < math.inf:
            return flat
        return (1 - self.uniform) * rms / total + self.uniform * flat

    @override
    def update(self, t: Tensor, losses: Tensor) -> None:
        t, losses = t.detach().cpu(), losses.detach().float().cpu()
        finite = losses.isfinite()  # the others are left out
        t, order = torch.sort(t[finite], stable=True)
        losses = losses[finite][order]
        if not len(t):
            return
        self._grow(int(t[-1]))
        index = t - 1
        added = torch.bincount(index, minlength=len(self._counts))
        # The n-th of several losses of one level goes n places on; of too many, the last stay.
        nth = torch.arange(len(t)) - torch.searchsorted(t, t)
        kept = nth >= added[index] - self.history
        place = (self._counts[index] + nth) % self.history
        self._losses[index[kept], place[kept]] = losses[kept]
        self._counts += added

    @override
    def state_dict(self) -> dict[str, Tensor]:
        return {"losses": self._losses.clone(), "counts": self._counts.clone()}

    @override
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if not state:  # a checkpoint of another distribution: start from nothing
            return
        losses, counts = state["losses"], state["counts"]
        if losses.shape != (len(counts), self.history):
            raise InputError(
                f"LossSecondMoment(history={self.history}): the checkpoint's statistics have the "
                f"shape {tuple(losses.shape)}; resume with the history it was trained with"
            )
        self._losses, self._counts = losses.float().cpu().clone(), counts.long().cpu().clone()

    def _grow(self, levels: int) -> None:
        missing = max(0, levels - len(self._counts))
        self._losses = F.pad(self._losses, (0, 0, 0, missing))
        self._counts = F.pad(self._counts, (0, missing))


def level_of(u: Tensor, schedule: Schedule) -> Tensor:
    """Map u [B] in [0, 1) onto the levels 1…T, each equally wide."""
    # A double just below 1 may have been rounded to 1, which would be level T + 1.
    return 1 + (u * schedule.T).long().clamp_(max=schedule.T - 1)


class _StratifiedNoise:
    """Uniform numbers stratified over the global batch."""

    def __init__(self, noise: BatchNoise) -> None:
        self.noise = noise

    def uniform(self, draw: int) -> Tensor:
        noise, size = self.noise, self.noise.global_batch_size
        stratum = noise.rows * _stride(size) % size
        within = noise.uniform(draw)
        u = (stratum.to(within.device) + within) / size + noise.shared(draw).to(within.device)
        return u % 1


@lru_cache
def _stride(size: int) -> int:
    """The number closest to the golden ratio of size that has no divisor in common with it."""
    golden = round(size * (math.sqrt(5) - 1) / 2)
    return min(
        (n for n in range(1, size + 1) if math.gcd(n, size) == 1), key=lambda n: abs(n - golden)
    )
