"""Noise schedules, against float64 numpy: betas and a recursion for 1 − alpha_bar."""

from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch

from ddpm_lightning.configurable import build
from ddpm_lightning.diffusion.posterior import new_noise
from ddpm_lightning.diffusion.schedules import (
    BetaSchedule,
    Cosine,
    Karras,
    Linear,
    Quadratic,
    Sigmoid,
    SigmoidBetas,
    SohlDickstein,
    Straight,
    Table,
    ZeroTerminalSNR,
    tables_from_betas,
)
from ddpm_lightning.errors import InputError
from tests.core import linear_betas, named, pair, sigma_squared


def assert_has_betas(schedule, betas, rtol=1e-12):
    """The alpha and sigma of these betas."""
    alpha = np.concatenate([[1.0], np.cumprod(np.sqrt(1 - betas))])
    np.testing.assert_allclose(schedule.alpha, alpha, rtol=rtol)
    np.testing.assert_allclose(schedule.sigma, np.sqrt(sigma_squared(betas)), rtol=rtol)
    assert schedule.prior_std == pytest.approx(1, abs=1e-9)


def logistic(x):
    return 1 / (1 + np.exp(-x))


# Values


@pytest.mark.parametrize("T", [21, 1000, 4000])
def test_betas_are_those_of_the_formula(T):
    first, last = 0.1 / T, 20 / T
    assert_has_betas(Linear(T), linear_betas(T))
    assert_has_betas(Quadratic(T), np.linspace(np.sqrt(first), np.sqrt(last), T) ** 2)
    sigmoid = first + (last - first) * logistic(np.linspace(-6, 6, T))
    assert_has_betas(SigmoidBetas(T), sigmoid)


def test_linear_without_rescaling_takes_its_end_points_as_they_stand():
    schedule = Linear(300, beta_start=1e-3, beta_end=0.05, rescale=False)
    assert_has_betas(schedule, np.linspace(1e-3, 0.05, 300))


@pytest.mark.parametrize("T", [10, 1000, 4000])
def test_cosine_is_the_papers_formula_capped_at_0999_from_above_only(T):
    f = np.cos((np.arange(T + 1) / T + 0.008) / 1.008 * np.pi / 2) ** 2
    # 1 − ratio has an absolute error of 1e-16, which is 1e-10 of the smallest beta at T = 4000.
    assert_has_betas(Cosine(T), np.minimum(1 - f[1:] / f[:-1], 0.999), rtol=1e-9)


@pytest.mark.parametrize("tau", [0.2, 1.0, 2.0])
def test_sigmoid_is_the_published_alpha_bar(tau):
    def curve(x):
        return 1 / (1 + (-x / Decimal(tau)).exp())

    with localcontext() as context:
        context.prec = 40
        low, high = curve(Decimal(-3)), curve(Decimal(3))
        alpha_bar = [
            max((high - curve(-3 + Decimal(6 * t) / 1000)) / (high - low), Decimal("1e-9"))
            for t in range(1, 1001)
        ]
        one_minus = [1 - value for value in alpha_bar]
    schedule = Sigmoid(tau=tau)
    np.testing.assert_allclose(schedule.alpha[1:] ** 2, np.array(alpha_bar, float), rtol=1e-8)
    # At tau = 0.2 the first is 2e-9: as 1 − alpha_bar it would keep eight digits.
    np.testing.assert_allclose(schedule.sigma[1:] ** 2, np.array(one_minus, float), rtol=1e-12)
    assert Sigmoid(min_alpha_bar=0).alpha[-1] == 0


def test_sohl_dickstein_has_the_toys_golden_values():
    schedule = SohlDickstein()
    alpha_bar = schedule.alpha**2
    assert schedule.T == 40
    assert 1 - float(alpha_bar[1]) == pytest.approx(1.0005e-5, rel=1e-3)
    assert 1 - float(alpha_bar[40] / alpha_bar[39]) == pytest.approx(0.29999, abs=5e-6)
    assert float(alpha_bar[40]) == pytest.approx(0.00636, abs=5e-6)
    assert_has_betas(schedule, logistic(np.linspace(-18, 10, 40)) * (0.3 - 1e-5) + 1e-5)


@pytest.mark.filterwarnings("ignore:.*not noise")
def test_karras_has_edms_noise_levels():
    schedule = Karras(18)
    i = np.arange(18)  # EDM eq. 5, which counts from sigma_max down
    steps = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(schedule.sigma[1:], steps[::-1], rtol=1e-12)
    assert schedule.alpha.tolist() == [1.0] * 19
    assert float(schedule.sigma[9]) == pytest.approx(1.9233, abs=1e-4)  # EDM's 18-step schedule
    assert schedule.prior_std == pytest.approx(np.sqrt(6401))
    np.testing.assert_allclose(Karras(5, 1.0, 9.0, rho=1).sigma, [0, 1, 3, 5, 7, 9], rtol=1e-12)


def test_straight_goes_from_data_to_noise_in_equal_steps():
    schedule = Straight(4)
    assert schedule.alpha.tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert schedule.sigma.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert schedule.prior_std == 1


def test_zero_terminal_snr_is_that_of_diffusers():
    scheduling = pytest.importorskip("diffusers.schedulers.scheduling_ddpm")
    theirs = scheduling.rescale_zero_terminal_snr(torch.from_numpy(linear_betas()))
    # Its betas cannot say what alpha_T = 0 does to the digits of the level before.
    alpha = ZeroTerminalSNR(Linear()).alpha
    np.testing.assert_allclose(alpha[1:] ** 2, (1 - theirs).cumprod(0), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("inner", [Linear(), Cosine(), SohlDickstein(), Sigmoid()], ids=named)
def test_zero_terminal_snr_keeps_the_first_level_and_the_variance_and_ends_in_noise(inner):
    schedule = ZeroTerminalSNR(inner)
    assert schedule.alpha[-1] == 0
    assert schedule.alpha[1] == pytest.approx(float(inner.alpha[1]), rel=1e-14)
    assert schedule.sigma[1] == pytest.approx(float(inner.sigma[1]), rel=1e-14)
    np.testing.assert_allclose(schedule.alpha**2 + schedule.sigma**2, 1, rtol=1e-13)


def test_zero_terminal_snr_leaves_what_has_it_alone():
    schedule = ZeroTerminalSNR(Straight(10))
    np.testing.assert_allclose(schedule.alpha, Straight(10).alpha, atol=1e-15)
    np.testing.assert_allclose(schedule.sigma, Straight(10).sigma, atol=1e-15)


def test_tables_from_betas_keep_the_digits_of_small_ones_and_take_a_last_one_of_1():
    _, sigma = tables_from_betas(torch.tensor([1e-20, 3e-20], dtype=torch.float64))
    np.testing.assert_allclose(sigma, [0, 1e-10, 2e-10], rtol=1e-12)
    alpha, sigma = tables_from_betas(torch.tensor([0.5, 1.0], dtype=torch.float64))
    assert (alpha[-1], sigma[-1]) == (0, 1)


class FourthRoots(BetaSchedule):
    """The fourth roots of the betas rise linearly."""

    def betas(self, first, last, T):
        return torch.linspace(first**0.25, last**0.25, T) ** 4


def test_a_schedule_of_betas_is_stated_in_three_lines():
    schedule = FourthRoots(500, beta_end=0.03)
    betas = np.linspace((0.1 / 500) ** 0.25, (30 / 500) ** 0.25, 500) ** 4
    assert_has_betas(schedule, betas, rtol=1e-5)
    assert schedule.describe()["init_args"]["beta_end"] == 0.03


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
    ids=named,
)
def test_a_schedule_is_rebuilt_from_its_description(schedule):
    again = build(schedule.describe())
    assert type(again) is type(schedule)
    assert torch.equal(again.alpha, schedule.alpha)
    assert torch.equal(again.sigma, schedule.sigma)
    assert again.describe()["class_path"] == f"ddpm_lightning.diffusion.{named(schedule)}"
    assert len(list(again.buffers())) == 1  # of its own, none of the schedule inside


# What is no schedule


def betas(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Linear(0), r"^Linear\(T"),
        (lambda: Linear(10), "to 2 do not rise"),
        (lambda: Linear(20), "to 1 do not rise"),
        (lambda: Quadratic(20), r"^Quadratic\(T"),
        (lambda: SigmoidBetas(10), r"^SigmoidBetas\(T"),
        (lambda: FourthRoots(10), r"FourthRoots\(T=10\): .*T > 20"),
        (lambda: SohlDickstein(10), "T > 12 with"),
        (lambda: Cosine(0), r"^Cosine\(T=0\)"),
        (lambda: Sigmoid(start=3, end=3), r"^Sigmoid\("),
        (lambda: Sigmoid(min_alpha_bar=1), r"^Sigmoid\("),
        (lambda: Sigmoid(tau=0.15), r"tau=0\.15, min_alpha_bar=1e-09.*a larger tau or a sm"),
        (lambda: Straight(0), r"^Straight\(T=0\)"),
        (lambda: ZeroTerminalSNR(Karras(10)), "alpha does not fall"),
        (lambda: ZeroTerminalSNR(Straight(1)), "alpha does not fall"),
        (lambda: Table([0.9, 0.1], [0.0, 0.9]), "alpha_0 = 1"),
        (lambda: Table([1.0, 0.1], [0.1, 0.9]), "sigma_0 = 0"),
        (lambda: Table([1.0], [0.0]), "T\\+1 ≥ 2"),
        (lambda: Table([1.0, 0.1], [0.0, 0.5, 0.9]), "two tables"),
        (lambda: Table([1.0, 0.5, 0.5, 0.1], [0.0, 0.5, 0.5, 0.9]), "increase strictly"),
        (lambda: Table([1.0, 0.0, 0.0], [0.0, 1.0, 1.0]), "increase strictly"),
        (lambda: tables_from_betas(betas(0.1, 0.0)), "betas must lie in"),
        (lambda: tables_from_betas(betas(0.1, 1.1)), "betas must lie in"),
        (lambda: tables_from_betas(betas(0.1, float("nan"))), "betas must lie in"),
    ],
)
def test_what_makes_no_schedule_is_an_error_that_names_the_fix(make, words):
    with pytest.raises(InputError, match=words):
        make()


# Levels


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_levels_are_looked_up_in_the_datas_dtype_but_in_float32_at_least(dtype):
    schedule, t = Linear(), torch.tensor([0, 1, 500, 1000])
    level = schedule.level(t, like=torch.zeros(4, 3, 8, 8, dtype=dtype))
    expected = torch.promote_types(dtype, torch.float32)
    for name in ("alpha", "sigma", "log_snr"):
        value = getattr(level, name)
        assert value.dtype == expected
        assert value.shape == (4, 1, 1, 1)
        assert torch.equal(value.flatten(), getattr(schedule, name)[t].to(expected))


def test_a_level_for_the_whole_batch_is_looked_up_as_float64_numbers():
    schedule = Linear()
    level = schedule.level(7)
    assert (level.alpha, level.sigma) == (schedule.alpha[7], schedule.sigma[7])
    assert level.log_snr == schedule.log_snr[7]
    assert level.snr == pytest.approx(float((schedule.alpha[7] / schedule.sigma[7]) ** 2))


@pytest.mark.parametrize("t", [7, torch.tensor([3, 900])])
def test_other_levels_and_entries_of_a_table_have_the_levels_form(t):
    level, table = Cosine().level(t, torch.zeros(2, 1, 1)), torch.arange(1001.0).double() / 7
    before = level.at(t - 1)
    assert type(before.alpha) is type(level.alpha)
    torch.testing.assert_close(before.alpha, Cosine().level(t - 1, torch.zeros(2, 1, 1)).alpha)
    entry = level.entry(table)
    assert type(entry) is type(level.alpha)
    expected = table[t].view(-1, 1, 1).float() if isinstance(t, torch.Tensor) else float(table[t])
    torch.testing.assert_close(entry, expected)


def exact_new_noise(schedule, t):
    """1 − SNR_t/SNR_{t−1} with forty digits."""
    tables = (table.tolist() for table in (schedule.alpha, schedule.sigma))
    alpha, sigma = ([Decimal(value) for value in table[t - 1 : t + 1]] for table in tables)
    return float(1 - (alpha[1] * sigma[0] / (sigma[1] * alpha[0])) ** 2)


@pytest.mark.parametrize("schedule", [Linear(4000), Cosine(4000), Karras(), Straight()], ids=named)
def test_new_noise_between_neighbours_keeps_its_digits_in_float32(schedule):
    t = torch.arange(1, schedule.T + 1)
    with localcontext() as context:
        context.prec = 40
        exact = [exact_new_noise(schedule, k) for k in t.tolist()]
    for dtype, rtol in ((torch.float32, 1e-6), (torch.float64, 1e-10)):
        ours = new_noise(*pair(schedule, t - 1, t, torch.zeros(1, 1, dtype=dtype)))
        assert ours.dtype == dtype
        np.testing.assert_allclose(ours.flatten(), exact, rtol=rtol)
        # A level for the batch against one a row has the digits of two rows.
        mixed = new_noise(schedule.level(9), schedule.level(t[9:10], ours))
        assert torch.equal(mixed, ours[9:10])


def test_everything_is_new_noise_since_clean_data_and_where_no_data_is_left():
    for s, t in ((0, 1), (0, 10), (9, 10)):
        assert new_noise(*pair(Straight(10), s, t)) == 1
        assert new_noise(*pair(Straight(10), torch.tensor([s]), torch.tensor([t]))) == 1


def test_tables_first_used_in_inference_mode_still_allow_a_backward_pass():
    schedule, t = Linear(), torch.tensor([5])
    with torch.inference_mode():
        schedule.add_noise(torch.zeros(1, 1), t, torch.zeros(1, 1))
    x0 = torch.zeros(1, 1, requires_grad=True)
    schedule.add_noise(x0, t, torch.zeros(1, 1)).sum().backward()
    assert float(x0.grad) == pytest.approx(float(schedule.alpha[5]))
