"""The variational bound, against scipy and against data whose likelihood is known."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from ddpm_lightning.diffusion.bound import bound_term, gaussian_kl
from ddpm_lightning.diffusion.decoders import DiscretizedGaussian, GaussianDecoder
from ddpm_lightning.diffusion.prediction import FixedLarge, FixedSmall, Prediction
from ddpm_lightning.diffusion.schedules import (
    Cosine,
    Karras,
    Linear,
    ZeroTerminalSNR,
)
from ddpm_lightning.diffusion.variances import LearnedDiagonal, LearnedRange
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
