"""Noise schedules and the training levels drawn on them.

The references are plain float64 numpy: betas, and the recursion
sigma_t² = (1 − beta_t)·sigma_{t−1}² + beta_t, which loses no digits to 1 − alpha_bar.
"""

import warnings
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch

from ddpm_lightning.configurable import build
from ddpm_lightning.diffusion.schedules import (
    Cosine,
    Karras,
    Linear,
    Quadratic,
    Schedule,
    Sigmoid,
    SigmoidBetas,
    SohlDickstein,
    Straight,
    Table,
    ZeroTerminalSNR,
    tables_from_betas,
)
from ddpm_lightning.diffusion.timesteps import Uniform, level_of
from ddpm_lightning.errors import InputError
from ddpm_lightning.randomness import IndexedNoise


class Tables(Schedule):
    """A schedule of the test's own."""

    def __init__(self, alpha: list[float], sigma: list[float]) -> None:
        super().__init__(torch.tensor(alpha), torch.tensor(sigma))


def numpy_tables(betas):
    alpha, variance = [1.0], [0.0]
    for beta in betas:
        alpha.append(alpha[-1] * np.sqrt(1 - beta))
        variance.append((1 - beta) * variance[-1] + beta)
    return np.array(alpha), np.sqrt(variance)


def linear_betas(T):
    return np.linspace(0.1 / T, 20 / T, T)


def cosine_betas(T, s=0.008):
    f = np.cos((np.arange(T + 1) / T + s) / (1 + s) * np.pi / 2) ** 2
    alpha_bar = f / f[0]
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)


# Values


@pytest.mark.parametrize("T", [21, 200, 1000, 4000])
def test_linear_is_the_product_of_its_betas_to_twelve_digits(T):
    alpha, sigma = numpy_tables(linear_betas(T))
    schedule = Linear(T)
    np.testing.assert_allclose(schedule.alpha, alpha, rtol=1e-12)
    np.testing.assert_allclose(schedule.sigma, sigma, rtol=1e-12)


def test_linear_without_rescaling_takes_its_end_points_as_they_stand():
    alpha, sigma = numpy_tables(np.linspace(1e-3, 0.05, 300))
    schedule = Linear(300, beta_start=1e-3, beta_end=0.05, rescale=False)
    np.testing.assert_allclose(schedule.alpha, alpha, rtol=1e-12)
    np.testing.assert_allclose(schedule.sigma, sigma, rtol=1e-12)


@pytest.mark.parametrize("T", [10, 50, 1000, 4000])
def test_cosine_is_the_papers_formula_capped_at_0999_from_above_only(T):
    alpha, sigma = numpy_tables(cosine_betas(T))
    schedule = Cosine(T)
    # 1 − ratio has an absolute error of 1e-16, which is 1e-10 of the smallest beta at T = 4000.
    np.testing.assert_allclose(schedule.alpha, alpha, rtol=1e-9)
    np.testing.assert_allclose(schedule.sigma, sigma, rtol=1e-9)


@pytest.mark.parametrize("T", [21, 200, 1000])
def test_quadratic_is_linear_in_the_square_roots_of_its_betas(T):
    betas = np.linspace(np.sqrt(0.1 / T), np.sqrt(20 / T), T) ** 2
    alpha, sigma = numpy_tables(betas)
    np.testing.assert_allclose(Quadratic(T).alpha, alpha, rtol=1e-12)
    np.testing.assert_allclose(Quadratic(T).sigma, sigma, rtol=1e-12)


@pytest.mark.parametrize("T", [21, 200, 1000])
def test_sigmoid_betas_rise_along_a_sigmoid_from_minus_6_to_6(T):
    first, last = 0.1 / T, 20 / T
    betas = first + (last - first) / (1 + np.exp(-np.linspace(-6, 6, T)))
    alpha, sigma = numpy_tables(betas)
    np.testing.assert_allclose(SigmoidBetas(T).alpha, alpha, rtol=1e-12)
    np.testing.assert_allclose(SigmoidBetas(T).sigma, sigma, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "ours"),
    [("linear", Linear), ("scaled_linear", Quadratic), ("sigmoid", SigmoidBetas)],
)
@pytest.mark.parametrize("T", [100, 1000])
def test_betas_are_those_of_diffusers(name, ours, T):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(T, 1e-4, 0.02, beta_schedule=name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 100 levels of unscaled betas do not end in noise
        alpha = ours(T, rescale=False).alpha
    # Its tables are float32; the product of a thousand rounded factors keeps four digits.
    np.testing.assert_allclose(1 - (alpha[1:] / alpha[:-1]) ** 2, theirs.betas, rtol=2e-5)
    np.testing.assert_allclose(alpha[1:] ** 2, theirs.alphas_cumprod, rtol=1e-4)


def test_cosine_is_that_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2")
    betas = 1 - (Cosine().alpha[1:] / Cosine().alpha[:-1]) ** 2
    np.testing.assert_allclose(betas, theirs.betas, rtol=2e-5)


@pytest.mark.parametrize("tau", [0.2, 0.5, 1.0, 2.0])
def test_sigmoid_is_the_published_alpha_bar(tau):
    def logistic(x):
        return 1 / (1 + (-x / Decimal(tau)).exp())

    with localcontext() as context:
        context.prec = 40
        low, high = logistic(Decimal(-3)), logistic(Decimal(3))
        alpha_bar = [
            max((high - logistic(-3 + Decimal(6 * t) / 1000)) / (high - low), Decimal("1e-9"))
            for t in range(1, 1001)
        ]
        one_minus = [1 - value for value in alpha_bar]
    schedule = Sigmoid(tau=tau)
    np.testing.assert_allclose(schedule.alpha[1:] ** 2, np.array(alpha_bar, float), rtol=1e-8)
    # At tau = 0.2 the first is 2e-9: as 1 − alpha_bar it would keep eight digits.
    np.testing.assert_allclose(schedule.sigma[1:] ** 2, np.array(one_minus, float), rtol=1e-12)


def test_sigmoid_is_half_noise_in_the_middle_and_ends_at_its_floor():
    assert float(Sigmoid().alpha[500]) == pytest.approx(0.5**0.5, abs=1e-12)
    assert float(Sigmoid().alpha[1000]) == pytest.approx(10**-4.5, rel=1e-9)
    assert Sigmoid(min_alpha_bar=0).alpha[-1] == 0


def test_sohl_dickstein_has_the_toys_golden_values():
    schedule = SohlDickstein()
    alpha_bar = schedule.alpha**2
    assert schedule.T == 40
    assert 1 - float(alpha_bar[1]) == pytest.approx(1.0005e-5, rel=1e-3)
    assert 1 - float(alpha_bar[40] / alpha_bar[39]) == pytest.approx(0.29999, abs=5e-6)
    assert float(alpha_bar[40]) == pytest.approx(0.00636, abs=5e-6)
    betas = 1 / (1 + np.exp(-np.linspace(-18, 10, 40))) * (0.3 - 1e-5) + 1e-5
    np.testing.assert_allclose(schedule.sigma, numpy_tables(betas)[1], rtol=1e-12)


def test_karras_has_edms_noise_levels():
    schedule = Karras(18)
    i = np.arange(18)  # EDM eq. 5, which counts from sigma_max down
    steps = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(schedule.sigma[1:], steps[::-1], rtol=1e-12)
    assert schedule.alpha.tolist() == [1.0] * 19
    assert float(schedule.sigma[9]) == pytest.approx(1.9233, abs=1e-4)  # EDM's 18-step schedule
    assert schedule.prior_std == pytest.approx(np.sqrt(6401))


@pytest.mark.filterwarnings("ignore:.*not noise")
def test_karras_with_rho_1_has_equal_steps():
    np.testing.assert_allclose(Karras(5, 1.0, 9.0, rho=1).sigma, [0, 1, 3, 5, 7, 9], rtol=1e-12)


def test_straight_goes_from_data_to_noise_in_equal_steps():
    schedule = Straight(4)
    assert schedule.alpha.tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert schedule.sigma.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert schedule.prior_std == 1


def test_zero_terminal_snr_is_that_of_diffusers():
    scheduling = pytest.importorskip("diffusers.schedulers.scheduling_ddpm")
    betas = torch.from_numpy(linear_betas(1000))
    theirs = scheduling.rescale_zero_terminal_snr(betas)
    alpha_bar = (1 - theirs).cumprod(0)
    schedule = ZeroTerminalSNR(Linear())
    # Its betas cannot say what alpha_T = 0 does to the digits of the level before.
    np.testing.assert_allclose(schedule.alpha[1:] ** 2, alpha_bar, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("inner", [Linear(), Cosine(), Quadratic(), SohlDickstein(), Sigmoid()])
def test_zero_terminal_snr_keeps_the_first_level_and_the_variance_and_ends_in_noise(inner):
    schedule = ZeroTerminalSNR(inner)
    assert schedule.alpha[-1] == 0
    assert schedule.sigma[-1] == pytest.approx(1, abs=1e-14)
    assert schedule.alpha[1] == pytest.approx(float(inner.alpha[1]), rel=1e-14)
    assert schedule.sigma[1] == pytest.approx(float(inner.sigma[1]), rel=1e-14)
    np.testing.assert_allclose(schedule.alpha**2 + schedule.sigma**2, 1, rtol=1e-13)


def test_zero_terminal_snr_leaves_what_has_it_alone():
    schedule = ZeroTerminalSNR(Straight(10))
    np.testing.assert_allclose(schedule.alpha, Straight(10).alpha, atol=1e-15)
    np.testing.assert_allclose(schedule.sigma, Straight(10).sigma, atol=1e-15)


@pytest.mark.parametrize("inner", [Karras(10), Straight(1)])
def test_zero_terminal_snr_of_an_alpha_that_does_not_fall_is_refused(inner):
    with pytest.raises(InputError, match="alpha does not fall"):
        ZeroTerminalSNR(inner)


def test_a_table_is_taken_as_it_stands():
    schedule = Table([1, 0.8, 0.05], [0, 0.6, 0.9])
    assert schedule.alpha.tolist() == [1, 0.8, 0.05]
    assert schedule.sigma.tolist() == [0, 0.6, 0.9]


@pytest.mark.parametrize(
    "schedule",
    [
        Quadratic(200),
        Sigmoid(50, tau=0.7),
        SigmoidBetas(50),
        SohlDickstein(),
        Karras(10, rho=3),
        Straight(7),
        ZeroTerminalSNR(ZeroTerminalSNR(Linear(50))),
        Table([1, 0.1], [0, 1]),
    ],
    ids=lambda s: type(s).__name__,
)
def test_a_schedule_is_rebuilt_from_its_description(schedule):
    again = build(schedule.describe())
    assert type(again) is type(schedule)
    assert torch.equal(again.alpha, schedule.alpha)
    assert torch.equal(again.sigma, schedule.sigma)
    assert again.describe()["class_path"] == f"ddpm_lightning.diffusion.{type(schedule).__name__}"
    assert len(list(again.buffers())) == 4  # of its own, none of the schedule inside


@pytest.mark.parametrize(
    "make",
    [
        lambda: Quadratic(20),
        lambda: SigmoidBetas(10),
        lambda: SohlDickstein(12),
        lambda: Sigmoid(0),
        lambda: Sigmoid(start=3, end=-3),
        lambda: Sigmoid(tau=0),
        lambda: Sigmoid(min_alpha_bar=1),
        lambda: Karras(1),
        lambda: Karras(sigma_min=0),
        lambda: Karras(sigma_min=90),
        lambda: Straight(0),
    ],
)
def test_arguments_that_make_no_schedule_are_an_error_that_names_it(make):
    with pytest.raises(InputError, match=r"^(Quadratic|Sig\w+|SohlDickstein|Karras|Straight)\(T?"):
        make()


def test_a_sigmoid_too_steep_for_its_floor_is_an_error_that_names_both():
    with pytest.raises(InputError, match=r"tau=0\.15, min_alpha_bar=1e-09.*a larger tau or a sm"):
        Sigmoid(tau=0.15)
    Sigmoid(tau=0.15, min_alpha_bar=1e-12)


def test_the_error_about_too_few_levels_names_how_many_are_needed():
    with pytest.raises(InputError, match="T > 12 with"):
        SohlDickstein(10)


# The share of new noise


def numpy_new_noise(schedule, s, t):
    """1 − SNR_t/SNR_s with forty digits."""
    with localcontext() as context:
        context.prec = 40
        (a, b), (c, d) = (
            (Decimal(float(schedule.alpha[k])), Decimal(float(schedule.sigma[k]))) for k in (s, t)
        )
        return float(1 - (c * b / (d * a)) ** 2)


@pytest.mark.parametrize(
    "schedule",
    [Linear(4000), Cosine(4000), Karras(), Straight()],
    ids=lambda s: type(s).__name__,
)
def test_new_noise_between_neighbours_keeps_its_digits_in_float32(schedule):
    t = torch.arange(1, schedule.T + 1)
    exact = [numpy_new_noise(schedule, k - 1, k) for k in range(1, schedule.T + 1)]
    ours = schedule.new_noise(t - 1, t, like=torch.zeros(schedule.T, 1))
    assert ours.dtype == torch.float32
    np.testing.assert_allclose(ours.flatten(), exact, rtol=1e-6)
    double = schedule.new_noise(t - 1, t, like=torch.zeros(schedule.T, 1, dtype=torch.float64))
    np.testing.assert_allclose(double.flatten(), exact, rtol=1e-10)


def test_everything_is_new_noise_since_clean_data_and_where_no_data_is_left():
    schedule = Straight(10)
    for s, t in ((0, 1), (0, 10), (9, 10)):
        assert schedule.new_noise(s, t, like=torch.zeros(1)) == 1
        rows = schedule.new_noise(torch.tensor([s]), torch.tensor([t]), like=torch.zeros(1, 1))
        assert rows.tolist() == [[1]]


def test_log_snr_is_looked_up_like_alpha_and_sigma():
    schedule, t = Linear(), torch.tensor([1, 500])
    expected = 2 * np.log((schedule.alpha[t] / schedule.sigma[t]).numpy())
    for dtype, rtol in ((torch.float32, 1e-6), (torch.float64, 1e-12)):
        rows = schedule.log_snr_at(t, like=torch.zeros(2, 3, dtype=dtype))
        assert rows.shape == (2, 1)
        assert rows.dtype == dtype
        np.testing.assert_allclose(rows.flatten(), expected, rtol=rtol)
    assert schedule.log_snr_at(500, like=torch.zeros(1)) == pytest.approx(float(expected[1]))


@pytest.mark.parametrize("schedule", [Linear(), Cosine(), Linear(4000)])
def test_level_0_is_clean_data_and_variance_is_preserved(schedule):
    assert (schedule.alpha[0], schedule.sigma[0]) == (1, 0)
    total = schedule.alpha**2 + schedule.sigma**2
    np.testing.assert_allclose(total, np.ones(schedule.T + 1), rtol=1e-14)
    assert schedule.prior_std == pytest.approx(1, abs=1e-14)


def test_sigma_keeps_its_digits_where_one_minus_alpha_bar_is_zero():
    _, sigma = tables_from_betas(torch.tensor([1e-20, 3e-20], dtype=torch.float64))
    np.testing.assert_allclose(sigma, [0, 1e-10, 2e-10], rtol=1e-12)


def test_a_last_beta_of_one_gives_zero_terminal_snr():
    alpha, sigma = tables_from_betas(torch.tensor([0.5, 1.0], dtype=torch.float64))
    assert (alpha[-1], sigma[-1]) == (0, 1)


# The prior


@pytest.mark.filterwarnings("ignore:.*not noise")
def test_prior_std_is_that_of_x_T_for_data_of_unit_variance():
    assert Tables([1.0, 1.0], [0.0, 2.0]).prior_std == pytest.approx(5**0.5)


# Tables that are no schedule


@pytest.mark.parametrize(
    ("alpha", "sigma", "message"),
    [
        ([0.9, 0.1], [0.0, 0.9], "alpha_0 = 1"),
        ([1.0, 0.1], [0.1, 0.9], "sigma_0 = 0"),
        ([1.0], [0.0], "T\\+1 ≥ 2"),
        ([1.0, 0.1], [0.0, 0.5, 0.9], "two tables"),
        ([1.0, 0.5, 0.5, 0.1], [0.0, 0.5, 0.5, 0.9], "increase strictly"),
        ([1.0, 0.1, 0.5], [0.0, 0.9, 0.5], "increase strictly"),
        ([1.0, 0.0, 0.0], [0.0, 1.0, 1.0], "increase strictly"),
    ],
)
def test_tables_that_are_no_noise_levels_are_refused(alpha, sigma, message):
    with pytest.raises(InputError, match=message):
        Tables(alpha, sigma)


@pytest.mark.parametrize("bad", [0.0, -0.1, 1.1, float("nan")])
def test_a_beta_outside_its_interval_is_refused(bad):
    with pytest.raises(InputError, match="betas must lie in"):
        tables_from_betas(torch.tensor([0.1, bad], dtype=torch.float64))


@pytest.mark.parametrize("make", [Linear, Cosine])
def test_a_schedule_needs_a_level(make):
    with pytest.raises(InputError, match="level"):
        make(0)


# Precision and device


@pytest.mark.parametrize(
    ("dtype", "gathered"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_levels_are_gathered_in_the_datas_dtype_but_in_float32_at_least(dtype, gathered):
    schedule, t = Linear(), torch.tensor([0, 1, 500, 1000])
    alpha, sigma = schedule.at(t, like=torch.zeros(4, 3, 8, 8, dtype=dtype))
    assert alpha.dtype == sigma.dtype == gathered
    assert alpha.shape == sigma.shape == (4, 1, 1, 1)
    np.testing.assert_array_equal(alpha.flatten(), schedule.alpha[t].to(gathered))
    np.testing.assert_array_equal(sigma.flatten(), schedule.sigma[t].to(gathered))


def test_a_level_for_the_whole_batch_is_looked_up_as_float64_numbers():
    schedule = Linear()
    assert schedule.at(7, like=torch.zeros(2)) == (schedule.alpha[7], schedule.sigma[7])


def test_tables_first_used_in_inference_mode_still_allow_a_backward_pass():
    schedule, t = Linear(), torch.tensor([5])
    with torch.inference_mode():
        schedule.add_noise(torch.zeros(1, 1), t, torch.zeros(1, 1))
    x0 = torch.zeros(1, 1, requires_grad=True)
    schedule.add_noise(x0, t, torch.zeros(1, 1)).sum().backward()
    assert float(x0.grad) == pytest.approx(float(schedule.alpha[5]))


# Forward process


def test_each_row_is_noised_at_its_own_level():
    schedule, t = Cosine(), torch.tensor([0, 1, 500, 1000])
    x0, eps = torch.randn(2, 4, 3, 2, dtype=torch.float64).unbind()
    alpha, sigma = numpy_tables(cosine_betas(1000))
    expected = [alpha[k] * x0[i].numpy() + sigma[k] * eps[i].numpy() for i, k in enumerate(t)]
    np.testing.assert_allclose(schedule.add_noise(x0, t, eps), expected, rtol=1e-9, atol=1e-12)


def test_level_0_adds_no_noise():
    x0 = torch.randn(2, 3)
    assert torch.equal(Linear().add_noise(x0, 0, torch.randn(2, 3)), x0)


# Training levels


def test_keyed_draws_are_uniform_over_the_levels():
    t, _ = Uniform()(Cosine(10), IndexedNoise(0, torch.arange(20_000)))
    counts = np.bincount(t.numpy(), minlength=11)[1:]
    assert counts.sum() == 20_000
    assert ((counts - 2000) ** 2 / 2000).sum() < 33.7  # chi-square, 9 degrees, p = 1e-4


# The largest float32 below 1, and a float64 number that rounds to 1 in float32.
@pytest.mark.parametrize("u", [1 - 2.0**-24, 1 - 2.0**-30])
@pytest.mark.parametrize("T", [21, 1000, 1024, 4000, 16384])
def test_a_number_close_to_one_gives_the_last_level_and_not_the_one_above(u, T):
    u = torch.tensor([u, 0.0], dtype=torch.float64).float()
    assert level_of(u, Linear(T)).tolist() == [T, 1]
