"""DPM-Solver++: multistep sampling of the ODE, and of the SDE, in the half-log-SNR."""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from itertools import pairwise
from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from ddpm_lightning.diffusion.levels import Level, Schedule
from ddpm_lightning.diffusion.prediction import Prediction
from ddpm_lightning.diffusion.samplers.ddim import ddim_step
from ddpm_lightning.diffusion.samplers.sampler import Draw, Predict, Sampler, State
from ddpm_lightning.diffusion.samplers.spacings import Spacing, UniformSpacing
from ddpm_lightning.errors import InputError


class DPMSolverPP(Sampler):
    """DPM-Solver++(2M): good samples in 15 to 30 evaluations (Lu et al. 2022b, algorithm 2).

    A DDIM step with x0 extrapolated to the middle of the step in lambda = log(alpha/sigma):
    x0 + (x0 − x0_previous) / (2r), r = (lambda_t − lambda_previous) / (lambda_s − lambda_t). The
    first step, for lack of history, and the last, whose lambda_s is infinite, are plain.

    Args:
        steps: Number of network evaluations; None visits every level.
        order: 2 extrapolates; 1 is DDIM.
        spacing: Which levels are visited.
        clip: Limit each prediction of x0 to this range, e.g. [-1, 1]; None never does.
        threshold: Dynamic thresholding: share of values kept in the range, e.g. 0.995.

    Raises:
        InputError: order is neither 1 nor 2.
    """

    eta: ClassVar[float] = 0.0

    def __init__(
        self,
        steps: int | None = 20,
        order: int = 2,
        spacing: Spacing = UniformSpacing(),
        clip: tuple[float, float] | None = None,
        threshold: float | None = None,
    ) -> None:
        super().__init__(steps, spacing, clip, threshold)
        if order not in (1, 2):
            raise InputError(f"{type(self).__name__}(order={order}): the order is 1 or 2")
        self.order = order

    @override
    def path(
        self, predict: Predict, schedule: Schedule, x: Tensor, draw: Draw
    ) -> Generator[State, None, Tensor]:
        previous: Prediction | None = None
        for i, (t, s) in enumerate(pairwise(self.levels(schedule)), start=1):
            prediction = predict(x, t)
            yield State(t, x, prediction.x0)
            ahead = extrapolate(prediction, previous, s) if self.order == 2 else prediction
            x = ddim_step(ahead, s, self.eta, partial(draw, i))
            previous = prediction
        return x


class DPMSolverPPSDE(DPMSolverPP):
    """SDE-DPM-Solver++(2M): the same with the noise of the reverse SDE (Lu et al. 2022b).

    Its step is that of DDIM at eta = 1 with x0 extrapolated; order 1 is DDIM at eta = 1.
    """

    eta: ClassVar[float] = 1.0


def extrapolate(prediction: Prediction, previous: Prediction | None, s: int) -> Prediction:
    """Extrapolate x0 to the middle of the step from t to s, in lambda, by the one before.

    To s = 0, infinitely far in lambda, nothing is extrapolated.
    """
    if previous is None or s == 0:
        return prediction
    levels = previous.level, prediction.level, prediction.level.at(s)
    above, here, below = (half_log_snr(level) for level in levels)
    r = (here - above) / (below - here)  # infinite from alpha_T = 0: no extrapolation either
    x0 = prediction.x0 + (prediction.x0 - previous.x0) / (2 * r)
    return prediction.with_x0(x0)


def half_log_snr(level: Level) -> float:
    """Lambda = log(alpha/sigma): −inf where alpha = 0, inf at level 0."""
    return float(level.log_snr) / 2
