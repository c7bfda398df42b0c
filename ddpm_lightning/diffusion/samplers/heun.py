"""Heun's second-order method."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from ddpm_lightning.diffusion.prediction import Prediction
from ddpm_lightning.diffusion.samplers.ddim import ddim_step
from ddpm_lightning.diffusion.samplers.euler import Euler
from ddpm_lightning.diffusion.samplers.sampler import Predict

LONG_STEP = 10
"""sigma/alpha at the start of a step over that at its end, above which it is not corrected."""


class Heun(Euler):
    """EDM's sampler: an Euler step, corrected with the slope at its end (EDM algorithms 1 and 2).

    The slope of x/alpha over sigma/alpha is eps; the step is taken with the mean of the two. The
    last step is plain Euler, and so is one across more than a factor of LONG_STEP in sigma/alpha,
    as from the last levels of the cosine schedule (20,291 and more): there the slope is constant
    over nearly all of the step, and the mean would give half the weight to its far end. So a
    handful of steps evenly spaced in log SNR, each of them long, are Euler's.

    Args:
        steps: Number of steps, of two network evaluations each, those that are not corrected of
            one; None visits every level.
    """

    @override
    def advance(self, predict: Predict, prediction: Prediction, s: int) -> Tensor:
        x_s = ddim_step(prediction, s)
        start, end = prediction.level, prediction.level.at(s)
        if s == 0 or start.sigma * end.alpha > LONG_STEP * end.sigma * start.alpha:
            return x_s
        eps = (prediction.eps + predict(x_s, s).eps) / 2
        return ddim_step(prediction.with_eps(eps), s)
