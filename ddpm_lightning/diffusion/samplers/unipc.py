"""UniPC: a multistep predictor whose last step is corrected at no cost."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import replace
from itertools import pairwise

from torch import Tensor
from typing_extensions import override

from ddpm_lightning.diffusion.levels import Schedule
from ddpm_lightning.diffusion.prediction import Prediction
from ddpm_lightning.diffusion.samplers.ddim import ddim_step
from ddpm_lightning.diffusion.samplers.dpm_solver import extrapolate, half_log_snr
from ddpm_lightning.diffusion.samplers.sampler import Draw, Predict, Sampler, State
from ddpm_lightning.diffusion.samplers.spacings import Spacing, UniformSpacing


class UniPC(Sampler):
    """UniPC-2 with the paper's bh2, B(h) = e^h − 1 at −h (Zhao et al. 2023, algorithms 1 and 2).

    The predictor is DPM-Solver++(2M)'s step (UniP). Once the prediction at its end is known, the
    step is repeated with it (UniC), which costs no evaluation: the prediction is not renewed, so a
    State's x_t is the corrected one and its x0 was read off the uncorrected one. Both steps are
    DDIM's with x0 combined from predictions. The step into level 0 is plain.

    Args:
        steps: Number of network evaluations; None visits every level.
        spacing: Which levels are visited.
        clip: Limit each prediction of x0 to this range, e.g. [-1, 1]; None never does.
        threshold: Dynamic thresholding: share of values kept in the range, e.g. 0.995.
    """

    def __init__(
        self,
        steps: int | None = 20,
        spacing: Spacing = UniformSpacing(),
        clip: tuple[float, float] | None = None,
        threshold: float | None = None,
    ) -> None:
        super().__init__(steps, spacing, clip, threshold)

    @override
    def path(
        self, predict: Predict, schedule: Schedule, x: Tensor, draw: Draw
    ) -> Generator[State, None, Tensor]:
        previous: Prediction | None = None
        older: Prediction | None = None
        for t, s in pairwise(self.levels(schedule)):
            prediction = predict(x, t)
            if previous is not None and previous.level.alpha > 0:
                x = ddim_step(correct(previous, older, prediction), t)
                prediction = replace(prediction, x_t=x)
            yield State(t, x, prediction.x0)
            x = ddim_step(extrapolate(prediction, previous, s), s)
            previous, older = prediction, previous
        return x


def correct(previous: Prediction, older: Prediction | None, new: Prediction) -> Prediction:
    """Combine x0 for the step from previous to new, with the prediction at both ends and before.

    x0 + sum_k rho_k·(x0_k − x0) / r_k over the older (r_1 < 0) and the new one (r_2 = 1), with
    rho from sum_k r_k^(n−1)·rho_k = b_n, n = 1, 2 (theorem 3.1, for data prediction);
    rho = 1/2 without an older one. The alpha of previous is not 0.
    """
    x0, start = previous.x0, half_log_snr(previous.level)
    h = half_log_snr(new.level) - start
    if older is None or older.level.alpha == 0:
        return previous.with_x0(x0 + 0.5 * (new.x0 - x0))
    r = (half_log_snr(older.level) - start) / h
    # b_n = n!·z·phi_{n+1}(z) / B at z = −h, B = e^z − 1 = z·phi_1, z·phi_{n+1} = phi_n − 1/n!.
    z = -h
    B = math.expm1(z)
    z_phi_2 = B / z - 1
    z_phi_3 = z_phi_2 / z - 1 / 2
    b_1, b_2 = z_phi_2 / B, 2 * z_phi_3 / B
    rho_older = (b_1 - b_2) / (1 - r)
    rho_new = b_1 - rho_older
    combined = x0 + rho_older / r * (older.x0 - x0) + rho_new * (new.x0 - x0)
    return previous.with_x0(combined)
