"""Variance of the reverse step, against the papers' formulas in numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm_lightning.configurable import build
from ddpm_lightning.diffusion.posterior import posterior, transition_variance
from ddpm_lightning.diffusion.prediction import FixedLarge, FixedSmall, Prediction
from ddpm_lightning.diffusion.schedules import Cosine, Linear, SohlDickstein, Straight
from ddpm_lightning.diffusion.variances import AnalyticVariance, LearnedDiagonal, LearnedRange
from ddpm_lightning.errors import InputError
from tests.core import named, pair

ALL = [
    FixedSmall(),
    FixedLarge(),
    LearnedRange(),
    LearnedDiagonal(),
    AnalyticVariance([0.1 * k / 40 for k in range(41)]),
]


def prediction_at(schedule, t, variance, extra=None):
    x = torch.zeros(2, 1, dtype=torch.float64) if extra is None else torch.zeros_like(extra)
    return Prediction(x, x, schedule.level(t, like=x), variance, extra=extra)


def says(*extra):
    return torch.tensor(extra, dtype=torch.float64).view(-1, 1)


# Every variance


@pytest.mark.parametrize("variance", ALL, ids=named)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_pair_per_row_gives_what_each_pair_gives_alone(variance, dtype):
    schedule = SohlDickstein()
    t, s = torch.tensor([1, 2, 30, 40, 40]), torch.tensor([0, 1, 29, 0, 12])
    extra = torch.tensor([[0.3], [-0.4], [1.0], [-1.0], [2.0]], dtype=dtype)
    rows = torch.as_tensor(prediction_at(schedule, t, variance, extra).variance(s))
    assert rows.dtype == dtype
    for i in range(5):
        alone = prediction_at(schedule, int(t[i]), variance, extra[i : i + 1].double())
        expected = float(alone.variance(int(s[i])))
        rel = 1e-12 if dtype == torch.float64 else 2e-6
        assert float(rows[i]) == pytest.approx(expected, rel=rel)


@pytest.mark.parametrize("variance", ALL, ids=named)
@pytest.mark.parametrize("schedule", [SohlDickstein(), Straight(40)])
def test_variances_and_their_gradients_are_finite_at_every_level_in_float32(variance, schedule):
    t = torch.arange(1, 41)
    extra = torch.linspace(-1, 1, 40).view(-1, 1).requires_grad_()
    prediction = prediction_at(schedule, t, variance, extra)
    total = 0.0
    for value in (prediction.variance(t - 1), variance.decoder(prediction)):
        value = torch.as_tensor(value)
        assert value.isfinite().all()
        assert (value >= 0).all()
        total = total + value.sum()
    assert variance.extra_channels(3) == (3 if named(variance).startswith("Learned") else 0)
    if variance.extra_channels(1):
        total.backward()
        assert extra.grad.isfinite().all()
        assert (extra.grad != 0).all()


# Learned range (improved DDPM)


@pytest.mark.parametrize(("s", "t"), [(1, 2), (499, 500), (999, 1000), (1, 1000), (400, 700)])
def test_learned_range_is_the_papers_interpolation_between_the_fixed_ones(s, t):
    v = np.array([0.0, 0.25, 1.0])
    small, large = (
        prediction_at(Linear(), t, fixed).variance(s) for fixed in (FixedSmall(), FixedLarge())
    )
    ours = prediction_at(Linear(), t, LearnedRange(), says(*(2 * v - 1))).variance(s)
    expected = np.exp(v * np.log(large) + (1 - v) * np.log(small))
    np.testing.assert_allclose(ours.flatten(), expected, rtol=1e-12)


# Learned diagonal (Sohl-Dickstein)


@settings(deadline=None, max_examples=100)
@given(st.data(), st.floats(0.01, 4), st.sampled_from([Cosine(50), SohlDickstein(), Straight(30)]))
def test_learned_diagonal_of_gaussian_data_is_exact_on_skipped_levels(data, c, schedule):
    # For data N(0, c²), Var[x_0 | x_t] is known, and Var[x_s | x_t] from the joint Gaussian.
    t = data.draw(st.integers(1, schedule.T))
    s = data.draw(st.integers(0, t - 1))
    alpha, sigma = schedule.alpha.numpy(), schedule.sigma.numpy()

    def conditional(s):
        total_s, total_t = ((alpha[k] * c) ** 2 + sigma[k] ** 2 for k in (s, t))
        covariance = alpha[t] / alpha[s] * total_s
        return total_s - covariance**2 / total_t

    beta = transition_variance(*pair(schedule, t - 1, t))
    extra = says(np.log(conditional(t - 1) / beta))
    ours = prediction_at(schedule, t, LearnedDiagonal(), extra).variance(s)
    assert float(ours) == pytest.approx(conditional(s), rel=1e-6, abs=1e-9)


def test_learned_diagonal_implies_no_negative_variance_of_x0():
    prediction = prediction_at(Linear(), 500, LearnedDiagonal(), says(-20))
    assert float(prediction.variance(499)) < 1e-9
    floor = posterior(*pair(Linear(), 400, 500)).variance
    assert float(prediction.variance(400)) == pytest.approx(floor, rel=1e-12)


# Analytic


def test_an_analytic_table_without_error_at_level_1_still_decodes_with_beta_tilde_2():
    # Data of a single point: a decoder of variance 0 would have an infinite density.
    schedule, variance = SohlDickstein(), AnalyticVariance([0.0] * 41)
    floor = FixedSmall().decoder(prediction_at(schedule, 1, variance))
    assert variance.decoder(prediction_at(schedule, 1, variance)) == floor
    rows = variance.decoder(prediction_at(schedule, torch.tensor([1, 1]), variance))
    np.testing.assert_allclose(rows.flatten(), floor, rtol=1e-12)


def test_an_analytic_table_is_read_from_a_file_and_described_by_its_numbers(tmp_path):
    path = tmp_path / "variance.npz"
    np.savez(path, x0_error=np.linspace(0, 1, 41))
    description = AnalyticVariance(str(path)).describe()
    path.unlink()  # a checkpoint with it loads wherever the file is
    variance = build(description)
    assert description["init_args"] == {"table": np.linspace(0, 1, 41).tolist()}
    assert prediction_at(SohlDickstein(), 40, variance).variance(0) == pytest.approx(1)


def test_a_broken_analytic_table_is_an_error_that_names_the_file(tmp_path):
    path = tmp_path / "broken.npz"
    np.savez(path, something_else=np.ones(3))
    with pytest.raises(InputError, match=r"broken\.npz is no .npz file with an array x0_error"):
        AnalyticVariance(str(path))
    path.write_bytes(b"not an archive")
    with pytest.raises(InputError, match=r"broken\.npz is no .npz file with an array x0_error"):
        AnalyticVariance(str(path))


def at_level_3(variance):
    return prediction_at(SohlDickstein(), 3, variance).variance(1)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: AnalyticVariance("gone.npz"), r"no table .*gone\.npz; estimate it"),
        (lambda: AnalyticVariance([0.0, -1.0]), "mean squared errors"),
        (lambda: AnalyticVariance([0.0, float("nan")]), "mean squared errors"),
        (lambda: AnalyticVariance([[0.0], [1.0]]), "mean squared errors"),  # type: ignore[list-item]
        (lambda: at_level_3(AnalyticVariance([0.0, 0.1])), r"2 entries.*levels 0…40"),
        (lambda: at_level_3(LearnedRange()), "extra channels"),
        (lambda: at_level_3(LearnedDiagonal()), "extra channels"),
    ],
)
def test_tables_and_outputs_that_do_not_fit_are_refused(call, words):
    with pytest.raises(InputError, match=words):
        call()
