"""A linear multistep method."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from typing_extensions import override

from ddpm_lightning.diffusion.levels import Schedule
from ddpm_lightning.diffusion.prediction import Prediction
from ddpm_lightning.diffusion.samplers.ddim import ddim_step
from ddpm_lightning.diffusion.samplers.sampler import Draw, Predict, Sampler, State
from ddpm_lightning.diffusion.samplers.spacings import Spacing, UniformSpacing
from ddpm_lightning.errors import InputError


class LMS(Sampler):
    """Adams–Bashforth in x/alpha over sigma/alpha: one evaluation a step, order up to 4.

    The slope eps is taken from the polynomial through the last predictions, averaged exactly over
    the step (Hairer, Nørsett & Wanner, sec. III.5; the multistep of Liu et al. 2022, PNDM, on
    any spacing). The first steps have lower order, for lack of history; the last one is plain.

    Args:
        steps: Number of network evaluations; None visits every level.
        order: Number of predictions used, 1 (DDIM) to 4.
        spacing: Which levels are visited.
        clip: Limit each prediction of x0 to this range, e.g. [-1, 1]; None never does.
        threshold: Dynamic thresholding: share of values kept in the range, e.g. 0.995.

    Raises:
        InputError: order is outside 1 to 4.
    """

    def __init__(
        self,
        steps: int | None = 50,
        order: int = 4,
        spacing: Spacing = UniformSpacing(),
        clip: tuple[float, float] | None = None,
        threshold: float | None = None,
    ) -> None:
        super().__init__(steps, spacing, clip, threshold)
        if not 1 <= order <= 4:
            raise InputError(f"LMS(order={order}): the order is 1, 2, 3 or 4")
        self.order = order

    @override
    def path(
        self, predict: Predict, schedule: Schedule, x: Tensor, draw: Draw
    ) -> Generator[State, None, Tensor]:
        history: list[Prediction] = []  # newest first
        for t, s in pairwise(self.levels(schedule)):
            prediction = predict(x, t)
            yield State(t, x, prediction.x0)
            if s > 0 and prediction.level.alpha > 0:
                history = [prediction, *history[: self.order - 1]]
                if len(history) > 1:  # alone it would only lose digits, by way of eps and back
                    prediction = prediction.with_eps(_mean_eps(history, s))
            # Otherwise plain: sigma/alpha of a level with alpha_T = 0 is no point to fit through.
            x = ddim_step(prediction, s)
        return x


def adams_bashforth(points: Sequence[float], end: float) -> list[float]:
    """Weights of a function's values at these points in its mean from points[0] to the end.

    The function is taken for the polynomial through the values, at most 4 at distinct points.
    """
    middle, half = (points[0] + end) / 2, (end - points[0]) / 2
    weights = [0.0] * len(points)
    # Two-point Gauss quadrature is exact for polynomials of degree 3.
    for node in (middle - half / math.sqrt(3), middle + half / math.sqrt(3)):
        for j, point in enumerate(points):
            others = [other for other in points if other != point]
            weights[j] += 0.5 * math.prod((node - other) / (point - other) for other in others)
    return weights


def _mean_eps(history: list[Prediction], s: int) -> Tensor:
    levels = [past.level for past in history] + [history[0].level.at(s)]
    *points, end = (float(level.sigma) / float(level.alpha) for level in levels)
    weights = adams_bashforth(points, end)
    terms = [weight * past.eps for weight, past in zip(weights, history, strict=True)]
    return torch.stack(terms).sum(0)
