"""The probability flow's likelihood, against exact densities."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from ddpm_lightning.batch import Condition, DataSpec
from ddpm_lightning.diffusion.denoiser import Denoiser
from ddpm_lightning.diffusion.flow import flow_likelihood
from ddpm_lightning.diffusion.oracles import Gaussian, Mixture
from ddpm_lightning.diffusion.parameterizations import V
from ddpm_lightning.diffusion.samplers import DDIMQuadratic, QuadraticSpacing
from ddpm_lightning.diffusion.schedules import Cosine, Karras, Linear, Straight, ZeroTerminalSNR
from ddpm_lightning.errors import InputError
from ddpm_lightning.randomness import IndexedNoise, Stream
from tests.core import Watched, named, noise_of
from tests.small import TinyUNet

MEANS = torch.tensor([[0.4, -0.5], [-0.6, 0.3], [0.5, 0.7]], dtype=torch.float64)
SPREADS = torch.tensor([0.04, 0.1, 0.3], dtype=torch.float64)


def points(n=100):
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(3, (n,), generator=generator)
    noise = torch.randn(n, 2, dtype=torch.float64, generator=generator)
    return MEANS[chosen] + SPREADS[chosen, None].sqrt() * noise


def exact_nll(x):
    """Nats a dimension of the mixture's density, from scipy."""
    densities = [
        stats.multivariate_normal(mean, spread).pdf(x)
        for mean, spread in zip(MEANS.numpy(), SPREADS.numpy(), strict=True)
    ]
    return -np.log(np.mean(densities, axis=0)) / 2


# The flow of known data


@pytest.mark.parametrize(
    ("schedule", "tolerance"),
    [
        (Cosine(250), 1e-3),
        (ZeroTerminalSNR(Linear(250)), 5e-3),
        (Straight(250), 5e-3),
        (Karras(250), 1e-2),  # of x_T, too, which keeps 1/80 of the data
        (Linear(250), 1e-2),  # of x_T, too, which keeps 1/157 of the data
    ],
    ids=named,
)
def test_the_flow_of_a_mixture_gives_its_density(schedule, tolerance):
    x = points()
    flow = flow_likelihood(Mixture(schedule, MEANS, SPREADS), x, noise_of(len(x)))
    assert flow.unit == "nats"
    assert np.abs(flow.nll.numpy() - exact_nll(x.numpy())).max() < tolerance
    assert not flow.standard_error.any()


def test_the_discretisation_error_falls_with_the_square_of_the_steps():
    x = points()
    exact = torch.from_numpy(exact_nll(x.numpy()))
    oracle = Mixture(ZeroTerminalSNR(Linear(200)), MEANS, SPREADS)
    errors = [
        (flow_likelihood(oracle, x, noise_of(len(x)), steps=steps).nll - exact).abs().mean()
        for steps in (50, 100, 200)
    ]
    rates = np.log2(np.divide(errors[:-1], errors[1:]))
    assert np.all((rates > 1.7) & (rates < 2.4))


def test_labels_choose_the_density():
    x, labels = points(), torch.arange(3)
    oracle = Mixture(Cosine(300), MEANS, SPREADS, labels=labels)
    y = torch.arange(len(x)) % 3
    flow = flow_likelihood(oracle, x, noise_of(len(x)), Condition(y))
    expected = -stats.norm.logpdf(x, MEANS[y], SPREADS[y, None].sqrt()).mean(1)
    np.testing.assert_allclose(flow.nll, expected, rtol=2e-3, atol=2e-3)


# Hutchinson's estimate


def curved_mixture(d):
    """Components in all directions: the Jacobian is far from diagonal, so probes do vary."""
    generator = torch.Generator().manual_seed(1)
    means = torch.randn(4, d, dtype=torch.float64, generator=generator)
    x = means[torch.arange(60) % 4] + 0.5 * torch.randn(
        60, d, dtype=torch.float64, generator=generator
    )
    return Mixture(Cosine(60), means, torch.full((4,), 0.25)), x


@pytest.mark.slow
def test_random_probes_agree_with_the_exact_divergence_within_their_standard_error():
    oracle, x = curved_mixture(6)
    exact = flow_likelihood(oracle, x, noise_of(60)).nll
    estimate = flow_likelihood(oracle, x, noise_of(60), probes=20)
    z = ((estimate.nll - exact) / estimate.standard_error).numpy()
    assert np.abs(z).max() < 5
    assert 0.7 < z.std() < 1.4
    assert abs(z.mean()) < 0.5


def test_one_probe_is_right_on_average():
    oracle, x = curved_mixture(6)
    x = x[:1].expand(800, 6)
    estimate = flow_likelihood(oracle, x, noise_of(800), probes=1, steps=20)
    exact = flow_likelihood(oracle, x[:1], noise_of(1), steps=20).nll
    error = estimate.nll.std() / 800**0.5
    assert error > 0
    assert abs(estimate.nll.mean() - exact) < 3 * error
    assert estimate.standard_error.isnan().all()


# Images


def test_grey_levels_are_filled_evenly_and_counted_in_bits():
    # The mean over the noise is the integral of −log2 of the density over the bin.
    c, grey, n = 0.02, torch.tensor(11 * 2 / 255 - 1, dtype=torch.float64), 400
    normal = stats.norm(-0.9, c)
    oracle = Gaussian(Cosine(200), torch.tensor([-0.9]), torch.eye(1) * c**2)
    flow = flow_likelihood(oracle, grey.expand(n, 1), noise_of(n), bins=256)
    low, high = float(grey) - 1 / 255, float(grey) + 1 / 255
    area, _ = integrate.quad(normal.logpdf, low, high)
    expected = -(area / (high - low) + math.log(high - low)) / math.log(2)
    spread = float(flow.nll.std()) / n**0.5
    assert flow.unit == "bits"
    assert float(flow.nll.mean()) == pytest.approx(expected, abs=4 * spread + 0.02)
    # Each row alone: the density at a point of the bin.
    bits = -normal.logpdf(np.array([low, high])) - math.log(high - low)
    assert bits.min() / math.log(2) - 0.05 < float(flow.nll.min())
    assert float(flow.nll.max()) < bits.max() / math.log(2) + 0.05


def test_the_noise_fills_the_whole_bin_of_a_grey_level_uniformly():
    grey = torch.tensor([0.0, 11, 254, 255], dtype=torch.float64) * 2 / 255 - 1
    spy = Watched(Gaussian(Cosine(20), torch.zeros(4), torch.eye(4)))
    flow_likelihood(spy, grey.expand(2000, 4), noise_of(2000), bins=256, steps=1)
    # The one step starts at level 0, where nothing moves, and alpha² + sigma² is 1.
    offsets = (spy.seen[0][1] - grey) * 255
    assert stats.kstest(offsets.numpy().ravel(), stats.uniform(-1, 2).cdf).pvalue > 1e-3
    assert 0.999 < offsets.abs().max() <= 1 + 1e-9


# A network


@pytest.fixture(scope="module")
def denoiser():
    torch.manual_seed(0)
    net = TinyUNet(DataSpec((1, 8, 8), num_classes=3), 1).train()  # with dropout
    for parameter in net.parameters():
        parameter.data.normal_(std=0.1)
    return Denoiser(net, Linear(40), V())


def test_the_flow_of_a_network_does_not_depend_on_the_batch(denoiser):
    x, y = torch.rand(5, 1, 8, 8) * 2 - 1, Condition(torch.tensor([0, 1, 2, 0, 1]))
    settings = {"bins": 256, "probes": 2, "steps": 4}
    together = flow_likelihood(denoiser, x, noise_of(5), y, **settings)
    assert together.nll.dtype == torch.float32
    for rows in torch.arange(5).split(3):
        noise = IndexedNoise(0, rows, Stream.LIKELIHOOD)
        apart = flow_likelihood(denoiser, x[rows], noise, y.rows(rows), **settings)
        torch.testing.assert_close(apart.nll, together.nll[rows], rtol=1e-4, atol=1e-5)
    assert denoiser.net.training
    assert all(parameter.grad is None for parameter in denoiser.net.parameters())


def test_the_divergence_of_a_network_is_that_of_finite_differences():
    # One Heun step from level 0, where nothing moves, to T: half of the divergence at the top.
    torch.manual_seed(1)
    net = TinyUNet(DataSpec((1, 8, 8)), 1).double()
    for parameter in net.parameters():
        parameter.data.normal_(std=0.1)
    model = Denoiser(net.eval(), ZeroTerminalSNR(Linear(40)), V())
    x = torch.rand(1, 1, 8, 8, dtype=torch.float64) * 2 - 1
    flow = flow_likelihood(model, x, noise_of(1), steps=1)

    @torch.no_grad()
    def minus_x0(z):
        return -model(z, 40).x0

    h, trace = 1e-5, 0.0
    for i in range(64):
        e = torch.zeros(64, dtype=torch.float64)
        e[i] = h
        e = e.view_as(x)
        trace += float((minus_x0(x + e) - minus_x0(x - e)).flatten()[i]) / (2 * h)
    end = x + math.pi / 4 * minus_x0(x)
    log_p = stats.norm.logpdf(end.numpy()).sum() + math.pi / 4 * trace
    assert float(flow.nll) == pytest.approx(-log_p / 64, rel=1e-7)


def test_it_works_in_lightnings_inference_mode(denoiser):
    with torch.inference_mode():
        x, y = torch.zeros(2, 1, 8, 8), Condition(torch.tensor([0, 1]))
        flow = flow_likelihood(denoiser, x, noise_of(2), y, probes=1, steps=3)
    assert flow.nll.isfinite().all()


# What it refuses


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give probes"),
        ({"probes": 1, "spacing": DDIMQuadratic()}, "must end in noise"),
        ({"probes": 1, "spacing": QuadraticSpacing(), "steps": 41}, "steps"),
    ],
)
def test_settings_that_cannot_work_are_refused(arguments, message):
    oracle = Gaussian(Linear(40), torch.zeros(65), torch.eye(65))
    with pytest.raises(InputError, match=message):
        flow_likelihood(oracle, torch.zeros(1, 65), noise_of(1), **arguments)
