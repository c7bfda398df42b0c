"""The variational bound, against scipy and against data whose likelihood is known."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from ddpm_lightning.diffusion.bound import bound_term, gaussian_kl, prior_term
from ddpm_lightning.diffusion.decoders import DiscretizedGaussian, GaussianDecoder
from ddpm_lightning.diffusion.prediction import FixedLarge, FixedSmall, Prediction
from ddpm_lightning.diffusion.schedules import (
    Cosine,
    Karras,
    Linear,
    SohlDickstein,
    Straight,
    ZeroTerminalSNR,
)
from ddpm_lightning.diffusion.variances import AnalyticVariance, LearnedDiagonal, LearnedRange
from ddpm_lightning.errors import InputError
from tests.core import named

GREYS = 2 * torch.arange(256, dtype=torch.float64) / 255 - 1


def scalar(x):
    return torch.tensor([[x]], dtype=torch.float64)


# KL of two Gaussians


@settings(deadline=None, max_examples=20)
@given(st.floats(-2, 2), st.floats(0.05, 2), st.floats(0.05, 2))
def test_kl_is_the_integral_it_stands_for(mean, variance_q, variance_p):
    q, p = stats.norm(mean, variance_q**0.5), stats.norm(0, variance_p**0.5)
    expected, _ = integrate.quad(
        lambda x: q.pdf(x) * (q.logpdf(x) - p.logpdf(x)),
        *(mean + side * 12 * variance_q**0.5 for side in (-1, 1)),
    )
    ours = gaussian_kl(scalar(mean), variance_q, variance_p)
    assert ours.item() == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_kl_of_almost_equal_gaussians_keeps_its_digits_in_float32():
    kl = gaussian_kl(torch.tensor([[1e-6]]), 1e-4, torch.tensor([[1e-4]]))
    assert kl.dtype == torch.float32
    assert kl.item() == pytest.approx(0.5e-8, rel=1e-4)
    ratio = torch.tensor([[1.001]])
    exact = 0.5 * (1.001 - 1 - math.log(1.001))
    assert gaussian_kl(torch.zeros(1, 1), ratio, 1.0).item() == pytest.approx(exact, rel=2e-3)


# Decoders


@pytest.mark.parametrize("std", [0.004, 0.05, 1.0])
@pytest.mark.parametrize("mean", [-1.2, -1.0, 0.1234, 0.99])
def test_the_discretised_decoder_is_the_mass_of_each_grey_levels_bin(mean, std):
    normal = stats.norm(mean, std)
    edges = (GREYS[1:] + GREYS[:-1]).numpy() / 2
    lower, upper = np.append(-np.inf, edges), np.append(edges, np.inf)
    # From the nearer tail, where scipy keeps its digits.
    mass = np.where(
        lower > mean, normal.sf(lower) - normal.sf(upper), normal.cdf(upper) - normal.cdf(lower)
    )
    ours = DiscretizedGaussian()(GREYS, torch.tensor(mean, dtype=torch.float64), std**2)
    seen = mass > 1e-280
    assert seen.any()
    np.testing.assert_allclose(ours[seen], -np.log(mass[seen]), rtol=1e-9)


@pytest.mark.parametrize("bins", [2, 17, 256])
def test_the_masses_of_all_bins_add_up_to_one(bins):
    greys = torch.linspace(-1, 1, bins, dtype=torch.float64)
    nll = DiscretizedGaussian(bins)(greys, torch.tensor(0.3, dtype=torch.float64), 0.04)
    assert torch.exp(-nll).sum().item() == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("std", [1e-3, 3e-3, 0.02, 1.0])
def test_the_discretised_decoder_and_its_gradient_are_right_in_float32_far_off_the_mean(std):
    def nll(dtype):
        mean = torch.linspace(-3, 3, 101, dtype=dtype)[:, None].requires_grad_()
        log_variance = torch.full_like(mean, 2 * math.log(std)).detach().requires_grad_()
        value = DiscretizedGaussian()(GREYS.to(dtype), mean, log_variance.exp())
        value.sum().backward()
        return value.detach(), mean.grad, log_variance.grad

    for single, double in zip(nll(torch.float32), nll(torch.float64), strict=True):
        assert single.isfinite().all()
        np.testing.assert_allclose(
            single, double, rtol=2e-3, atol=2e-3 * float(double.abs().max())
        )


def test_the_gaussian_decoder_is_the_density():
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    ours = GaussianDecoder()(x, torch.tensor(0.3, dtype=torch.float64), 0.2)
    np.testing.assert_allclose(ours, -stats.norm(0.3, 0.2**0.5).logpdf(x), rtol=1e-12)


def test_a_bit_is_ln_2_nats():
    assert (DiscretizedGaussian().unit, GaussianDecoder().unit) == ("bits", "nats")
    assert DiscretizedGaussian.nats == math.log(2)


@pytest.mark.parametrize("bins", [1, 0, -256])
def test_fewer_than_two_bins_are_refused(bins):
    with pytest.raises(InputError, match="bins"):
        DiscretizedGaussian(bins)


# The bound of Gaussian data, whose reverse process is Gaussian: it must be the likelihood


NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(8)
X0, EPS = (torch.tensor(column).view(-1, 1) for column in zip(*product(NODES, NODES), strict=True))
MASS = torch.tensor([a * b for a, b in product(WEIGHTS, WEIGHTS)]) / (2 * math.pi)
"""Quadrature over x_0 and eps, exact for the quadratic polynomials that the terms are."""


def exact_bound(schedule, c, variance, decoder, reshape=None):
    """Expected bound of the exact denoiser of N(0, c²), term by term: L_0, …, L_{T−1}, L_T."""
    x0 = c * X0
    terms = []
    for t in range(1, schedule.T + 1):
        alpha, sigma = float(schedule.alpha[t]), float(schedule.sigma[t])
        x_t = schedule.add_noise(x0, t, EPS)
        x0_hat = alpha * c**2 / (alpha**2 * c**2 + sigma**2) * x_t
        prediction = Prediction(x0_hat, x_t, schedule.level(t), variance)
        terms.append(float((MASS * bound_term(prediction, x0, decoder)).sum()))
    return [*terms, float((MASS * prior_term(schedule, x0, decoder)).sum())]


def optimal_variance(schedule, c):
    total = schedule.alpha**2 * c**2 + schedule.sigma**2
    return AnalyticVariance((c**2 * schedule.sigma**2 / total).tolist())


@pytest.mark.parametrize("c", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("schedule", [SohlDickstein(), Karras(30), Straight(30)], ids=named)
def test_the_bound_exceeds_the_entropy_by_what_the_prior_misses(schedule, c):
    # log p(x_0) under the model = under the data, but for x_T ~ prior instead of its marginal.
    bound = exact_bound(schedule, c, optimal_variance(schedule, c), GaussianDecoder())
    alpha, sigma = float(schedule.alpha[-1]), float(schedule.sigma[-1])
    ratio = (alpha**2 * c**2 + sigma**2) / schedule.prior_std**2
    missed = 0.5 * (ratio - 1 - math.log(ratio))
    entropy = 0.5 * math.log(2 * math.pi * math.e * c**2)
    assert sum(bound) == pytest.approx(entropy + missed, rel=1e-8)


@pytest.mark.parametrize("variance", [FixedSmall(), FixedLarge()])
def test_any_other_variance_gives_a_larger_bound(variance):
    schedule, decoder = SohlDickstein(), GaussianDecoder()
    best = exact_bound(schedule, 0.5, optimal_variance(schedule, 0.5), decoder)
    other = exact_bound(schedule, 0.5, variance, decoder)
    assert all(a <= b + 1e-12 for a, b in zip(best, other, strict=True))
    assert sum(best) < sum(other) - 0.01


def test_the_same_bound_in_bits_is_smaller_by_ln_2():
    schedule = SohlDickstein()
    variance = optimal_variance(schedule, 0.3)
    nats = exact_bound(schedule, 0.3, variance, GaussianDecoder())
    bits = exact_bound(schedule, 0.3, variance, DiscretizedGaussian())
    np.testing.assert_allclose(np.array(bits[1:]) * math.log(2), nats[1:], rtol=1e-9)


# A term of the bound


ALL = [FixedSmall(), FixedLarge(), LearnedRange(), LearnedDiagonal()]


@pytest.mark.parametrize("variance", ALL, ids=named)
@pytest.mark.parametrize("decoder", [DiscretizedGaussian(), GaussianDecoder()])
def test_rows_at_levels_of_their_own_give_what_each_gives_alone(variance, decoder):
    schedule, t = Linear(), torch.tensor([1, 2, 1, 500, 1000])
    generator = torch.Generator().manual_seed(0)
    x0, x0_hat, x_t, extra = torch.randn(
        4, 5, 3, 2, dtype=torch.float64, generator=generator
    ).clamp(-1, 1)
    together = Prediction(x0_hat, x_t, schedule.level(t, x_t), variance, extra=extra)
    terms = bound_term(together, x0, decoder)
    assert terms.shape == (5,)
    for i in range(5):
        row = slice(i, i + 1)
        level = schedule.level(int(t[i]))
        alone = Prediction(x0_hat[row], x_t[row], level, variance, extra=extra[row])
        assert float(bound_term(alone, x0[row], decoder)) == pytest.approx(float(terms[i]))


@pytest.mark.parametrize("variance", ALL, ids=named)
@pytest.mark.parametrize("decoder", [DiscretizedGaussian(), GaussianDecoder()])
@pytest.mark.parametrize(
    "schedule", [Linear(4000), ZeroTerminalSNR(Cosine()), Karras()], ids=named
)
def test_float32_terms_and_gradients_agree_with_float64_at_every_level(
    variance, decoder, schedule
):
    t, generator = torch.arange(1, schedule.T + 1), torch.Generator().manual_seed(0)
    numbers = torch.randn(4, schedule.T, 2, generator=generator).clamp(-1, 1)

    def terms(dtype):
        x0, x0_hat, x_t, extra = numbers.to(dtype)
        x0_hat.requires_grad_()
        extra.requires_grad_()
        prediction = Prediction(x0_hat, x_t, schedule.level(t, x_t), variance, extra=extra)
        value = bound_term(prediction, x0, decoder)
        value.sum().backward()
        of_extra = extra.grad if extra.grad is not None else torch.zeros(1)
        return value.detach(), x0_hat.grad, of_extra

    for single, double in zip(terms(torch.float32), terms(torch.float64), strict=True):
        assert single.isfinite().all()
        np.testing.assert_allclose(single, double, rtol=1e-3, atol=1e-4)
