"""Helpers of the tests of the diffusion core: networks whose answer is known, and fixed noise."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ddpm_lightning.batch import Condition
from ddpm_lightning.diffusion.denoiser import Denoiser, Denoises
from ddpm_lightning.diffusion.levels import Level, Schedule, Time
from ddpm_lightning.diffusion.losses import NoisedBatch
from ddpm_lightning.diffusion.parameterizations import (
    X0,
    EDMPreconditioning,
    Eps,
    MeanShift,
    Parameterization,
    PosteriorMean,
    V,
    Velocity,
)
from ddpm_lightning.diffusion.prediction import FixedSmall, Prediction, Variance
from ddpm_lightning.diffusion.samplers import (
    DDIM,
    DDPM,
    LMS,
    DPMSolverPP,
    DPMSolverPPSDE,
    Euler,
    Heun,
    UniPC,
)
from ddpm_lightning.diffusion.variances import AnalyticVariance
from ddpm_lightning.networks import Network
from ddpm_lightning.randomness import IndexedNoise, Stream

PARAMETERIZATIONS = [
    Eps(),
    X0(),
    V(),
    PosteriorMean(),
    MeanShift(),
    Velocity(),
    EDMPreconditioning(0.7),
]
OF_THE_ODE = [DDIM, DPMSolverPP, Euler, Heun, LMS, UniPC]
SAMPLERS = [*OF_THE_ODE, DDPM, DPMSolverPPSDE]


def named(value: object) -> str:
    return type(value).__name__


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def keyed(draw: int, shape: tuple[int, ...], rows: int = 2) -> Tensor:
    """Step noise in float64 that depends on the draw alone."""
    return normal(rows, *shape, seed=1000 + draw)


def noise_of(n: int) -> IndexedNoise:
    return IndexedNoise(0, torch.arange(n), Stream.LIKELIHOOD)


def pair(schedule: Schedule, s, t, like: Tensor | None = None) -> tuple[Level, Level]:  # type: ignore[no-untyped-def]
    return schedule.level(s, like), schedule.level(t, like)


def linear_betas(T: int = 1000) -> np.ndarray:
    return np.linspace(0.1 / T, 20 / T, T)


def sigma_squared(betas: np.ndarray) -> np.ndarray:
    """1 − alpha_bar of the levels 0…T by a recursion that loses no digits to the difference."""
    variance = [0.0]
    for beta in betas:
        variance.append((1 - beta) * variance[-1] + beta)
    return np.array(variance)


def optimal_variance(schedule: Schedule, c: float) -> AnalyticVariance:
    """The variance that makes every reverse step of N(0, c²·I) exact."""
    total = schedule.alpha**2 * c**2 + schedule.sigma**2
    return AnalyticVariance((c**2 * schedule.sigma**2 / total).tolist())


class Says(Network):
    """A network whose output is given, as a tensor or as a parameter."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, x, c_noise, condition=Condition()):
        return self.output


class Waves(Network):
    """A fixed function of x, level and label, one element at a time."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, x, c_noise, condition=Condition()):
        label = 0 if condition.label is None else condition.label
        return torch.sin(2 * x + (c_noise / 300 + label).view(-1, *[1] * (x.ndim - 1)))


class Watched:
    """A denoiser that keeps the level and x_t of each evaluation."""

    net = None

    def __init__(self, denoiser: Denoises) -> None:
        self.denoiser, self.schedule = denoiser, denoiser.schedule
        self.seen: list[tuple[Time, Tensor]] = []

    def __call__(self, x_t: Tensor, t: Time, condition: Condition = Condition()) -> Prediction:
        self.seen.append((t, x_t.detach()))
        return self.denoiser(x_t, t, condition)


def noised(
    schedule: Schedule, t: Tensor, dtype: torch.dtype = torch.float64
) -> tuple[NoisedBatch, Tensor, Tensor]:
    """A batch, a prediction of x_0 that is a little off, and how far each row is off."""
    generator = torch.Generator().manual_seed(0)
    x0, eps, error = torch.randn(3, len(t), 2, 3, dtype=dtype, generator=generator).unbind()
    x0 = x0.clamp(-1, 1)
    batch = NoisedBatch(x0, eps, t, schedule.add_noise(x0, t, eps))
    return batch, x0 + 0.1 * error, 0.01 * error.square().flatten(1).mean(1)


def predicting(
    x0_hat: Tensor,
    batch: NoisedBatch,
    schedule: Schedule,
    parameterization: Parameterization,
    variance: Variance = FixedSmall(),
    extra: Tensor | None = None,
) -> Denoiser:
    """The denoiser whose network says just what makes it predict this x_0."""
    level = schedule.level(batch.t, like=batch.x0)
    eps_hat = (batch.x_t - level.alpha * x0_hat) / level.sigma
    output = parameterization.target(level, parameterization.coefficients(level), x0_hat, eps_hat)
    if extra is not None:
        output = torch.cat([output, extra], dim=1)
    return Denoiser(Says(nn.Parameter(output)), schedule, parameterization, variance)


class SeenDtypes(TorchDispatchMode):
    """Records which operations touch a float64 tensor. Reading one number of a table may."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.float64: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.operations += 1
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
        reads_one_number = str(func) in ("aten.select.int", "aten._local_scalar_dense.default")
        if any(x.dtype == torch.float64 for x in tensors) and not reads_one_number:
            self.float64.add(str(func))
        return out
