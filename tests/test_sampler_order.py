"""How fast samplers approach the exact flow, and which distribution they end in."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad, solve_ivp

from ddpm_lightning.diffusion.oracles import Gaussian, Mixture
from ddpm_lightning.diffusion.prediction import FixedLarge
from ddpm_lightning.diffusion.samplers import (
    DDIM,
    DDPM,
    LMS,
    DPMSolverPP,
    DPMSolverPPSDE,
    Euler,
    Heun,
    Levels,
    LogSNRSpacing,
    UniPC,
)
from ddpm_lightning.diffusion.samplers.lms import adams_bashforth
from ddpm_lightning.diffusion.schedules import Cosine, Karras, Linear, Straight
from ddpm_lightning.diffusion.variances import AnalyticVariance
from tests.core import SAMPLERS, named, normal

MEANS = torch.tensor([[-1.0, 0.5], [1.0, -0.3], [0.2, 1.0]], dtype=torch.float64)
VARIANCES = torch.tensor([0.05, 0.1, 0.08], dtype=torch.float64)
WEIGHTS = torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64)


T, BOTTOM = 1000, 40


def even_levels(steps):
    """Levels from T to BOTTOM, evenly spaced as they must be for an order to show, and 0."""
    assert (T - BOTTOM) % steps == 0
    return [*range(T, BOTTOM - 1, -(T - BOTTOM) // steps), 0]


def order_of(counts, errors):
    return -np.polyfit(np.log2(counts), np.log2(errors), 1)[0]


def exact_flow(x_T, schedule):
    """The probability-flow ODE by an adaptive solver in float64 numpy, from level T to BOTTOM.

    In z = x/alpha and u = log(sigma/alpha) it is dz/du = −sigma²/alpha²·score and knows nothing of
    the levels between, so a discrete schedule has an exact reference.
    """
    ratio = (schedule.sigma / schedule.alpha).numpy()
    means, variances, weights = MEANS.numpy(), VARIANCES.numpy(), WEIGHTS.numpy()

    def slope(u, z):
        z, total = z.reshape(-1, 1, 2), variances + math.exp(2 * u)
        density = weights / total * np.exp(-((z - means) ** 2).sum(2) / (2 * total))  # [B, K]
        share = density / density.sum(1, keepdims=True)
        score = (share[:, :, None] * (means - z) / total[:, None]).sum(1)
        return -math.exp(2 * u) * score.ravel()

    span = math.log(ratio[-1]), math.log(ratio[BOTTOM])
    start = (x_T / schedule.alpha[-1]).numpy().ravel()
    z = solve_ivp(slope, span, start, method="DOP853", rtol=1e-11, atol=1e-12).y[:, -1]
    return z.reshape(-1, 2)


ORDERS = [
    (DDIM, {}, 1),
    (Euler, {}, 1),
    (Heun, {}, 2),
    (DPMSolverPP, {"order": 1}, 1),
    (DPMSolverPP, {"order": 2}, 2),
    (LMS, {"order": 1}, 1),
    (LMS, {"order": 2}, 2),
    (LMS, {"order": 3}, 3),
    (LMS, {"order": 4}, 4),
    # The corrector raises the predictor's order by one (UniPC, theorem 3.1).
    (UniPC, {}, 3),
]


@pytest.mark.parametrize(("sampler", "settings", "order"), ORDERS)
def test_order_of_convergence(sampler, settings, order):
    schedule, x_T, counts, errors = Linear(T), normal(64, 2), (40, 80, 160, 320), []
    oracle = Mixture(schedule, MEANS, VARIANCES, WEIGHTS)
    reference = exact_flow(x_T, schedule)
    for steps in counts:
        spacing = Levels(even_levels(steps))
        states = sampler(None, spacing=spacing, **settings).trajectory(oracle, x_T)
        z = next(state.x_t for state in states if state.t == BOTTOM) / schedule.alpha[BOTTOM]
        errors.append(float(np.sqrt(np.mean((z.numpy() - reference) ** 2))))
    # The fourth order still settles at these step counts.
    assert order_of(counts, errors) == pytest.approx(order, abs=0.25 if order < 4 else 0.6)


STOCHASTIC_ORDERS = [
    (DDPM, {}, 1),
    (DDIM, {"eta": 0.5}, 1),
    (DDIM, {"eta": 1.0}, 1),
    (DPMSolverPPSDE, {"order": 1}, 1),
    (DPMSolverPPSDE, {"order": 2}, 2),
    (Euler, {"churn": 20.0}, 1),
    (Heun, {"churn": 20.0}, 2),
]


@pytest.mark.parametrize(("sampler", "settings", "order"), STOCHASTIC_ORDERS)
def test_weak_order_of_stochastic_samplers(sampler, settings, order):
    """The variance of x_t on normal data of variance c, without a single random number.

    There every step is linear: with the unit vectors e_0, e_1, … in place of the noises of x_T and
    of each step, a sample ends as the list of its coefficients, and its variance is their square
    sum.
    """
    schedule, c, counts, errors = Linear(T), 0.1, (80, 160, 320), []

    def exact(t):
        return float(schedule.alpha[t] ** 2 * c + schedule.sigma[t] ** 2)

    for steps in counts:
        size = steps + 3
        basis = torch.eye(size, dtype=torch.float64)
        oracle = Gaussian(schedule, basis.new_zeros(size), c * basis)
        spacing = Levels(even_levels(steps))
        states = sampler(None, spacing=spacing, **settings).trajectory(
            oracle, basis[:1] * exact(T) ** 0.5, noise=lambda draw, _, e=basis: e[draw : draw + 1]
        )
        variance = next(state.x_t for state in states if state.t == BOTTOM).square().sum()
        errors.append(abs(float(variance) / exact(BOTTOM) - 1))
    assert order_of(counts, errors) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("steps", [2, 20])
@pytest.mark.parametrize("c", [0.1, 2.0])
@pytest.mark.parametrize("schedule", [Cosine(), Straight(), Karras()], ids=named)
def test_ddpm_with_the_analytic_variance_is_exact_on_normal_data_in_any_number_of_steps(
    schedule, c, steps
):
    # By unit vectors for the noises, as above: x_t has the variance total_t at every level.
    total = c * schedule.alpha**2 + schedule.sigma**2
    unexplained = c * schedule.sigma**2 / total  # Var[x_0 | x_t]
    basis = torch.eye(steps + 2, dtype=torch.float64)
    variance = AnalyticVariance(unexplained.tolist())
    oracle = Gaussian(schedule, basis.new_zeros(steps + 2), c * basis, variance)
    x_T = basis[:1] * total[-1] ** 0.5
    states = list(
        DDPM(steps).trajectory(oracle, x_T, noise=lambda draw, _: basis[draw : draw + 1])
    )
    variances = [float(state.x_t.square().sum()) for state in states]
    last = states[-2].t
    # The last step adds no noise, so what level `last` leaves unexplained is missing from x_0.
    expected = [*(total[state.t] for state in states[:-1]), c - unexplained[last]]
    np.testing.assert_allclose(variances, expected, rtol=1e-9)


@pytest.mark.parametrize("points", [[3.0], [3.0, 4.5], [3.0, 4.5, 5.0], [3.0, 4.5, 5.0, 9.0]])
def test_multistep_weights_are_the_integrals_of_the_lagrange_polynomials(points):
    for j, weight in enumerate(adams_bashforth(points, 1.0)):
        values = np.eye(len(points))[j]
        polynomial = np.polynomial.Polynomial.fit(points, values, len(points) - 1)
        assert weight == pytest.approx(quad(polynomial, 3.0, 1.0)[0] / -2.0)


# The step into level 0

TO_0 = [
    *SAMPLERS,
    lambda **settings: DDIM(eta=1.0, **settings),
    lambda **settings: Heun(churn=40.0, **settings),
]


@pytest.mark.parametrize("make", TO_0)
def test_the_step_into_level_0_returns_the_last_prediction(make):
    # With FixedLarge a step to level 0 has a variance, which is not added.
    oracle = Mixture(Linear(), MEANS, VARIANCES, WEIGHTS, variance=FixedLarge())
    *_, last, end = make(steps=7).trajectory(oracle, normal(5, 2))
    torch.testing.assert_close(end.x_t, last.x0, rtol=0, atol=1e-14)


# Distributions


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampler",
    [
        DDPM(None),
        DDIM(500, eta=1.0, spacing=LogSNRSpacing()),
        Euler(500, churn=50.0, spacing=LogSNRSpacing()),
        Heun(100, churn=20.0, spacing=LogSNRSpacing()),
        DPMSolverPPSDE(200, spacing=LogSNRSpacing()),
    ],
    ids=named,
)
def test_random_samples_of_a_mixture_have_its_weights_means_and_spreads(sampler):
    means, n = 2 * MEANS, 10_000  # components too far apart to be mistaken for each other
    torch.manual_seed(0)
    samples = sampler(Mixture(Cosine(), means, VARIANCES, WEIGHTS), normal(n, 2))
    nearest = torch.cdist(samples, means).argmin(1)
    share = torch.bincount(nearest, minlength=3) / n
    allowed = 4 * (WEIGHTS * (1 - WEIGHTS) / n).sqrt() + 0.005
    assert ((share - WEIGHTS).abs() < allowed).all(), share
    for k in range(3):
        # 2·n_k squares of a normal have the relative error sqrt(1/n_k); 3 % are discretisation's.
        allowed = 4 / (n * WEIGHTS[k]) ** 0.5 + 0.03
        z = (samples[nearest == k] - means[k]) / VARIANCES[k].sqrt()
        assert abs(z.square().mean() - 1) < allowed
        assert (z.mean(0).abs() < allowed).all()
