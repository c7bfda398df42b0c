"""Predictor–corrector sampling: a sampler's step, then Langevin dynamics at its end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from functools import partial
from itertools import pairwise

from torch import Tensor
from typing_extensions import override

from ddpm_lightning.configurable import Configurable
from ddpm_lightning.diffusion.levels import Scalar, Schedule
from ddpm_lightning.diffusion.prediction import Prediction
from ddpm_lightning.diffusion.samplers.reverse_diffusion import ReverseDiffusion
from ddpm_lightning.diffusion.samplers.sampler import Draw, Predict, Sampler, SingleStep, State
from ddpm_lightning.diffusion.samplers.spacings import Spacing, UniformSpacing
from ddpm_lightning.errors import InputError, above, at_least

FEWEST_VALUES = 32
"""Values of a sample, below which norms scatter too much for the size of a step."""


class Corrector(Configurable, ABC):
    """Langevin dynamics at one level: x ← x + size·score + √(2·size)·noise.

    Args:
        snr: r, the signal-to-noise ratio that sets the size; above 0.
        steps: Steps a level, of one network evaluation each, M in the paper.

    Raises:
        InputError: snr is not above 0, or there are no steps.
    """

    def __init__(self, snr: float = 0.16, steps: int = 1) -> None:
        above(0, self, snr=snr)
        at_least(1, self, steps=steps)
        self.snr = snr
        self.steps = steps

    def step(self, prediction: Prediction, noise: Tensor) -> Tensor:
        """Move x_t [B, ...] within its level, given noise of its shape."""
        score = -prediction.eps / prediction.level.sigma
        size = self.size(prediction, score, noise)
        return prediction.x_t + size * score + (2 * size) ** 0.5 * noise

    @abstractmethod
    def size(self, prediction: Prediction, score: Tensor, noise: Tensor) -> Scalar:
        """Size of the step, a number or [B, 1, …]."""


class Langevin(Corrector):
    """The size from the norms of noise and score: 2·a²·(r·‖noise‖/‖score‖)².

    Song et al. 2021, algorithms 4 and 5, with a = alpha_t/alpha_{t−1}, so that a² is their
    alpha_i = 1 − beta_i where variance is preserved, and 1 where it explodes. The norms are each
    sample's own (their code takes the batch's means), so that a sample does not depend on the
    others. That is a rule for many dimensions: in a few the score nearly vanishes here and there,
    and the step has no bound.

    Raises InputError (on use): The data has fewer than 32 values; take LangevinBySigma.
    """

    @override
    def size(self, prediction: Prediction, score: Tensor, noise: Tensor) -> Tensor:
        if score[0].numel() < FEWEST_VALUES:
            raise InputError(
                f"Langevin's step from the norms of {score[0].numel()} values has no bound where "
                f"the score vanishes; with fewer than {FEWEST_VALUES} take the one from the noise "
                "level: --sampler.corrector LangevinBySigma"
            )
        norm_of_noise, norm_of_score = (v.flatten(1).norm(dim=1) for v in (noise, score))
        size = 2 * _kept(prediction) * (self.snr * norm_of_noise / norm_of_score) ** 2
        return size.view(-1, *[1] * (score.ndim - 1))


class LangevinBySigma(Corrector):
    """The size from the noise level: 2·a²·(r·sigma)², for data of any dimension.

    sigma is what ‖noise‖/‖score‖ is for a single point of data (annealed Langevin dynamics, Song &
    Ermon 2019, algorithm 1; in the code of Song et al. 2021 beside the rule of Langevin).
    """

    @override
    def size(self, prediction: Prediction, score: Tensor, noise: Tensor) -> Scalar:
        return 2 * _kept(prediction) * (self.snr * prediction.level.sigma) ** 2


class PredictorCorrector(Sampler):
    """Predictor–corrector sampling (Song et al. 2021, algorithms 1 to 3).

    Each step goes to the next level with the predictor, and then moves there by Langevin dynamics,
    which leaves that level's distribution as it is and so takes out errors of the step. At level 0
    there is no score, and nothing is corrected.

    Args:
        steps: Number of steps, of 1 + corrector.steps network evaluations each but for the last;
            None visits every level.
        predictor: The step from level to level: ReverseDiffusion, DDPM (ancestral sampling) or
            DDIM; its own steps, spacing and clip have no use here.
        corrector: Langevin or LangevinBySigma; null: none.
        spacing: Which levels are visited.
        clip: Limit each prediction of x0 to this range, e.g. [-1, 1]; None never does.
        threshold: Dynamic thresholding: share of values kept in the range, e.g. 0.995.

    Raises:
        InputError: The predictor has steps, a spacing or a clip of its own.
    """

    def __init__(
        self,
        steps: int | None = None,
        predictor: SingleStep = ReverseDiffusion(),
        corrector: Corrector | None = Langevin(),
        spacing: Spacing = UniformSpacing(),
        clip: tuple[float, float] | None = None,
        threshold: float | None = None,
    ) -> None:
        super().__init__(steps, spacing, clip, threshold)
        own = {"steps", "spacing", "clip", "threshold"} & predictor.changed().keys()
        if own:
            raise InputError(
                f"PredictorCorrector: the predictor has {', '.join(sorted(own))} of its own; give "
                "them to PredictorCorrector itself, e.g. --sampler.steps 100"
            )
        self.predictor = predictor
        self.corrector = corrector

    @override
    def path(
        self, predict: Predict, schedule: Schedule, x: Tensor, draw: Draw
    ) -> Generator[State, None, Tensor]:
        corrections = 0 if self.corrector is None else self.corrector.steps
        for i, (t, s) in enumerate(pairwise(self.levels(schedule))):
            first = 1 + i * (1 + corrections)  # of the step's draws
            prediction = predict(x, t)
            yield State(t, x, prediction.x0)
            x = self.predictor.checked_step(prediction, s, partial(draw, first))
            if self.corrector is not None and s > 0:
                for k in range(corrections):
                    x = self.corrector.step(predict(x, s), draw(first + 1 + k))
        return x


def _kept(prediction: Prediction) -> Scalar:
    """Share of variance that the forward step to x_t keeps, (alpha_t/alpha_{t−1})²."""
    return (prediction.level.alpha / prediction.level.previous.alpha) ** 2
