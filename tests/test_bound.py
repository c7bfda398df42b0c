"""The whole bound, against numpy's formulas and data of known likelihood; its estimate in few."""

from __future__ import annotations

import math
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from ddpm_lightning.batch import Condition
from ddpm_lightning.diffusion.bound import decoder_of, strata, variational_bound
from ddpm_lightning.diffusion.decoders import DiscretizedGaussian, GaussianDecoder
from ddpm_lightning.diffusion.denoiser import Denoiser
from ddpm_lightning.diffusion.oracles import Gaussian
from ddpm_lightning.diffusion.parameterizations import (
    EDMPreconditioning,
    Eps,
)
from ddpm_lightning.diffusion.prediction import FixedLarge, FixedSmall
from ddpm_lightning.diffusion.samplers import (
    DDIMQuadratic,
    KarrasSpacing,
    Levels,
    LogSNRSpacing,
    QuadraticSpacing,
    UniformSpacing,
)
from ddpm_lightning.diffusion.schedules import (
    Karras,
    Linear,
    SohlDickstein,
    Straight,
    ZeroTerminalSNR,
)
from ddpm_lightning.diffusion.variances import LearnedDiagonal, LearnedRange
from ddpm_lightning.errors import InputError
from ddpm_lightning.networks import Network
from ddpm_lightning.randomness import IndexedNoise, Stream
from tests.core import named, noise_of, optimal_variance


class Nodes(IndexedNoise):
    """The same eps [n, ...] at every draw."""

    def __init__(self, eps):
        super().__init__(0, torch.arange(len(eps)))
        self.eps = eps

    def __call__(self, draw, shape):
        return self.eps


# All signs of (x_0, eps) in two dimensions: the mean over these is that over normal numbers for
# every polynomial of degree up to 3, and the terms of Gaussian data are of degree 2.
SIGNS = torch.tensor(list(product([-1.0, 1.0], repeat=4)), dtype=torch.float64)


def expected_terms(oracle, decoder):
    x0 = oracle.mean + SIGNS[:, :2] @ torch.linalg.cholesky(oracle.cov).T
    bound = variational_bound(oracle, x0, Nodes(SIGNS[:, 2:]), decoder=decoder)
    return bound.terms.mean(0).numpy()


# Gaussian data


@pytest.mark.slow
@pytest.mark.parametrize("c", [0.2, 3.0])
@pytest.mark.parametrize(
    "schedule",
    [ZeroTerminalSNR(Linear(1000)), SohlDickstein(), Karras(30), Straight(30)],
    ids=named,
)
def test_with_the_optimal_variance_the_bound_exceeds_the_entropy_by_what_the_prior_misses(
    schedule, c
):
    # Every reverse step is exactly Gaussian, but x_T ~ prior instead of its marginal.
    mean, cov = torch.zeros(2), c**2 * torch.eye(2, dtype=torch.float64)
    oracle = Gaussian(schedule, mean, cov, optimal_variance(schedule, c))
    alpha, sigma = float(schedule.alpha[-1]), float(schedule.sigma[-1])
    ratio = (alpha**2 * c**2 + sigma**2) / schedule.prior_std**2
    missed = 0.5 * (ratio - 1 - math.log(ratio))
    entropy = 0.5 * math.log(2 * math.pi * math.e * c**2)
    bound = expected_terms(oracle, GaussianDecoder()).sum()
    assert bound == pytest.approx(entropy + missed, rel=1e-8)


# Any network


class Wave(Network):
    """A fixed function of input and noise coordinate; the extra channels are another."""

    def __init__(self, extra):
        super().__init__()
        self.extra = extra
        self.anchor = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x, c_noise, condition=Condition()):
        c = c_noise.view(-1, 1, 1, 1)
        out = torch.sin(1.3 * x + 0.01 * c) + 0.2 * x.flip(-1)
        return torch.cat([out, torch.cos(x + 0.02 * c)], 1) if self.extra else out


def numpy_terms(denoiser, x0, noise, bits):
    """Improved DDPM's calc_bpd_loop, written from its papers in float64, for these predictions."""
    schedule, name = denoiser.schedule, named(denoiser.variance)
    alpha, sigma, T = schedule.alpha.numpy(), schedule.sigma.numpy(), schedule.T
    x0 = x0.numpy()
    beta = 1 - (alpha[1:] / alpha[:-1]) ** 2
    tilde = (sigma[:-1] / sigma[1:]) ** 2 * beta
    columns = []
    for t in range(1, T + 1):
        x = alpha[t] * x0 + sigma[t] * noise(t, x0.shape[1:]).double().numpy()
        prediction = denoiser(torch.from_numpy(x), t)
        mean_0 = prediction.x0.numpy().clip(-1, 1) if bits else prediction.x0.numpy()
        extra = 0 if prediction.extra is None else prediction.extra.numpy()
        b, b_tilde = beta[t - 1], tilde[max(t - 1, 1)]
        p = {
            "FixedSmall": b_tilde,
            "FixedLarge": b if t > 1 else b_tilde,
            "LearnedRange": np.exp(
                (extra + 1) / 2 * np.log(b) + (1 - extra) / 2 * np.log(b_tilde)
            ),
            "LearnedDiagonal": b * np.exp(extra),
        }[name]
        if t > 1:
            gain = alpha[t - 1] * b / sigma[t] ** 2
            q = tilde[t - 1]
            term = 0.5 * (np.log(p / q) + (q + gain**2 * (x0 - mean_0) ** 2) / p - 1)
        elif bits:
            normal = stats.norm(mean_0, np.sqrt(p))
            upper = np.where(x0 > 0.999, 1.0, normal.cdf(x0 + 1 / 255))
            term = -np.log(upper - np.where(x0 < -0.999, 0.0, normal.cdf(x0 - 1 / 255)))
        else:
            term = -stats.norm(mean_0, np.sqrt(p)).logpdf(x0)
        columns.append(term.mean((1, 2, 3)))
    last = 0.5 * ((alpha[T] * x0) ** 2 + sigma[T] ** 2 - 1 - 2 * np.log(sigma[T]))
    columns.append(last.mean((1, 2, 3)))
    return np.stack(columns, 1) / (math.log(2) if bits else 1)


@pytest.mark.parametrize("bits", [True, False], ids=["bits", "nats"])
@pytest.mark.parametrize(
    "variance", [FixedSmall(), FixedLarge(), LearnedRange(), LearnedDiagonal()], ids=named
)
@pytest.mark.parametrize("parameterization", [Eps(), EDMPreconditioning()], ids=named)
def test_every_term_of_a_network_is_that_of_the_papers_formulas(parameterization, variance, bits):
    schedule = Linear(60)
    # Greys next to the decoder's mean, where the reference, a difference of cdfs, has its digits.
    x0 = torch.tensor([[-1.0, 0.2], [0.4, 1.0]], dtype=torch.float64).expand(3, 2, 2, 2).clone()
    denoiser = Denoiser(
        Wave(variance.extra_channels(2) > 0).double(), schedule, parameterization, variance
    )
    noise = noise_of(3)
    ours = variational_bound(denoiser, x0, noise, clip=(-1, 1) if bits else None)
    with torch.no_grad():
        expected = numpy_terms(denoiser, x0, noise, bits)
    seen = np.isfinite(expected)
    assert ours.terms.shape == (3, 61)
    assert seen[:, 1:].all()
    np.testing.assert_allclose(ours.terms[seen], expected[seen], rtol=1e-6, atol=1e-12)


def small_gaussian(schedule, variance=None):
    return Gaussian(schedule, torch.zeros(2), torch.eye(2) * 0.25, variance)


@pytest.mark.parametrize("evaluations", [None, 7])
def test_the_bound_of_a_sample_does_not_depend_on_the_batch(evaluations):
    oracle, x0 = small_gaussian(Linear(100)), 0.5 * torch.randn(6, 2)
    together = variational_bound(oracle, x0, noise_of(6), evaluations=evaluations)
    for rows in torch.arange(6).split(4):
        noise = IndexedNoise(0, rows, Stream.LIKELIHOOD)
        apart = variational_bound(oracle, x0[rows], noise, evaluations=evaluations)
        torch.testing.assert_close(apart.terms, together.terms[rows])


def test_the_network_is_in_evaluation_mode_and_back_in_training_mode_after():
    class Witness(Wave):
        def forward(self, x, c_noise, condition=Condition()):
            modes.append((self.training, torch.is_grad_enabled()))
            return super().forward(x, c_noise, condition)

    modes = []
    net = Witness(False).train()
    denoiser = Denoiser(net, Linear(60), Eps())
    variational_bound(denoiser, torch.zeros(1, 2, 2, 2), noise_of(1), evaluations=3)
    assert modes == [(False, False)] * 3
    assert net.training


def test_images_are_counted_in_bits_and_everything_else_in_nats():
    assert isinstance(decoder_of((-1.0, 1.0)), DiscretizedGaussian)
    assert isinstance(decoder_of(None), GaussianDecoder)
    assert isinstance(decoder_of((0.0, 1.0)), GaussianDecoder)


# The estimate


@pytest.mark.parametrize(
    "spacing", [UniformSpacing(), QuadraticSpacing(), LogSNRSpacing(), KarrasSpacing()], ids=named
)
@pytest.mark.parametrize("T", [21, 1000])
@pytest.mark.parametrize("evaluations", [2, 3, 20])
def test_strata_cover_the_levels_in_as_many_evaluations_with_level_1_alone(
    spacing, T, evaluations
):
    edges = strata(Linear(T), evaluations, spacing)
    assert edges[:2] == [0, 1]
    assert edges[-1] == T
    assert all(a < b for a, b in pairwise(edges))
    assert evaluations - 1 <= len(edges) - 1 <= evaluations


def test_as_many_evaluations_as_levels_see_every_level():
    for evaluations in (None, 50, 99):
        assert strata(Linear(50), evaluations) == list(range(51))


@pytest.mark.slow
def test_an_estimate_averages_to_the_bound_and_its_standard_error_covers_the_difference():
    schedule, trials, n = Linear(1000), 150, 40
    oracle = small_gaussian(schedule)
    expected = expected_terms(oracle, GaussianDecoder()).sum()
    x0 = 0.5 * torch.randn(trials * n, 2, generator=torch.Generator().manual_seed(0))
    bound = variational_bound(oracle, x0, noise_of(trials * n), evaluations=20)
    totals = bound.total.double().view(trials, n)
    z = ((totals.mean(1) - expected) / (totals.std(1) / n**0.5)).numpy()
    # 150 z-scores: their mean and spread have standard errors of 0.08 and 0.06.
    assert abs(z.mean()) < 0.3
    assert 0.8 < z.std() < 1.25


def test_every_column_estimates_the_sum_of_its_terms():
    schedule, n = Linear(200), 8000
    oracle = small_gaussian(schedule)
    x0 = 0.5 * torch.randn(n, 2, generator=torch.Generator().manual_seed(0))
    bound = variational_bound(oracle, x0, noise_of(n), evaluations=6)
    sums = np.add.reduceat(expected_terms(oracle, GaussianDecoder()), bound.edges)
    errors = bound.terms.std(0) / n**0.5
    assert np.all(np.abs(bound.terms.mean(0).numpy() - sums) < 4 * errors.numpy() + 1e-6)


@pytest.mark.parametrize(
    ("evaluations", "spacing", "message"),
    [
        (1, QuadraticSpacing(), "at least 2"),
        (0, QuadraticSpacing(), "at least 2"),
        (10, DDIMQuadratic(), "leaves out the levels above"),
        (3, Levels([50, 20, 1, 0]), "leaves out the levels above 50"),
    ],
)
def test_a_budget_that_cannot_estimate_the_bound_is_refused(evaluations, spacing, message):
    with pytest.raises(InputError, match=message):
        strata(Linear(100), evaluations, spacing)
