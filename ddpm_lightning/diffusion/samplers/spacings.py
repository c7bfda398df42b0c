"""Which levels a sampler visits: strictly decreasing, as many steps as asked, down to level 0."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from ddpm_lightning.configurable import Configurable
from ddpm_lightning.diffusion.schedules import Schedule
from ddpm_lightning.errors import InputError


class Spacing(Configurable, ABC):
    """A rule that picks the levels of a sampler with fewer steps than the model has levels."""

    @abstractmethod
    def __call__(self, schedule: Schedule, steps: int | None) -> list[int]:
        """Pick steps + 1 levels, strictly decreasing, the last one 0.

        Args:
            schedule: The forward process.
            steps: Number of steps in 1…T; None visits every level.

        Raises:
            InputError: That many steps are not possible.
        """


class Uniform(Spacing):
    """Evenly spaced from T to 0 (what other libraries call trailing)."""

    def __call__(self, schedule: Schedule, steps: int | None) -> list[int]:
        """See the base class."""
        steps = checked_steps(schedule, steps)
        return distinct([schedule.T * i / steps for i in range(steps, -1, -1)])


class Quadratic(Spacing):
    """From T to 0 with distances that shrink towards the data: t = T·(i/steps)²."""

    def __call__(self, schedule: Schedule, steps: int | None) -> list[int]:
        """See the base class."""
        steps = checked_steps(schedule, steps)
        return distinct([schedule.T * (i / steps) ** 2 for i in range(steps, -1, -1)])


class Levels(Spacing):
    """Exactly these levels.

    Args:
        levels: Strictly decreasing, e.g. [1000, 500, 100, 0]; the last one is 0.

    Raises:
        InputError: They are not such levels.
    """

    def __init__(self, levels: Sequence[int]) -> None:
        self.levels = list(levels)
        falling = all(t > s for t, s in zip(self.levels, self.levels[1:], strict=False))
        if len(self.levels) < 2 or self.levels[-1] != 0 or not falling:
            raise InputError(f"Levels({self.levels}): give strictly decreasing levels down to 0")

    def __call__(self, schedule: Schedule, steps: int | None) -> list[int]:
        """See the base class."""
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
