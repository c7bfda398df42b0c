"""What every sampler shares: settings, the loop from x_T down to x_0, and the trajectory."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from ddpm_lightning.configurable import Configurable
from ddpm_lightning.diffusion.denoiser import Denoiser, Guided, Prediction
from ddpm_lightning.diffusion.samplers.spacings import Spacing, Uniform
from ddpm_lightning.diffusion.schedules import Schedule

Noise = Callable[[int, tuple[int, ...]], Tensor]
"""noise(draw, shape) → standard normal [B, *shape]; x_T is draw 0, step i takes draw i."""


@dataclass(frozen=True, eq=False)
class State:
    """A point of a reverse trajectory: the noisy x_t at level t and the prediction x0 there."""

    t: int
    x_t: Tensor
    x0: Tensor


class Sampler(Configurable, ABC):
    """Turns noise into data by stepping a denoiser down the levels.

    Args:
        steps: Number of network evaluations; None visits every level.
        spacing: Which levels are visited.
        clip: Limit each prediction of x0 to this range, e.g. [-1, 1]; None never does.
    """

    def __init__(
        self,
        steps: int | None = None,
        spacing: Spacing = Uniform(),
        clip: tuple[float, float] | None = None,
    ) -> None:
        self.steps = steps
        self.spacing = spacing
        self.clip = clip

    @abstractmethod
    def step(self, prediction: Prediction, s: int, noise: Callable[[], Tensor]) -> Tensor:
        """Go from x_t to x_s.

        Args:
            prediction: The (clipped) prediction at x_t.
            s: The next level, s < t.
            noise: Gives standard normal noise of x_t's shape.
        """

    def levels(self, schedule: Schedule) -> list[int]:
        """The levels visited, from the first down to 0."""
        return self.spacing(schedule, self.steps)

    def tag(self, schedule: Schedule) -> str:
        """Name with steps and spacing, for files and tags: ``ddim50``, ``ddim50_quadratic``."""
        name = f"{type(self).__name__.lower()}{len(self.levels(schedule)) - 1}"
        spacing = type(self.spacing).__name__.lower()
        return name if isinstance(self.spacing, Uniform) else f"{name}_{spacing}"

    def clipped(self, data_range: tuple[float, float] | None) -> Sampler:
        """This sampler, clipping to the data's range unless it has a range of its own."""
        if self.clip is not None or data_range is None:
            return self
        other = copy.copy(self)
        other.clip = data_range
        other._arguments = self._arguments | {"clip": data_range}
        return other

    def __call__(
        self,
        denoiser: Denoiser | Guided,
        x_T: Tensor,
        y: Tensor | None = None,
        noise: Noise | None = None,
    ) -> Tensor:
        """Sample x_0.

        Args:
            denoiser: The model.
            x_T: [B, ...] noise of standard deviation ``schedule.prior_std``.
            y: int64 [B] class labels, or None.
            noise: Source of the steps' noise; None draws from torch's global generator.

        Returns:
            [B, ...] samples.
        """
        for state in self.trajectory(denoiser, x_T, y, noise):
            x = state.x_t
        return x

    @torch.no_grad()
    def trajectory(
        self,
        denoiser: Denoiser | Guided,
        x_T: Tensor,
        y: Tensor | None = None,
        noise: Noise | None = None,
    ) -> Iterator[State]:
        """Yield a State at every level visited, the last one x_0 at level 0.

        The network is in evaluation mode until the iterator ends or is closed. Arguments as for
        a call.
        """

        def fresh(_: int, shape: tuple[int, ...]) -> Tensor:
            return torch.randn(len(x_T), *shape, device=x_T.device)

        draw = fresh if noise is None else noise
        x = x_T
        with evaluation_mode(getattr(denoiser, "net", None)):
            for i, (t, s) in enumerate(pairwise(self.levels(denoiser.schedule)), start=1):
                prediction = denoiser(x, t, y).clip(self.clip)
                yield State(t, x, prediction.x0)
                x = self.step(prediction, s, partial(_draw_like, draw, i, x_T))
        yield State(0, x, x)


def _draw_like(noise: Noise, draw: int, x: Tensor) -> Tensor:
    return noise(draw, tuple(x.shape[1:])).to(x)


@contextmanager
def evaluation_mode(net: nn.Module | None) -> Iterator[None]:
    """Switch dropout and its like off, and back on where it was on."""
    training = [module for module in net.modules() if module.training] if net is not None else []
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
