"""Self-conditioning: a network is shown its earlier estimate of x0.

Chen et al. 2022 ("Analog bits", arXiv:2208.04202), section 3.2 and algorithms 1 and 2. A network
that takes the estimate says so (``Network.self_conditioning``) and finds it in
``condition.estimate``; where there is none, as at a sampler's first step, it is shown 0. For any
other network nothing is computed or passed on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ddpm_lightning.batch import Condition
from ddpm_lightning.diffusion.denoiser import Denoiser, Denoises
from ddpm_lightning.diffusion.prediction import Prediction
from ddpm_lightning.randomness import BatchNoise, Draw

SHARE = 0.5
"""Share of the training steps at which the network is shown its own estimate."""


def self_conditioned(
    denoiser: Denoiser, x_t: Tensor, t: Tensor, condition: Condition, noise: BatchNoise
) -> Condition:
    """Give the condition of a training step: at half of the steps it holds the own estimate of x0.

    The estimate has no gradient, and is clipped to the data's range as samplers do. The choice is
    one for all rows and processes of a step, as in the paper, so that other steps cost one
    evaluation.

    Args:
        denoiser: The model in training.
        x_t: [B, ...] noised data.
        t: int64 [B] their levels.
        condition: What the denoiser is told beside x_t, B rows.
        noise: The noise of the step.
    """
    if not _takes_estimate(denoiser) or noise.shared(Draw.SELF_CONDITIONING) >= SHARE:
        return condition
    with torch.no_grad():
        prediction = denoiser(x_t, t, condition).clip(denoiser.net.data.data_range)
    # Because older torch keeps the weights that autocast has cast here, without a gradient, for
    # the next pass (pytorch issue 112583).
    torch.clear_autocast_cache()
    return condition._replace(estimate=prediction.x0)


def followed(denoiser: Denoises, condition: Condition, prediction: Prediction) -> Condition:
    """Give the condition of the sampling step after a (clipped) prediction: it holds its x0."""
    return condition._replace(estimate=prediction.x0) if _takes_estimate(denoiser) else condition


def _takes_estimate(denoiser: Denoises) -> bool:
    return getattr(getattr(denoiser, "net", None), "self_conditioning", False)
