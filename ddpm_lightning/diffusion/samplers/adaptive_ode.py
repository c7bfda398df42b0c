"""The probability-flow ODE by a method that chooses its own steps."""

from __future__ import annotations

import math
from collections.abc import Generator
from itertools import pairwise

import torch
from torch import Tensor
from typing_extensions import override

from ddpm_lightning.diffusion.levels import Schedule
from ddpm_lightning.diffusion.runge_kutta import RungeKutta45
from ddpm_lightning.diffusion.samplers.sampler import Draw, Predict, Sampler, State
from ddpm_lightning.diffusion.samplers.spacings import Spacing, UniformSpacing
from ddpm_lightning.errors import above, at_least


class AdaptiveODE(Sampler):
    """The probability-flow ODE by Runge–Kutta 5(4) to a tolerance (Song et al. 2021, sec. 4.3).

    With the angle phi = arctan(sigma/alpha) and z = x_t/√(alpha² + sigma²) the ODE is

        dz/dphi = v,  v = cos(phi)·eps − sin(phi)·x0_hat  (Salimans & Ho 2022, app. D)

    from x_T to level 1, whose x0_hat is the sample. The model is asked at real times between the
    levels, which the schedule gives in closed form or interpolates. Each sample has its own steps,
    so sample k does not depend on the batch; the network runs until the last sample is done. The
    end at level 1 is the paper's u = 1e-3 for VP of 1,000 levels (app. D.4), whatever was learned
    below.

    Args:
        steps: Stretches between the levels at which a trajectory is shown, each integrated with
            as many evaluations as it takes; None: one a level.
        rtol: Relative tolerance of a step's error, root mean square over a sample.
        atol: Absolute tolerance, likewise; the paper's are 1e-5 both.
        most: Evaluations after which it gives up.
        spacing: Which levels are shown.
        clip: Limit each prediction of x0 to this range, e.g. [-1, 1]; None never does.
        threshold: Dynamic thresholding: share of values kept in the range, e.g. 0.995.

    Raises:
        InputError: A tolerance is not above 0, or ``most`` below 10.
    """

    chooses_steps = True

    def __init__(
        self,
        steps: int | None = 1,
        rtol: float = 1e-5,
        atol: float = 1e-5,
        most: int = 2000,
        spacing: Spacing = UniformSpacing(),
        clip: tuple[float, float] | None = None,
        threshold: float | None = None,
    ) -> None:
        super().__init__(steps, spacing, clip, threshold)
        above(0, self, rtol=rtol, atol=atol)
        at_least(10, self, most=most)
        self.rtol = rtol
        self.atol = atol
        self.most = most

    @override
    def path(
        self, predict: Predict, schedule: Schedule, x: Tensor, draw: Draw
    ) -> Generator[State, None, Tensor]:
        def slope(angle: Tensor, flat: Tensor) -> Tensor:
            t = schedule.time_at(angle)
            level = schedule.level(t, like=x)
            prediction = predict(level.length * flat.view(x.shape), t)
            v = (level.alpha * prediction.eps - level.sigma * prediction.x0) / level.length
            return v.to(flat).flatten(1)

        def x0_hat(angle: float) -> Tensor:
            z, v = flow.y, flow.slope
            return (math.cos(angle) * z - math.sin(angle) * v).view(x.shape)

        levels = self.levels(schedule)
        first = schedule.level(levels[0])
        z = x.to(torch.promote_types(x.dtype, torch.float32)) / first.length
        angle = float(first.angle)
        flow = RungeKutta45(slope, angle, z.flatten(1), self.rtol, self.atol, self.most)
        for t, s in pairwise(levels):
            x_t = float(schedule.level(t).length) * flow.y.view(x.shape)
            yield State(t, x_t, x0_hat(angle))
            angle = float(schedule.level(max(s, 1)).angle)
            flow.advance(angle)
        return x0_hat(angle)
