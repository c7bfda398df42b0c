"""The whole variational bound of data under a model: every level, or an unbiased estimate."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ddpm_lightning.diffusion.denoiser import Denoises
from ddpm_lightning.diffusion.likelihood import (
    Decoder,
    DiscretizedGaussian,
    GaussianDecoder,
    bound_term,
    prior_term,
)
from ddpm_lightning.diffusion.samplers.sampler import evaluation_mode
from ddpm_lightning.diffusion.samplers.spacings import Quadratic, Spacing
from ddpm_lightning.diffusion.schedules import Schedule
from ddpm_lightning.errors import InputError
from ddpm_lightning.randomness import IndexedNoise


@dataclass(frozen=True, eq=False)
class Bound:
    """−log p(x_0) ≤ L_0 + L_1 + … + L_T (DDPM eq. 5), sample by sample.

    Args:
        terms: [B, K + 1], averaged over dimensions. Column k is L_e + … + L_{e' − 1} with e =
            edges[k] and e' = edges[k + 1], or an unbiased estimate of this sum; the last column
            is L_T. With every level evaluated column k is L_k.
        edges: K + 1 increasing numbers 0, 1, …, T.
        unit: ``bits`` or ``nats``, a dimension each.
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
    y: Tensor | None = None,
    decoder: Decoder | None = None,
    clip: tuple[float, float] | None = None,
    evaluations: int | None = None,
    spacing: Spacing = Quadratic(),
) -> Bound:
    """Bound −log p(x_0) by L_T + sum L_{t−1} + L_0 (DDPM eq. 5), one draw of noise for each term.

    With fewer evaluations than levels, the levels are cut into strata and each sample sees one
    level of each, drawn evenly and weighted by how many there are: the expectation of the column
    is the sum over the stratum, so that of the total is the bound. L_0 is a stratum of its own
    and L_T takes no network. Rows are independent, and the standard error of the mean over
    samples is their standard deviation / √B: it holds levels, noise and the choice of data.

    Args:
        denoiser: The model.
        x0: [B, ...] data.
        noise: Bound to the samples' indices; eps of column k is draw k + 1.
        y: int64 [B] class labels, or None.
        decoder: p(x_0 | x_1), with the unit: bits or nats. None: :func:`decoder_of` clip.
        clip: Range of the data that x0_hat is clipped to, as in the published numbers; None never
            clips.
        evaluations: Network evaluations a sample, at least 2; None, or T and more: every level.
        spacing: Where the strata end.

    Raises:
        InputError: The strata cannot be made so.
    """
    schedule = denoiser.schedule
    decoder = decoder or decoder_of(clip)
    edges = strata(schedule, evaluations, spacing)
    x0 = x0.to(torch.promote_types(x0.dtype, torch.float32))
    columns = []
    with torch.no_grad(), evaluation_mode(denoiser.net):
        for k, (below, top) in enumerate(pairwise(edges), start=1):
            size = top - below
            t: int | Tensor = top
            if size > 1:
                t = below + 1 + (noise.uniform(k) * size).long().clamp(max=size - 1)
            x_t = schedule.add_noise(x0, t, noise(k, tuple(x0.shape[1:])).to(x0))
            prediction = denoiser(x_t, t, y).clip(clip)
            columns.append(size * bound_term(prediction, x0, decoder))
        columns.append(prior_term(schedule, x0, decoder))
    return Bound(torch.stack(columns, dim=1), edges, decoder.unit)


def decoder_of(data_range: tuple[float, float] | None) -> Decoder:
    """Choose the decoder: 8-bit images where data lies in [−1, 1], continuous data elsewhere."""
    images = data_range is not None and tuple(data_range) == (-1, 1)
    return DiscretizedGaussian() if images else GaussianDecoder()


def strata(
    schedule: Schedule, evaluations: int | None, spacing: Spacing = Quadratic()
) -> list[int]:
    """Cut the levels 1…T into as many strata as evaluations, level 1 alone in the first.

    Args:
        schedule: The forward process.
        evaluations: Number of strata; None, or T and more: each level is one.
        spacing: Where they end; one fewer if this leaves no room for level 1.

    Returns:
        Edges 0, 1, …, T; a stratum is (edges[k], edges[k + 1]].

    Raises:
        InputError: Fewer than two evaluations, or a spacing that leaves levels out.
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
            "needs; take Uniform, Quadratic, LogSNR or Karras"
        )
    return edges
