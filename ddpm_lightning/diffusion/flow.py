"""Likelihood of the probability-flow ODE."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ddpm_lightning.batch import Condition
from ddpm_lightning.diffusion.denoiser import Denoises, evaluation_mode
from ddpm_lightning.diffusion.levels import Time
from ddpm_lightning.diffusion.runge_kutta import RungeKutta45
from ddpm_lightning.diffusion.samplers.spacings import Spacing, UniformSpacing
from ddpm_lightning.errors import InputError, above
from ddpm_lightning.randomness import IndexedNoise

MOST_EVALUATIONS = 10_000
"""Network evaluations after which an adaptive integration gives up."""

EXACT_DIMENSIONS = 64
"""Largest dimension of an exact divergence, which takes as many backward passes."""


@dataclass(frozen=True, eq=False)
class FlowResult:
    """−log p(x_0) [B] under the probability flow, averaged over dimensions, in bits or nats each.

    The standard error [B] is by the probes of the divergence; 0 where that is exact, nan for one.
    ``evaluations`` is the number of network evaluations (NFE) a sample.
    """

    nll: Tensor
    standard_error: Tensor
    unit: str
    evaluations: int


def flow_likelihood(
    denoiser: Denoises,
    x0: Tensor,
    noise: IndexedNoise,
    condition: Condition = Condition(),
    bins: int | None = None,
    probes: int | None = None,
    steps: int | None = None,
    spacing: Spacing = UniformSpacing(),
) -> FlowResult:
    """Integrate the divergence of the probability flow from data to noise (Song et al. 2021).

    Eq. 39. With the angle phi = arctan(sigma/alpha) and z = x_t/√(alpha² + sigma²) the ODE is

        dz/dphi = v,  v = cos(phi)·eps − sin(phi)·x0_hat  (Salimans & Ho 2022, app. D)
        log p(x_0) = log N(z_T; 0, I) + ∫ div v dphi

    which is finite from sigma_0 = 0 to alpha_T = 0 and stands still for standard normal data. The
    steps are Heun's, second order, between levels of the schedule. Below level 1 the score is
    taken as that at level 1, so v = −sigma·score falls to 0 at the data. Nothing was learned
    there on levels; a model of real times knows more: see :func:`adaptive_flow_likelihood`.

    Args:
        denoiser: The model, differentiable; never clipped, which would make the flow another.
        x0: [B, ...] data.
        noise: Bound to the samples' indices; draw 0 dequantises, draw 1… are the probes.
        condition: What the denoiser is told beside x_t, B rows.
        bins: Grey levels of images in [−1, 1], 256 for 8 bits: uniform noise fills each level's
            bin, which bounds the discrete likelihood (Theis et al. 2016, sec. 3.1), in bits.
            None: continuous data, in nats.
        probes: Rademacher vectors of Hutchinson's unbiased estimate of the divergence, a backward
            pass each. None: exact, for at most 64 dimensions.
        steps: Number of steps, of two network evaluations each; None visits every level.
        spacing: Which levels are visited.

    Raises:
        InputError: An argument is out of range, or the data too large for an exact divergence.
    """
    T, levels = denoiser.schedule.T, spacing(denoiser.schedule, steps)[::-1]
    if levels[-1] != T:
        raise InputError(f"the flow must end in noise, at level {T}, not {levels[-1]}")
    with _derivatives(denoiser):
        z, vectors, condition = _start(x0, noise, condition, bins, probes)
        divergence = z.new_zeros(len(vectors), len(z))  # [P, B]
        for s, t in pairwise(levels):
            step = _angle(denoiser, t) - _angle(denoiser, s)
            v_s, div_s = _velocity(denoiser, z, s, condition, vectors)
            v_t, div_t = _velocity(denoiser, z + step * v_s, t, condition, vectors)
            z = z + step / 2 * (v_s + v_t)
            divergence += step / 2 * (div_s + div_t)
    return _finish(z, divergence, bins, probes, 2 * len(levels) - 3)


def adaptive_flow_likelihood(
    denoiser: Denoises,
    x0: Tensor,
    noise: IndexedNoise,
    condition: Condition = Condition(),
    bins: int | None = None,
    probes: int | None = None,
    tolerance: float = 1e-5,
    lowest: int | float = 1,
) -> FlowResult:
    """Integrate the same by Runge–Kutta 5(4) to a tolerance (Song et al. 2021, sec. 4.3).

    The model is asked at real times between its levels, as by the sampler AdaptiveODE; from the
    data to the lowest time learned it is one step of Heun's. Each sample has its own steps.

    Args:
        denoiser: As for :func:`flow_likelihood`, and so are the arguments up to probes.
        x0: [B, ...] data.
        noise: Bound to the samples' indices.
        condition: What the denoiser is told beside x_t, B rows.
        bins: Grey levels of images, or None for continuous data.
        probes: Vectors of the divergence's estimate, or None for the exact one.
        tolerance: Relative and absolute tolerance of a step's error in z and divergence; the
            paper's 1e-5.
        lowest: The lowest time learned, ``Timesteps.lowest``: level 1, or a real time (float).

    Raises:
        InputError: As for :func:`flow_likelihood`; or the tolerance is not reached.
    """
    above(0, tolerance=tolerance)
    with _derivatives(denoiser):
        z, vectors, condition = _start(x0, noise, condition, bins, probes)
        first = _angle(denoiser, lowest)
        v, div = _velocity(denoiser, z, lowest, condition, vectors)
        z = z + first / 2 * v
        shape, size = z.shape, z[0].numel()
        columns = first / 2 * div.T if probes else first / 2 * div.sum(0)[:, None]  # [B, P or 1]

        def slope(angle: Tensor, y: Tensor) -> Tensor:
            t = denoiser.schedule.time_at(angle)
            v, div = _velocity(denoiser, y[:, :size].view(shape), t, condition, vectors)
            return torch.cat([v.flatten(1), div.T if probes else div.sum(0)[:, None]], dim=1)

        y = torch.cat([z.flatten(1), columns], dim=1)
        flow = RungeKutta45(slope, first, y, tolerance, tolerance, MOST_EVALUATIONS)
        flow.advance(_angle(denoiser, denoiser.schedule.T))
    z, divergence = flow.y[:, :size].view(shape), flow.y[:, size:].T
    return _finish(z, divergence, bins, probes, 1 + flow.evaluations)


@contextmanager
def _derivatives(denoiser: Denoises) -> Iterator[None]:
    """Allow derivatives where they are asked for; Lightning tests in inference mode."""
    with torch.inference_mode(False), torch.no_grad(), evaluation_mode(denoiser.net):
        yield


def _start(
    x0: Tensor, noise: IndexedNoise, condition: Condition, bins: int | None, probes: int | None
) -> tuple[Tensor, Tensor, Condition]:
    """Give z at the data [B, ...], the vectors [P, B, ...], and the condition, to differentiate.

    Raises InputError: The data is too large for an exact divergence.
    """
    dimensions = x0[0].numel()
    if probes is None and dimensions > EXACT_DIMENSIONS:
        raise InputError(
            f"an exact divergence in {dimensions} dimensions takes as many backward passes; up "
            f"to {EXACT_DIMENSIONS} are allowed: give probes, e.g. 1"
        )
    z = x0.to(torch.promote_types(x0.dtype, torch.float32)).clone()
    condition = Condition(*(None if part is None else part.clone() for part in condition))
    if bins is not None:
        u = torch.special.ndtr(noise(0, tuple(x0.shape[1:])).to(z))
        z = z + (2 * u - 1) / (bins - 1)
    return z, _probes(z, noise, probes), condition


def _finish(
    z: Tensor, divergence: Tensor, bins: int | None, probes: int | None, evaluations: int
) -> FlowResult:
    """Add up log N(z_T; 0, I) and the integrated divergence [P, B] to a result."""
    log_prior = -0.5 * (z.square() + math.log(2 * math.pi)).flatten(1).sum(1)
    if probes is None:
        total, spread = divergence.sum(0), torch.zeros_like(log_prior)
    else:
        total = divergence.mean(0)
        spread = divergence.std(0) if probes > 1 else torch.full_like(total, math.nan)
        spread = spread / math.sqrt(probes)
    dimensions = z[0].numel()
    nll = -(log_prior + total) / dimensions
    if bins is None:
        return FlowResult(nll, spread / dimensions, "nats", evaluations)
    bits = math.log(2)
    nll = (nll - math.log(2 / (bins - 1))) / bits  # density → mass of a bin
    return FlowResult(nll, spread / dimensions / bits, "bits", evaluations)


def _angle(denoiser: Denoises, t: int | float) -> float:
    return float(denoiser.schedule.level(t).angle)


def _probes(z: Tensor, noise: IndexedNoise, probes: int | None) -> Tensor:
    """Vectors [P, B, ...]: Rademacher, or the basis, whose quadratic forms add up to the trace."""
    shape = tuple(z.shape[1:])
    if probes is not None:
        signs = [torch.where(noise(1 + p, shape) < 0, -1.0, 1.0) for p in range(probes)]
        return torch.stack(signs).to(z)
    d = z[0].numel()
    return torch.eye(d).to(z).view(d, 1, *shape).expand(d, *z.shape)


def _velocity(
    denoiser: Denoises, z: Tensor, t: Time, condition: Condition, vectors: Tensor
) -> tuple[Tensor, Tensor]:
    """V at z and level(s) t, [B, ...], and e·(∂v/∂z)·e of each vector e, [P, B]."""
    if isinstance(t, int) and t == 0:
        return torch.zeros_like(z), z.new_zeros(vectors.shape[:2])
    level = denoiser.schedule.level(t, like=z)
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        prediction = denoiser(level.length * z, t, condition)
        v = (level.alpha * prediction.eps - level.sigma * prediction.x0) / level.length
        last = len(vectors) - 1
        products = [
            torch.autograd.grad(v, z, e, retain_graph=i < last)[0] * e
            for i, e in enumerate(vectors)
        ]
    return v.detach(), torch.stack([product.flatten(1).sum(1) for product in products])
