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
from tests.core import linear_betas, named, pair, sigma_squared

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
def test_only_learned_variances_need_output_channels_one_for_each(variance):
    learned = isinstance(variance, LearnedRange | LearnedDiagonal)
    assert variance.extra_channels(3) == (3 if learned else 0)


@pytest.mark.parametrize("variance", [FixedSmall(), FixedLarge()])
def test_the_decoder_of_a_fixed_variance_has_beta_tilde_2(variance):
    betas, sigma2 = linear_betas(), sigma_squared(linear_betas())
    ours = variance.decoder(prediction_at(Linear(), 1, variance))
    assert ours == pytest.approx(betas[1] * sigma2[1] / sigma2[2], rel=1e-12)


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


def test_learned_range_reaches_from_beta_tilde_2_to_beta_1_at_the_first_level():
    betas, sigma2 = linear_betas(), sigma_squared(linear_betas())
    prediction = prediction_at(Linear(), 1, LearnedRange(), says(-1, 1))
    expected = [betas[1] * sigma2[1] / sigma2[2], betas[0]]
    for ours in (prediction.variance(0), LearnedRange().decoder(prediction)):
        np.testing.assert_allclose(ours.flatten(), expected, rtol=1e-11)


def test_learned_range_agrees_with_diffusers():
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(1000, variance_type="learned_range")
    theirs.alphas_cumprod = Linear().alpha[1:] ** 2  # our float64 levels for their float32 table
    ours = LearnedRange()
    for t in (2, 3, 10, 500, 999, 1000):
        extra = says(0.3)
        # _get_variance of learned_range gives the log variance.
        expected = theirs._get_variance(t - 1, predicted_variance=extra)
        got = prediction_at(Linear(), t, ours, extra).variance(t - 1)
        np.testing.assert_allclose(got.log(), expected, atol=1e-11)


# Learned diagonal (Sohl-Dickstein)


def test_learned_diagonal_starts_from_beta_and_multiplies_it():
    prediction = prediction_at(Linear(), 300, LearnedDiagonal(), says(0, np.log(2), -9))
    beta = transition_variance(*pair(Linear(), 299, 300))
    expected = beta * np.array([1, 2, np.exp(-9)])
    np.testing.assert_allclose(prediction.variance(299).flatten(), expected, rtol=1e-12)


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


@pytest.mark.parametrize("t", [1, 7, 40])
@pytest.mark.parametrize("share", [0, 0.5, 0.9])
def test_the_analytic_variance_of_gaussian_data_is_the_exact_one(t, share):
    schedule, c, s = SohlDickstein(), 0.7, int(share * (t - 1))
    alpha, sigma = schedule.alpha.numpy(), schedule.sigma.numpy()
    total = (alpha * c) ** 2 + sigma**2
    variance = AnalyticVariance((c**2 * sigma**2 / total).tolist())
    exact = total[s] - (alpha[t] / alpha[s] * total[s]) ** 2 / total[t]
    ours = prediction_at(schedule, t, variance).variance(s)
    assert ours == pytest.approx(exact, rel=1e-9)


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


def test_a_missing_analytic_table_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(InputError, match=r"no table .*gone\.npz; estimate it"):
        AnalyticVariance(str(tmp_path / "gone.npz"))


@pytest.mark.parametrize("content", [b"", b"not an archive", None])
def test_a_broken_analytic_table_is_an_error_that_names_the_file(tmp_path, content):
    path = tmp_path / "broken.npz"
    if content is None:
        np.savez(path, something_else=np.ones(3))
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"broken\.npz is no .npz file with an array x0_error"):
        AnalyticVariance(str(path))


@pytest.mark.parametrize("table", [[0.0, -1.0], [0.0, float("nan")], [[0.0], [1.0]]])
def test_numbers_that_are_no_errors_are_refused(table):
    with pytest.raises(InputError, match="mean squared errors"):
        AnalyticVariance(table)


def test_a_table_for_another_number_of_levels_is_refused():
    variance = AnalyticVariance([0.0, 0.1])
    with pytest.raises(InputError, match=r"2 entries.*levels 0…40"):
        prediction_at(SohlDickstein(), 3, variance).variance(1)


@pytest.mark.parametrize("variance", [LearnedRange(), LearnedDiagonal()])
def test_a_learned_variance_without_its_channels_is_an_error(variance):
    with pytest.raises(InputError, match="extra channels"):
        prediction_at(Linear(), 3, variance).variance(1)
