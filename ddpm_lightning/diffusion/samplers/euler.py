"""Euler steps of the probability-flow ODE, with noise added back if asked for."""

from __future__ import annotations

import math
from collections.abc import Generator
from itertools import pairwise

from torch import Tensor
from typing_extensions import override

from ddpm_lightning.diffusion.levels import Schedule
from ddpm_lightning.diffusion.posterior import transition_variance
from ddpm_lightning.diffusion.prediction import Prediction
from ddpm_lightning.diffusion.samplers.ddim import ddim_step
from ddpm_lightning.diffusion.samplers.sampler import Draw, Predict, Sampler, State
from ddpm_lightning.diffusion.samplers.spacings import Spacing, UniformSpacing
from ddpm_lightning.errors import InputError


class Euler(Sampler):
    """Euler's method in x/alpha over sigma/alpha: DDIM, and with churn EDM's stochastic sampler.

    Churn (EDM algorithm 2): before a step, noise is added to raise sigma/alpha by the factor
    1 + min(churn/steps, sqrt(2) − 1). The model knows only its own levels, so x is raised to the
    level nearest to that, with exactly that level's noise: never above T, so the first step has no
    churn, and not at all where the factor is less than half a level. A State keeps its level; its
    x0 is the prediction at the raised one.

    Args:
        steps: Number of network evaluations; None visits every level.
        churn: EDM's S_churn: how much noise is added back, summed over the steps; 0 is none.
        churn_range: Add it only where sigma/alpha is in this range (EDM's S_tmin, S_tmax).
        churn_noise: Standard deviation of the added noise (EDM's S_noise).
        spacing: Which levels are visited.
        clip: Limit each prediction of x0 to this range, e.g. [-1, 1]; None never does.
        threshold: Dynamic thresholding: share of values kept in the range, e.g. 0.995.

    Raises:
        InputError: A churn setting is below 0 or the range is empty.
    """

    def __init__(
        self,
        steps: int | None = 50,
        churn: float = 0.0,
        churn_range: tuple[float, float] = (0.0, math.inf),
        churn_noise: float = 1.0,
        spacing: Spacing = UniformSpacing(),
        clip: tuple[float, float] | None = None,
        threshold: float | None = None,
    ) -> None:
        super().__init__(steps, spacing, clip, threshold)
        if churn < 0 or churn_noise < 0 or not 0 <= churn_range[0] < churn_range[1]:
            raise InputError(
                f"{type(self).__name__}(churn={churn:g}, churn_range={list(churn_range)}, "
                f"churn_noise={churn_noise:g}): all are at least 0, and the range is [low, high]"
            )
        self.churn = churn
        self.churn_range = churn_range
        self.churn_noise = churn_noise

    @override
    def path(
        self, predict: Predict, schedule: Schedule, x: Tensor, draw: Draw
    ) -> Generator[State, None, Tensor]:
        levels = self.levels(schedule)
        for i, (t, s) in enumerate(pairwise(levels), start=1):
            raised, x_raised = self.raised(schedule, t, len(levels) - 1), x
            if raised > t:
                low, high = schedule.level(t), schedule.level(raised)
                std = self.churn_noise * transition_variance(low, high) ** 0.5
                x_raised = high.alpha / low.alpha * x + std * draw(i)
            prediction = predict(x_raised, raised)
            yield State(t, x, prediction.x0)
            x = self.advance(predict, prediction, s)
        return x

    def advance(self, predict: Predict, prediction: Prediction, s: int) -> Tensor:
        """Step from x_t to x_s, without noise."""
        return ddim_step(prediction, s)

    def raised(self, schedule: Schedule, t: int, steps: int) -> int:
        """The level in t…T to which churn raises level t, in a run of so many steps."""
        if self.churn == 0 or float(schedule.alpha[t]) == 0:
            return t
        noise = float(schedule.sigma[t]) / float(schedule.alpha[t])
        if not self.churn_range[0] <= noise <= self.churn_range[1]:
            return t
        wanted = math.log(noise * (1 + min(self.churn / steps, math.sqrt(2) - 1)))
        table = list(zip(schedule.alpha.tolist(), schedule.sigma.tolist(), strict=True))[t:]
        distances = [abs(math.log(s / a) - wanted) if a > 0 else math.inf for a, s in table]
        return t + distances.index(min(distances))
