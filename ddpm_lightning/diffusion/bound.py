"""Variational bound on −log p(x_0): its terms, their sum over all levels, or an estimate of it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ddpm_lightning.batch import Condition
from ddpm_lightning.diffusion.decoders import Decoder, DiscretizedGaussian, GaussianDecoder
from ddpm_lightning.diffusion.denoiser import Denoises, evaluation_mode
from ddpm_lightning.diffusion.levels import Scalar, Schedule, Time, as_tensor
from ddpm_lightning.diffusion.posterior import posterior
from ddpm_lightning.diffusion.prediction import Prediction
from ddpm_lightning.diffusion.samplers.spacings import QuadraticSpacing, Spacing
from ddpm_lightning.errors import InputError
from ddpm_lightning.randomness import IndexedNoise


@dataclass(frozen=True, eq=False)
class Bound:
    """Variational bound on −log p(x_0), L_0 + … + L_T (DDPM eq. 5), sample by sample, in its unit.

    Terms are [B, K + 1], averaged over dimensions. Column k is L_e + … + L_{e' − 1} with e =
    edges[k] and e' = edges[k + 1], or an unbiased estimate; the last column is L_T. The K + 1
    edges increase: 0, 1, …, T.
    """

    terms: Tensor
    edges: list[int]
    unit: str

    @property
    def total(self) -> Tensor:
        """[B] the bound."""
        return self.terms.sum(1)


def variational_bound(
    denoiser: Denoises,
    x0: Tensor,
    noise: IndexedNoise,
    condition: Condition = Condition(),
    decoder: Decoder | None = None,
    clip: tuple[float, float] | None = None,
    evaluations: int | None = None,
    spacing: Spacing = QuadraticSpacing(),
) -> Bound:
    """Compute L_T + sum L_{t−1} + L_0 ≥ −log p(x_0) (DDPM eq. 5), each term by one noise draw.

    With fewer evaluations than levels, the levels are cut into strata and each sample sees one
    level of each, drawn evenly and weighted by how many there are, so the expectation is the
    bound. L_0 is a stratum of its own and L_T takes no network. Rows are independent, and the
    standard error of their mean holds levels, noise and the choice of data.

    Args:
        denoiser: The model.
        x0: [B, ...] data.
        noise: Bound to the samples' indices; eps of column k is draw k + 1.
        condition: What the denoiser is told beside x_t, B rows.
        decoder: p(x_0 | x_1), with the unit: bits or nats. None: :func:`decoder_of` clip.
        clip: Range of the data that x0_hat is clipped to, as in the published numbers.
        evaluations: Network evaluations a sample, at least 2; None, or T and more: every level.
        spacing: Where the strata end.
    """
    schedule = denoiser.schedule
    decoder = decoder or decoder_of(clip)
    edges = strata(schedule, evaluations, spacing)
    x0 = x0.to(torch.promote_types(x0.dtype, torch.float32))
    columns = []
    with torch.no_grad(), evaluation_mode(denoiser.net):
        for k, (below, top) in enumerate(pairwise(edges), start=1):
            size = top - below
            t: Time = top
            if size > 1:
                t = below + 1 + (noise.uniform(k) * size).long().clamp(max=size - 1)
            x_t = schedule.add_noise(x0, t, noise(k, tuple(x0.shape[1:])).to(x0))
            prediction = denoiser(x_t, t, condition).clip(clip)
            columns.append(size * bound_term(prediction, x0, decoder))
        columns.append(prior_term(schedule, x0, decoder))
    return Bound(torch.stack(columns, dim=1), edges, decoder.unit)


def decoder_of(data_range: tuple[float, float] | None) -> Decoder:
    """Choose the decoder: 8-bit images where data lies in [−1, 1], continuous data elsewhere."""
    images = data_range is not None and tuple(data_range) == (-1, 1)
    return DiscretizedGaussian() if images else GaussianDecoder()


def strata(
    schedule: Schedule, evaluations: int | None, spacing: Spacing = QuadraticSpacing()
) -> list[int]:
    """Cut the levels 1…T into as many strata as evaluations, level 1 alone in the first.

    Gives the edges 0, 1, …, T; a stratum is (edges[k], edges[k + 1]]. None, or T and more
    evaluations: each level is one. One fewer if the spacing leaves no room for level 1.

    Raises InputError: Fewer than two evaluations, or a spacing that leaves levels out.
    """
    if evaluations is None or evaluations >= schedule.T:
        return list(range(schedule.T + 1))
    if evaluations < 2:
        raise InputError(
            f"a bound from {evaluations} evaluations: at least 2, one for L_0 and one for the rest"
        )
    edges = sorted({1, *spacing(schedule, evaluations)})
    if len(edges) > evaluations + 1:
        edges = sorted({1, *spacing(schedule, evaluations - 1)})
    if edges[-1] != schedule.T:
        raise InputError(
            f"{type(spacing).__name__} leaves out the levels above {edges[-1]}, which the bound "
            "needs; take UniformSpacing or QuadraticSpacing"
        )
    return edges


def gaussian_kl(difference: Tensor, variance_q: Scalar, variance_p: Scalar) -> Tensor:
    """KL(q‖p) [B, ...] of two Gaussians, dimension by dimension, in nats.

    ½·(r − 1 − ln r + difference²/variance_p) with r = variance_q/variance_p, and the difference of
    the means [B, ...].
    """
    log_ratio = as_tensor(variance_q, difference).log() - as_tensor(variance_p, difference).log()
    return 0.5 * (torch.expm1(log_ratio) - log_ratio + difference.square() / variance_p)


def bound_term(prediction: Prediction, x0: Tensor, decoder: Decoder) -> Tensor:
    """L_{t−1} of the bound (DDPM eq. 5): KL for t > 1, the decoder's −log p(x_0 | x_1) at t = 1.

    [B], averaged over dimensions, in the decoder's unit; levels may differ by row.
    """
    x_t, variance, level = prediction.x_t, prediction.reverse_variance, prediction.level
    if isinstance(level.t, int):
        t = torch.full((len(x_t),), level.t, device=x_t.device)
        level = level.schedule.level(t, like=x_t)
    before = level.previous
    first = torch.as_tensor(before.sigma == 0)
    # Both are computed for every row, each at a level where it is finite, as its gradient is.
    q = posterior(before, level)
    variance_q = torch.where(first, 1.0, as_tensor(q.variance, x_t))
    variance_p = torch.where(first, 1.0, as_tensor(variance(prediction, before), x_t))
    kl = gaussian_kl(q.x0 * (x0 - prediction.x0), variance_q, variance_p)
    variance_0 = torch.where(first, as_tensor(variance.decoder(prediction), x_t), 1.0)
    nll = decoder(x0, prediction.x0, variance_0)
    return torch.where(first, nll, kl).flatten(1).mean(1) / decoder.nats


def prior_term(schedule: Schedule, x0: Tensor, decoder: Decoder) -> Tensor:
    """L_T of the bound (DDPM eq. 5): KL(q(x_T | x_0) ‖ N(0, prior_std²)); nothing to learn in it.

    [B], averaged over dimensions, in the decoder's unit.
    """
    last = schedule.level(schedule.T)
    kl = gaussian_kl(last.alpha * x0, last.sigma**2, schedule.prior_std**2)
    return kl.flatten(1).mean(1) / decoder.nats
