"""Which noise levels a training batch sees."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ddpm_lightning.configurable import Configurable
from ddpm_lightning.diffusion.schedules import Schedule


class Drawn(NamedTuple):
    """Levels t int64 [B] and the importance weights [B] that keep the loss unbiased."""

    t: Tensor
    weight: Tensor


class UniformNoise(Protocol):
    """The part of a keyed noise source that a timestep distribution uses."""

    def uniform(self, draw: int) -> Tensor:
        """Give numbers [B] in [0, 1), one a row."""


class Timesteps(Configurable, ABC):
    """Distribution of the training levels over 1…T."""

    @abstractmethod
    def __call__(self, schedule: Schedule, noise: UniformNoise) -> Drawn:
        """Draw a level for each row of the batch.

        Args:
            schedule: The forward process.
            noise: Source of randomness, bound to the rows of the global batch; draws from 1 on
                are free, 0 is the training noise eps.
        """


class Uniform(Timesteps):
    """Every level 1…T equally often (DDPM algorithm 1)."""

    def __call__(self, schedule: Schedule, noise: UniformNoise) -> Drawn:
        """See the base class."""
        u = noise.uniform(1)
        return Drawn(level_of(u, schedule), torch.ones_like(u))


def level_of(u: Tensor, schedule: Schedule) -> Tensor:
    """Map u [B] in [0, 1) onto the levels 1…T, each equally wide."""
    # A double just below 1 may have been rounded to 1, which would be level T + 1.
    return 1 + (u * schedule.T).long().clamp_(max=schedule.T - 1)
