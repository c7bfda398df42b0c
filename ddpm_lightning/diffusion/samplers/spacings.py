"""Spacings: which levels a sampler visits, strictly decreasing, down to level 0."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import ClassVar

import numpy as np
from typing_extensions import override

from ddpm_lightning.configurable import Configurable
from ddpm_lightning.diffusion.levels import Schedule
from ddpm_lightning.errors import InputError, above


class Spacing(Configurable, ABC):
    """Rule for the levels that a sampler visits."""

    starts_below_T: ClassVar[bool] = False
    """Whether the first level is below T on purpose, so that noise x_T is used as if it were
    data of that level."""

    @abstractmethod
    def __call__(self, schedule: Schedule, steps: int | None) -> list[int]:
        """Pick steps + 1 levels, strictly decreasing to 0; steps in 1…T, None for every level."""

    def check_sampler(self, sampler: Configurable) -> None:
        """Raise InputError if the levels were made for another sampler."""


class UniformSpacing(Spacing):
    """Evenly spaced from T to 0 (what other libraries call trailing)."""

    @override
    def __call__(self, schedule: Schedule, steps: int | None) -> list[int]:
        steps = checked_steps(schedule, steps)
        return distinct([schedule.T * i / steps for i in range(steps, -1, -1)])


class QuadraticSpacing(Spacing):
    """From T to 0 with distances that shrink towards the data: t = T·(i/steps)²."""

    @override
    def __call__(self, schedule: Schedule, steps: int | None) -> list[int]:
        return PowerSpacing(2.0)(schedule, steps)


class PowerSpacing(Spacing):
    """From T to 0 by a power: t = T·(i/steps)^power.

    Below 1 the distances shrink towards the noise and the last step is the longest. 1 is
    UniformSpacing, up to rounding; 2 is QuadraticSpacing.

    Args:
        power: The exponent, above 0.
    """

    def __init__(self, power: float = 0.5) -> None:
        above(0, self, power=power)
        self.power = power

    @override
    def __call__(self, schedule: Schedule, steps: int | None) -> list[int]:
        steps = checked_steps(schedule, steps)
        return distinct([schedule.T * (i / steps) ** self.power for i in range(steps, -1, -1)])


class LogSNRSpacing(Spacing):
    """Evenly spaced in log(alpha/sigma) from T to 1, then 0 (DPM-Solver's spacing)."""

    @override
    def __call__(self, schedule: Schedule, steps: int | None) -> list[int]:
        return space_evenly(schedule, steps, np.log)


class KarrasSpacing(Spacing):
    """Evenly spaced in (sigma/alpha)^(1/rho) from T to 1, then 0 (EDM eq. 5).

    Args:
        rho: How much the steps shrink towards the data; EDM's 7.
    """

    def __init__(self, rho: float = 7.0) -> None:
        above(0, self, rho=rho)
        self.rho = rho

    @override
    def __call__(self, schedule: Schedule, steps: int | None) -> list[int]:
        return space_evenly(schedule, steps, lambda noise: noise ** (1 / self.rho))


class DDIMQuadratic(Spacing):
    """The quadratic levels behind the DDIM paper's CIFAR-10 numbers; they start at 0.8·T.

    1 + floor((i/(S−1))²·0.8·T) for i = S−1…0, then 0, as in the released code (DDIM app. D.2 gives
    the form), whose floats fall a level short in places from 31 steps on. Sampling takes pure
    noise for data of level 0.8·T + 1, as that code does; for steps all the way from T take
    QuadraticSpacing.
    """

    starts_below_T = True

    @override
    def __call__(self, schedule: Schedule, steps: int | None) -> list[int]:
        top = math.floor(0.8 * schedule.T)
        highest = min(top + 1, schedule.T)
        if steps is None:
            steps = highest
        if not 1 <= steps <= highest:
            raise InputError(
                f"{steps} sampling steps; from 0.8·T down, DDIMQuadratic takes 1 to {highest}"
            )
        shares = [i / (steps - 1) for i in range(steps - 1, -1, -1)] if steps > 1 else [1.0]
        # Plus 1e-9, because floor must not fall below a whole number that rounding just missed.
        wanted = [1 + math.floor(share**2 * top + 1e-9) for share in shares]
        return distinct([min(level, highest) for level in wanted] + [0])


class Levels(Spacing):
    """Exactly these levels.

    Args:
        levels: Strictly decreasing, e.g. [1000, 500, 100, 0]; the last one is 0.

    Raises:
        InputError: They are not such levels.
    """

    def __init__(self, levels: Sequence[int]) -> None:
        self.levels = list(levels)
        falling = all(t > s for t, s in pairwise(self.levels))
        if len(self.levels) < 2 or self.levels[-1] != 0 or not falling:
            raise InputError(f"Levels({self.levels}): give strictly decreasing levels down to 0")

    @override
    def __call__(self, schedule: Schedule, steps: int | None) -> list[int]:
        if self.levels[0] > schedule.T:
            raise InputError(
                f"Levels starts at {self.levels[0]}, above the last level {schedule.T}"
            )
        if steps not in (None, len(self.levels) - 1):
            raise InputError(
                f"Levels names {len(self.levels) - 1} steps, but the sampler asks for {steps}; "
                "give the sampler steps=None (null in a config)"
            )
        return list(self.levels)


def checked_steps(schedule: Schedule, steps: int | None) -> int:
    """Turn the asked number of steps into one between 1 and T."""
    if steps is None:
        return schedule.T
    if not 1 <= steps <= schedule.T:
        raise InputError(f"{steps} sampling steps; this model takes 1 to {schedule.T}")
    return steps


def space_evenly(
    schedule: Schedule, steps: int | None, warp: Callable[[np.ndarray], np.ndarray]
) -> list[int]:
    """Pick levels evenly spaced in warp(sigma/alpha), which increases, from T to 1, and then 0.

    Where alpha_T = 0, T is visited and the even spacing starts at T − 1.
    """
    steps = checked_steps(schedule, steps)
    if steps == 1:
        return [schedule.T, 0]
    top = schedule.T - (float(schedule.alpha[-1]) == 0)
    first = [] if top == schedule.T else [schedule.T]
    levels = np.arange(1, top + 1)
    alpha, sigma = np.array(schedule.alpha.tolist()), np.array(schedule.sigma.tolist())
    warped = warp(sigma[levels] / alpha[levels])
    wanted = np.linspace(warped[-1], warped[0], steps - len(first))
    return distinct([*first, *np.interp(wanted, warped, levels).tolist(), 0])


def distinct(wanted: Sequence[float]) -> list[int]:
    """Round decreasing levels; where two collide, move to the nearest free level."""
    levels = [round(level) for level in wanted]
    last = len(levels) - 1
    # Upwards from 0 so that each is above its neighbour, then downwards so that none tops T.
    levels[last] = 0
    for i in range(last - 1, -1, -1):
        levels[i] = max(levels[i], levels[i + 1] + 1)
    levels[0] = round(wanted[0])
    for i in range(1, last):
        levels[i] = min(levels[i], levels[i - 1] - 1)
    return levels
