"""DDIM run backwards: from data to the noise that it would be sampled from."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from ddpm_lightning.batch import Condition
from ddpm_lightning.diffusion.denoiser import Denoises, evaluation_mode
from ddpm_lightning.diffusion.samplers.spacings import Spacing, UniformSpacing
from ddpm_lightning.errors import InputError


@torch.no_grad()
def encode(
    denoiser: Denoises,
    x0: Tensor,
    condition: Condition = Condition(),
    steps: int | None = None,
    spacing: Spacing = UniformSpacing(),
    iterations: int = 1,
) -> Tensor:
    """Find x_T from which DDIM(steps, eta=0) on the same levels gives x0 (DDIM sec. 4.3 and 5.4).

    x_t = alpha_t/alpha_s·x_s + (sigma_t − alpha_t/alpha_s·sigma_s)·eps(x_t) is DDIM's step solved
    for x_t. It holds x_t on both sides: starting from the eps of the level below, each iteration
    is one evaluation at the current x_t. One iteration follows the ODE as closely as DDIM itself
    does; more approach the x_t from which the way back is exact, sooner where the steps are short.
    A self-conditioned network is shown no estimate, so DDIM's way back is another one.
    Where eps(x_t) is steep, between modes of the data, a few rows of a few steps end elsewhere.

    Args:
        denoiser: The model; under guidance other than 1 the way back is inexact.
        x0: [B, ...] data.
        condition: What the denoiser is told beside x_t, B rows.
        steps: Number of steps; None visits every level.
        spacing: Which levels are visited.
        iterations: Network evaluations a step.

    Raises:
        InputError: iterations is below 1, or a single step would go up to alpha_T = 0.
    """
    if iterations < 1:
        raise InputError(f"encode(iterations={iterations}): at least one evaluation a step")
    schedule = denoiser.schedule
    levels = [schedule.level(t) for t in spacing(schedule, steps)]
    if len(levels) == 2 and levels[0].alpha == 0:
        raise InputError(
            f"encode in one step up to level {levels[0].t}, where alpha = 0: nothing of x0 "
            "is left in x_T; take more steps"
        )
    x, eps = x0, torch.zeros_like(x0)
    with evaluation_mode(denoiser.net):
        for s, t in pairwise(reversed(levels)):
            kept = t.alpha / s.alpha
            added = t.sigma - kept * s.sigma
            x_s, x = x, kept * x + added * eps
            for _ in range(iterations):
                prediction = denoiser(x, t.t, condition)
                # At alpha_t = 0 x_t is all noise, and eps(x_t) would only give x_t back.
                eps = prediction.eps if t.alpha > 0 else (x_s - s.alpha * prediction.x0) / s.sigma
                x = kept * x_s + added * eps
    return x
