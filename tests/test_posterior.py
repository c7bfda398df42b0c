"""The Gaussians between two levels, against conditioning of the joint Gaussian in numpy."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ddpm_lightning.diffusion.posterior import first_variance, posterior, transition_variance
from ddpm_lightning.diffusion.schedules import Cosine, Linear, Table
from tests.core import linear_betas, named, pair, sigma_squared


def straight_line(T=20):
    """alpha falls from 1 to 0 while sigma rises from 0 to 3: variance is not preserved."""
    rising = np.linspace(0, 1, T + 1)
    return Table((1 - rising).tolist(), (3 * rising).tolist())


SCHEDULES = [Linear(), Cosine(), straight_line()]


@st.composite
def pairs(draw):
    """A schedule and two of its levels s < t."""
    schedule = draw(st.sampled_from(SCHEDULES))
    t = draw(st.integers(1, schedule.T))
    return schedule, draw(st.integers(0, t - 1)), t


@settings(deadline=None, max_examples=300)
@given(pairs())
@example((SCHEDULES[2], 0, 20))  # zero terminal SNR: x_T says nothing about x_s
@example((SCHEDULES[2], 19, 20))
def test_posterior_of_any_pair_is_the_conditioned_joint_gaussian(levels):
    schedule, s, t = levels
    alpha, sigma = schedule.alpha.numpy(), schedule.sigma.numpy()
    # Given x_0, (x_s, x_t) is Gaussian with these moments, because x_t = (α_t/α_s)·x_s + noise.
    cov_st = alpha[t] / alpha[s] * sigma[s] ** 2
    gain = cov_st / sigma[t] ** 2
    q = posterior(*pair(schedule, s, t))
    assert q.x_t == pytest.approx(gain, rel=1e-12)
    assert q.x0 == pytest.approx(alpha[s] - gain * alpha[t], rel=1e-9, abs=1e-12)
    assert q.variance == pytest.approx(sigma[s] ** 2 - gain * cov_st, rel=1e-9, abs=1e-14)
    # x_s ~ q(x_s | x_t, x_0) with x_t ~ q(x_t | x_0) must be q(x_s | x_0), to all digits.
    assert q.x0 + q.x_t * alpha[t] == pytest.approx(alpha[s], rel=1e-12)
    assert q.variance + (q.x_t * sigma[t]) ** 2 == pytest.approx(sigma[s] ** 2, rel=1e-12)


def test_between_neighbours_the_coefficients_and_variances_are_the_papers():
    betas, variance = linear_betas(), sigma_squared(linear_betas())
    alpha_bar = np.concatenate([[1.0], np.cumprod(1 - betas)])
    for t in (1, 2, 3, 500, 999, 1000):
        s, t_ = pair(Linear(), t - 1, t)
        beta, q = betas[t - 1], posterior(s, t_)
        assert transition_variance(s, t_) == pytest.approx(beta, rel=1e-12)
        assert q.x0 == pytest.approx(np.sqrt(alpha_bar[t - 1]) * beta / variance[t], rel=1e-12)
        assert q.x_t == pytest.approx(np.sqrt(1 - beta) * variance[t - 1] / variance[t], rel=1e-12)
    beta_tilde_2 = betas[1] * variance[1] / variance[2]
    assert first_variance(Linear()) == pytest.approx(beta_tilde_2, rel=1e-12)
    assert first_variance(Table([1, 0], [0, 0.7])) == pytest.approx(0.49)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
def test_the_step_to_level_0_is_x0_itself_from_every_level(schedule):
    for t in range(1, schedule.T + 1):
        assert posterior(*pair(schedule, 0, t)) == (1, 0, 0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_pair_per_row_gives_what_each_pair_gives_alone(dtype):
    s, t = torch.tensor([0, 0, 1, 300, 999, 5]), torch.tensor([1, 1000, 2, 700, 1000, 900])
    rows = posterior(*pair(Cosine(), s, t, torch.zeros(6, 3, 2, dtype=dtype)))
    alone = [posterior(*pair(Cosine(), int(a), int(b))) for a, b in zip(s, t, strict=True)]
    for row, expected in zip(rows, zip(*alone, strict=True), strict=True):
        assert row.dtype == dtype
        assert row.shape == (6, 1, 1)
        rtol = 1e-13 if dtype == torch.float64 else 1e-4
        np.testing.assert_allclose(row.flatten(), expected, rtol=rtol, atol=1e-12)


@pytest.mark.parametrize("schedule", [Linear(4000), Cosine(4000), straight_line(1000)], ids=named)
def test_the_variances_between_neighbours_keep_six_digits_in_float32(schedule):
    t = torch.arange(1, schedule.T + 1)
    for of_pair in (transition_variance, lambda s, t: posterior(s, t).variance):
        double, single = (
            of_pair(*pair(schedule, t - 1, t, torch.zeros(1, 1, dtype=dtype)))
            for dtype in (torch.float64, torch.float32)
        )
        assert single.dtype == torch.float32
        np.testing.assert_allclose(single, double, rtol=1e-6)
