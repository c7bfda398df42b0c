"""The museum: known failures of public diffusion code, each shown beside what this library does.

A comment names the failure as it is committed; below it stand the tests, named after the right
behaviour. Where the library could make the same mistake, a test first writes the broken formula
out (``broken``) and shows that it misses the reference. References are closed forms and float64
numpy written here, never the library again.
"""

import warnings
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from ddpm_lightning.batch import Condition, DataSpec
from ddpm_lightning.diffusion import schedules, timesteps
from ddpm_lightning.diffusion.bound import prior_term
from ddpm_lightning.diffusion.decoders import GaussianDecoder
from ddpm_lightning.diffusion.denoiser import Denoiser
from ddpm_lightning.diffusion.guidance import guide
from ddpm_lightning.diffusion.label_dropout import LabelDropout
from ddpm_lightning.diffusion.losses import MSE, NoisedBatch, VariationalBound
from ddpm_lightning.diffusion.parameterizations import (
    X0,
    EDMPreconditioning,
    Eps,
    PosteriorMean,
    V,
    Velocity,
)
from ddpm_lightning.diffusion.posterior import posterior
from ddpm_lightning.diffusion.prediction import FixedLarge, FixedSmall
from ddpm_lightning.diffusion.samplers import (
    DDIM,
    DDPM,
    LMS,
    DPMSolverPP,
    DPMSolverPPSDE,
    Euler,
    Heun,
    KarrasSpacing,
    Levels,
    LogSNRSpacing,
    QuadraticSpacing,
    UniformSpacing,
    UniPC,
)
from ddpm_lightning.diffusion.schedules import Cosine, Linear, SohlDickstein, ZeroTerminalSNR
from ddpm_lightning.diffusion.variances import AnalyticVariance, LearnedRange
from ddpm_lightning.diffusion.weightings import MinSNR
from ddpm_lightning.errors import InputError
from ddpm_lightning.networks import Network, UNet
from ddpm_lightning.networks.layers import ResidualBlock
from tests.core import Says, Waves, keyed, named, normal, pair, sigma_squared
from tests.small import TinyUNet, image_spec, labels, tiny_data, tiny_module, trainer

SAMPLERS = [DDPM, DDIM, DPMSolverPP, DPMSolverPPSDE, Euler, Heun, LMS, UniPC]
EVERY_SAMPLER = pytest.mark.parametrize("make", SAMPLERS, ids=lambda make: make.__name__)
EVERY_SPACING = pytest.mark.parametrize(
    "spacing", [UniformSpacing(), QuadraticSpacing(), LogSNRSpacing(), KarrasSpacing()], ids=named
)


def linear_tables(T=1000):
    """beta, alpha_bar and 1 − alpha_bar of the linear schedule: float64 [T+1], level 0 first."""
    beta = np.concatenate([[0.0], np.linspace(0.1 / T, 20 / T, T)])
    return beta, np.cumprod(1 - beta), sigma_squared(beta[1:])


BETA, ALPHA_BAR, VARIANCE = linear_tables()
ALPHA, SIGMA = np.sqrt(ALPHA_BAR), np.sqrt(VARIANCE)


class ExactEps(Network):
    """The noise in x_t where all data is one point, on the linear schedule."""

    def __init__(self, point, T):
        super().__init__()
        _, alpha_bar, variance = linear_tables(T)
        self.point, self.alpha, self.sigma = point, np.sqrt(alpha_bar), np.sqrt(variance)

    def forward(self, x, c_noise, condition=Condition()):
        t = int(c_noise[0]) + 1  # networks count the noise levels from 0
        return (x - self.alpha[t] * self.point) / self.sigma[t]


class Labelled(Network):
    """A fixed function of x and label."""

    def __init__(self):
        super().__init__()

    def forward(self, x, c_noise, condition=Condition()):
        return torch.tanh(x + condition.label.view(-1, *[1] * (x.ndim - 1)))


class Quantiles:
    """n uniform numbers, one in the middle of each n-th of [0, 1): a draw without luck."""

    def __init__(self, n):
        self.n = n

    def uniform(self, draw):
        return ((torch.arange(self.n, dtype=torch.float64) + 0.5) / self.n).float()


# ---- Levels at the ends ---------------------------------------------------------------------
# The first or last level is never seen: t in 1…T−1 on tables that count from 0, `t -= 1` in place.


@pytest.mark.parametrize("T", [21, 1000, 4000])
def test_the_first_and_the_last_level_are_trained_as_often_as_any_other(T):
    t, weight = timesteps.Uniform()(Linear(T), Quantiles(7 * T))
    assert torch.bincount(t, minlength=T + 1).tolist() == [0] + [7] * T
    assert torch.equal(weight, torch.ones(7 * T))


@EVERY_SAMPLER
def test_sampling_visits_every_level_from_T_to_the_data(make):
    point, x_T = normal(1, 3), normal(2, 3, seed=1)
    denoiser = Denoiser(ExactEps(point, 100), Linear(100), Eps())
    states = list(make(None).trajectory(denoiser, x_T, noise=keyed))
    assert [state.t for state in states] == list(range(100, -1, -1))
    np.testing.assert_allclose(states[-1].x_t, point.expand(2, 3), atol=1e-10)


def test_the_callers_levels_are_not_counted_down_behind_its_back():
    t, x0, eps = torch.tensor([1, 500, 1000]), normal(3, 2), normal(3, 2, seed=1)
    denoiser = Denoiser(Says(0.9 * eps), Linear(), Eps())
    batch = NoisedBatch(x0, eps, t, denoiser.schedule.add_noise(x0, t, eps))
    MSE(MinSNR())(denoiser, batch)
    VariationalBound()(denoiser, batch)
    assert t.tolist() == [1, 500, 1000]


# ---- Where the tables are -------------------------------------------------------------------
# The tables are plain attributes: they stay on the CPU after .to(device), or swell checkpoints.


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_tables_move_with_the_module_around_them(dtype):
    module = nn.ModuleDict({"schedule": Linear()}).to("meta", dtype)
    assert {b.device.type for b in module.buffers()} == {"meta"}
    assert {b.dtype for b in module.buffers()} == {torch.float32}
    t = torch.ones(2, dtype=torch.int64, device="meta")
    level = module["schedule"].level(t, like=torch.zeros(2, 1, device="meta"))
    assert level.alpha.device.type == "meta"


def test_tables_are_not_in_the_checkpoint():
    schedule = Linear()
    assert schedule.state_dict() == {}
    assert list(schedule.parameters()) == []


# ---- Noise at the end -----------------------------------------------------------------------
# The linear end points of 1000 levels are kept at T = 200 or 300: x_T is a third, a fifth data.


@pytest.mark.parametrize(("T", "left"), [(200, 0.364), (300, 0.219)])
def test_linear_ends_in_noise_at_200_and_300_levels(T, left):
    broken = np.sqrt(np.prod(1 - np.linspace(1e-4, 0.02, T)))
    assert broken == pytest.approx(left, abs=5e-4)
    expected = np.sqrt(np.prod(1 - np.linspace(0.1 / T, 20 / T, T)))
    assert expected < 0.0066
    assert float(Linear(T).alpha[-1]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("T", [21, 100, 200, 300, 1000, 4000])
def test_linear_ends_in_noise_at_every_number_of_levels(T):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedule = Linear(T)
    assert float(schedule.alpha[-1] / schedule.sigma[-1]) < 0.01


@pytest.mark.parametrize("T", [200, 300])
def test_a_schedule_that_does_not_end_in_noise_warns_with_the_number(T):
    alpha_bar = np.prod(1 - np.linspace(1e-4, 0.02, T))
    ratio = np.sqrt(alpha_bar / (1 - alpha_bar))
    with pytest.warns(UserWarning, match=f"x_T is not noise.* = {ratio:.3g} "):
        Linear(T, rescale=False)


@pytest.mark.parametrize(("T", "largest_beta"), [(10, "2"), (20, "1")])
def test_linear_with_too_few_levels_is_an_error_that_names_the_largest_beta(T, largest_beta):
    with pytest.raises(InputError, match=rf"to {largest_beta} do not rise"):
        Linear(T)


# ---- Formulas of the schedules --------------------------------------------------------------
# Quadratic squares its betas twice; cosine clips them to [1e-4, 0.9999], the paper to 0.999 above.


def test_linear_has_the_papers_first_and_last_alpha_bar():
    alpha_bar = Linear().alpha ** 2
    assert float(alpha_bar[1]) == pytest.approx(0.9999, abs=1e-12)
    assert float(alpha_bar[1000]) == pytest.approx(4.0358e-5, rel=1e-5)


def test_quadratic_squares_its_betas_once():
    roots = np.linspace(1e-4**0.5, 0.02**0.5, 1000)
    broken = np.sqrt(np.prod(1 - (roots**2) ** 2))
    assert broken == pytest.approx(0.958, abs=5e-4)  # x_T is almost clean data
    schedule = schedules.Quadratic()
    alpha_bar = schedule.alpha**2
    assert float(alpha_bar[1]) == pytest.approx(0.9999, abs=1e-12)
    assert float(alpha_bar[1000] / alpha_bar[999]) == pytest.approx(0.98, abs=1e-12)
    assert float(schedule.alpha[-1]) == pytest.approx(0.02708, abs=1e-5)
    np.testing.assert_allclose(schedule.alpha[1:], np.sqrt(np.cumprod(1 - roots**2)), rtol=1e-9)


def paper_cosine(T):
    """Betas of improved DDPM eq. 17 before any cap; the last one is 1."""
    f = np.cos((np.arange(T + 1) / T + 0.008) / 1.008 * np.pi / 2) ** 2
    return 1 - f[1:] / f[:-1]


def test_cosine_has_no_floor_under_its_first_betas():
    exact = paper_cosine(1000)
    broken = np.clip(exact, 1e-4, 0.9999)
    assert (broken[:13] > exact[:13]).all()
    ours = 1 - (Cosine().alpha[1:14] / Cosine().alpha[:13]).numpy() ** 2
    np.testing.assert_allclose(ours, exact[:13], rtol=1e-9)
    assert ours[0] == pytest.approx(4.128e-5, rel=1e-3)


def test_cosine_is_capped_at_0999_from_above():
    exact = paper_cosine(1000)
    broken = np.prod(1 - np.clip(exact, 1e-4, 0.9999))
    expected = np.prod(1 - np.minimum(exact, 0.999))
    assert broken < 0.11 * expected
    assert float(Cosine().alpha[-1]) ** 2 == pytest.approx(expected, rel=1e-9)


# ---- Digits ---------------------------------------------------------------------------------
# Tables are derived in float32 or cast to bf16: beta_tilde_3 is off by 1.6e-4, 1 − alpha_bar is 0.


def test_beta_tilde_keeps_its_digits_at_every_level():
    expected = BETA[1:] * VARIANCE[:-1] / VARIANCE[1:]  # DDPM eq. 7
    betas = torch.linspace(1e-4, 0.02, 1000)
    alpha_bar = torch.cumprod(1 - betas, 0)
    before = torch.cat([torch.ones(1), alpha_bar[:-1]])
    broken = betas * (1 - before) / (1 - alpha_bar)
    assert abs(float(broken[2]) / expected[2] - 1) == pytest.approx(1.6e-4, rel=0.01)
    t = torch.arange(1, 1001)
    single = posterior(*pair(Linear(), t - 1, t)).variance
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single, expected, rtol=1e-6)
    double = [posterior(*pair(Linear(), k - 1, k)).variance for k in range(1, 1001)]
    np.testing.assert_allclose(double, expected, rtol=1e-12)


@pytest.mark.parametrize("cast", [nn.Module.half, nn.Module.bfloat16, nn.Module.double])
def test_casting_the_module_around_them_leaves_the_tables_alone(cast):
    module = nn.ModuleDict({"schedule": Linear(), "layer": nn.Linear(1, 1)})
    assert cast(module)["layer"].weight.dtype != torch.float32
    t, one = torch.arange(1001), torch.ones(1001, 1)
    noise = module["schedule"].add_noise(0 * one, t, one)
    data = module["schedule"].add_noise(one, t, 0 * one)
    np.testing.assert_allclose(noise.flatten(), SIGMA, rtol=1e-6)
    np.testing.assert_allclose(data.flatten(), ALPHA, rtol=1e-6)


def test_half_precision_data_is_noised_and_denoised_in_float32():
    t, x0 = torch.arange(1, 11), normal(10, 3).bfloat16()
    eps = normal(10, 3, seed=1).bfloat16()
    x_t = Linear().add_noise(x0, t, eps)
    alpha, sigma = ALPHA[1:11, None], SIGMA[1:11, None]
    expected = alpha * x0.double().numpy() + sigma * eps.double().numpy()
    np.testing.assert_allclose(x_t, expected, rtol=0, atol=1e-6)
    prediction = Denoiser(Says(eps), Linear(), Eps())(x_t, t)
    np.testing.assert_allclose(prediction.x0, x0.float(), rtol=0, atol=1e-6)


# ---- Levels of a sampler with few steps -----------------------------------------------------
# Pairs end in (0, 0) or before the data, begin at T/2, are more than asked, or 1 step crashes.


@EVERY_SPACING
def test_as_many_steps_as_asked_fall_from_T_to_0(spacing):
    # range(0, 1000, 1000 // 300) has 334 levels; evenly from 0 to T − 1 divides by S − 1 = 0.
    for steps in range(1, 101):
        levels = spacing(Linear(100), steps)
        assert (len(levels) - 1, levels[0], levels[-1]) == (steps, 100, 0)
        assert all(t > s for t, s in pairwise(levels))
    assert spacing(Linear(), None) == spacing(Linear(), 1000) == list(range(1000, -1, -1))


@EVERY_SAMPLER
def test_the_last_step_ends_at_the_data_and_not_at_the_first_noise_level(make):
    T, point, x_T = 25, normal(1, 3), normal(2, 3, seed=1)  # not at alphas_cumprod[0]
    denoiser = Denoiser(ExactEps(point, T), Linear(T), Eps())
    for steps in (1, 2, 3, 8, 24, 25):
        x0 = make(steps)(denoiser, x_T, noise=keyed)
        np.testing.assert_allclose(x0, point.expand(2, 3), atol=1e-10)


# ---- Clipping -------------------------------------------------------------------------------
# x0 is clipped but the step takes the network's eps; x0 is clipped and the result dropped.


def test_eps_follows_x0_after_clipping():
    x_t, eps = 3 * normal(3, 2, 4), normal(3, 2, 4, seed=1)
    t = torch.tensor([1, 200, 1000])
    alpha, sigma = (table[t].reshape(3, 1, 1) for table in (ALPHA, SIGMA))
    x0 = np.clip((x_t.numpy() - sigma * eps.numpy()) / alpha, -0.25, 0.5)
    broken = alpha * x0 + sigma * eps.numpy()
    assert np.abs(broken - x_t.numpy()).max() > 1
    clipped = Denoiser(Says(eps), Linear(), Eps())(x_t, t).clip((-0.25, 0.5))
    np.testing.assert_allclose(clipped.x0, x0, rtol=1e-12)
    np.testing.assert_allclose(alpha * x0 + sigma * clipped.eps.numpy(), x_t, atol=1e-12)


def test_a_step_of_ddim_takes_the_eps_that_belongs_to_the_clipped_x0():
    x_T, eps = normal(2, 4), normal(2, 4, seed=1)
    x0 = np.clip((x_T.numpy() - SIGMA[1000] * eps.numpy()) / ALPHA[1000], -1, 1)
    broken = ALPHA[500] * x0 + SIGMA[500] * eps.numpy()
    recomputed = (x_T.numpy() - ALPHA[1000] * x0) / SIGMA[1000]
    expected = ALPHA[500] * x0 + SIGMA[500] * recomputed
    assert np.abs(broken - expected).max() > 0.5
    denoiser = Denoiser(Says(eps), Linear(), Eps())
    states = list(DDIM(2, clip=(-1, 1)).trajectory(denoiser, x_T))
    np.testing.assert_allclose(states[1].x_t, expected, rtol=1e-9)


def test_a_step_of_ddpm_takes_the_clipped_x0():
    x_T, eps = normal(2, 4), normal(2, 4, seed=1)
    x0 = (x_T.numpy() - SIGMA[1000] * eps.numpy()) / ALPHA[1000]
    ratio = ALPHA_BAR[1000] / ALPHA_BAR[500]
    of_x0 = ALPHA[500] * (1 - ratio) / VARIANCE[1000]
    of_x_t = np.sqrt(ratio) * VARIANCE[500] / VARIANCE[1000]
    broken, expected = (of_x0 * x + of_x_t * x_T.numpy() for x in (x0, np.clip(x0, -1, 1)))
    assert np.abs(broken - expected).max() > 10
    denoiser = Denoiser(Says(eps), Linear(), Eps())
    states = DDPM(2, clip=(-1, 1)).trajectory(denoiser, x_T, noise=lambda *_: 0 * x_T)
    np.testing.assert_allclose(list(states)[1].x_t, expected, rtol=1e-9)


# ---- Variance of the reverse step -----------------------------------------------------------
# Noise in the last step; a log-variance for a variance; beta_t where levels are skipped; batch 1.


@pytest.mark.parametrize(
    ("sampler", "variance"),
    [(DDPM(), FixedSmall()), (DDPM(), FixedLarge()), (DDIM(None, 1.0), FixedSmall())],
)
@pytest.mark.parametrize("t", [1, 9])
def test_the_last_step_adds_no_noise(sampler, variance, t):
    point = normal(1, 3)
    denoiser = Denoiser(ExactEps(point, 1000), Linear(), Eps(), variance)
    x_t = ALPHA[t] * point + SIGMA[t] * normal(2, 3)
    x0 = sampler.step(denoiser(x_t, t), 0, lambda: normal(2, 3, seed=1))
    np.testing.assert_allclose(x0, point.expand(2, 3), atol=1e-10)


def test_a_learned_log_variance_is_an_exponent_of_the_steps_variance():
    v = np.array([[-1.0], [0.0], [1.0]])
    beta, beta_tilde = BETA[500], BETA[500] * VARIANCE[499] / VARIANCE[500]
    log_variance = (v + 1) / 2 * np.log(beta) + (1 - v) / 2 * np.log(beta_tilde)
    expected = np.exp(log_variance / 2)
    output = torch.cat([normal(3, 1), torch.from_numpy(v)], dim=1)
    prediction = Denoiser(Says(output), Linear(), Eps(), LearnedRange())(normal(3, 1), 500)
    steps = [DDPM().step(prediction, 499, lambda z=z: z * torch.ones(3, 1)) for z in (0, 1)]
    np.testing.assert_allclose(steps[1] - steps[0], expected, rtol=1e-9)


PAIRS = [(0, 1), (1, 2), (499, 500), (999, 1000), (0, 1000), (1, 1000), (400, 700)]


@pytest.mark.parametrize(("s", "t"), PAIRS)
def test_the_fixed_variances_are_those_of_all_levels_skipped(s, t):
    beta = -np.expm1(np.log1p(-BETA[s + 1 : t + 1]).sum())  # 1 − alpha_bar_t/alpha_bar_s
    if t - s > 1:
        assert BETA[t] < 0.05 * beta  # the beta of one step is far too small
    for variance, expected in (
        (FixedLarge(), beta),
        (FixedSmall(), beta * VARIANCE[s] / VARIANCE[t]),
    ):
        prediction = Denoiser(Says(normal(1, 1)), Linear(), Eps(), variance)(normal(1, 1), t)
        assert prediction.variance(s) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("sampler", [DDPM, partial(DDIM, eta=1.0)], ids=["DDPM", "DDIM(eta=1)"])
@pytest.mark.parametrize("levels", [range(100, -1, -1), [100, 81, 49, 16, 1, 0], [100, 0]])
def test_ancestral_sampling_is_the_papers_algorithm_on_all_levels_and_on_some(sampler, levels):
    _, alpha_bar, variance = linear_tables(100)
    x_T = normal(2, 3)
    expected = x_T.numpy()
    for i, (t, s) in enumerate(pairwise(levels), start=1):
        ratio = alpha_bar[t] / alpha_bar[s]
        eps = np.sin(2 * expected + (t - 1) / 300)
        mean = (expected - (1 - ratio) / np.sqrt(variance[t]) * eps) / np.sqrt(ratio)  # eq. 11
        std = np.sqrt((1 - ratio) * variance[s] / variance[t])
        expected = mean + std * keyed(i, (3,)).numpy()
    ours = sampler(None, spacing=Levels(levels))
    x0 = ours(Denoiser(Waves(), Linear(100), Eps()), x_T, noise=keyed)
    np.testing.assert_allclose(x0, expected, rtol=1e-8, atol=1e-9)


def test_each_row_of_a_batch_is_denoised_at_its_own_level():
    # As wide as the batch is large: coefficients [B] meet [B, C, H, W] without complaint.
    t, x_t, eps = torch.tensor([1, 300, 700, 1000]), normal(4, 2, 4, 4), normal(4, 2, 4, 4, seed=1)
    broken = (x_t.numpy() - SIGMA[t] * eps.numpy()) / ALPHA[t]
    expected = [(x_t[i] - SIGMA[k] * eps[i]) / ALPHA[k] for i, k in enumerate(t)]
    assert np.abs(broken - np.stack(expected)).max() > 1
    x0 = Denoiser(Says(eps), Linear(), Eps())(x_t, t).x0
    np.testing.assert_allclose(x0, np.stack(expected), rtol=1e-9)


def test_each_row_of_a_batch_gets_noise_of_its_own():
    x_T = torch.zeros(4000, 1, dtype=torch.float64)  # the same for all rows
    std = np.sqrt((1 - ALPHA_BAR[1000] / ALPHA_BAR[500]) * VARIANCE[500] / VARIANCE[1000])
    torch.manual_seed(0)
    states = list(DDPM(2).trajectory(Denoiser(Says(x_T), Linear(), Eps()), x_T))
    # The standard deviation of 4,000 normal numbers is known to 1.1 %.
    assert float(states[1].x_t.std()) == pytest.approx(std, rel=0.05)


# ---- The last cosine level ------------------------------------------------------------------
# Cosine without its cap has alpha_T = 0; with it, an error of eps still grows 20,291-fold in x0.


def test_an_error_of_eps_at_the_last_cosine_level_grows_20291_fold_and_no_more():
    schedule, x_t = Cosine(), normal(1, 1)
    a, b = (Denoiser(Says(x_t + e), schedule, Eps())(x_t, 1000).x0 for e in (0, 1))
    assert float(a - b) == pytest.approx(20_291, abs=1)
    a, b = (Denoiser(Says(x_t + e), Linear(), Eps())(x_t, 1000).x0 for e in (0, 1))
    assert float(a - b) == pytest.approx(157.4, abs=0.1)


@pytest.mark.parametrize(
    "parameterization",
    [Eps(), X0(), V(), PosteriorMean(), Velocity(), EDMPreconditioning()],
    ids=named,
)
def test_float32_predictions_are_finite_at_every_cosine_level_and_clip_into_range(
    parameterization,
):
    x_t = normal(1000, 2).float()
    prediction = Denoiser(Says(-x_t), Cosine(), parameterization)(x_t, torch.arange(1, 1001))
    assert prediction.x0.isfinite().all()
    assert prediction.eps.isfinite().all()
    assert prediction.clip((-1, 1)).x0.abs().max() <= 1
    assert prediction.clip((-1, 1)).eps.isfinite().all()


# ---- Zero terminal SNR ----------------------------------------------------------------------
# The noise is predicted where alpha_T = 0: x0 is a division by zero, noticed when sampling.


def test_eps_is_refused_at_zero_terminal_snr_with_the_fix_in_the_message():
    with pytest.raises(InputError, match="use V or X0"):
        Denoiser(Says(torch.zeros(1)), ZeroTerminalSNR(Linear(100)), Eps())


def test_v_is_minus_the_data_at_zero_terminal_snr():
    x0, x_T = normal(2, 3), normal(2, 3, seed=1)
    ours = Denoiser(Says(-x0), ZeroTerminalSNR(Linear(100)), V())(x_T, 100).x0
    np.testing.assert_allclose(ours, x0, rtol=1e-12)


# ---- Min-SNR --------------------------------------------------------------------------------
# The smaller of SNR and gamma is written as the larger; branches for eps, x0 and v disagree.


def test_min_snr_is_the_smaller_of_snr_and_gamma():
    t = np.array([1, 100, 1000])
    snr = ALPHA_BAR[t] / VARIANCE[t]
    broken = np.maximum(snr, 3)
    expected = np.minimum(snr, 3)
    assert (broken != expected).all()
    weight = MinSNR(gamma=3.0)(Linear().level(torch.from_numpy(t)), 1.0)
    np.testing.assert_allclose(weight, expected, rtol=1e-6)


def test_min_snr_gives_eps_x0_and_v_the_same_weighted_error_of_x0():
    t = torch.tensor([1, 100, 500, 1000])
    alpha, sigma = ALPHA[t][:, None], SIGMA[t][:, None]
    snr = (alpha / sigma) ** 2
    x0, eps, error = (normal(4, 6, seed=k).numpy() for k in range(3))
    x_t, x0_hat = alpha * x0 + sigma * eps, x0 + 0.1 * error
    eps_hat = (x_t - alpha * x0_hat) / sigma
    # What each network is to predict, what it says, and its branch of the weight.
    branches = {
        Eps: (eps, eps_hat, np.minimum(snr, 5) / snr),
        X0: (x0, x0_hat, np.minimum(snr, 5)),
        V: (
            alpha * eps - sigma * x0,
            alpha * eps_hat - sigma * x0_hat,
            np.minimum(snr, 5) / snr,  # copied from eps; it takes SNR + 1
        ),
    }
    expected = (np.minimum(snr, 5) * (0.1 * error) ** 2).mean(1)
    batch = NoisedBatch(*(torch.from_numpy(a) for a in (x0, eps)), t, torch.from_numpy(x_t))
    for parameterization, (target, output, weight) in branches.items():
        broken = (weight * (output - target) ** 2).mean(1)
        assert np.allclose(broken, expected) == (parameterization is not V)
        denoiser = Denoiser(Says(torch.from_numpy(output)), Linear(), parameterization())
        loss = MSE(MinSNR())(denoiser, batch)["loss"]
        np.testing.assert_allclose(loss, expected, rtol=1e-6)


# ---- Guidance -------------------------------------------------------------------------------
# Labels dropped a batch at a time, and in validation; 0 is conditional; w for 1 + w; 3 channels.


def labels_seen_by_the_objective(module):
    """A list that fills with the labels of every batch that the module scores."""
    seen, objective = [], module.objective

    def recording(denoiser, batch):
        seen.append(batch.condition.label)
        return objective(denoiser, batch)

    module.objective = recording
    return seen


def test_labels_are_dropped_row_by_row_at_the_asked_rate(tmp_path):
    module = tiny_module(conditional=True, label_dropout=LabelDropout(0.3))
    seen = labels_seen_by_the_objective(module)
    trainer(tmp_path, 5).fit(module, tiny_data(global_batch_size=200, subset=1.0))
    dropped = torch.stack(seen) == -1  # [5, 200]
    # Not "if random() < 0.3: y = None", which drops whole batches.
    # The standard deviation of a share of 0.3 is 0.0145 in 1,000 rows and 0.032 in 200.
    assert abs(dropped.float().mean() - 0.3) < 4 * 0.0145
    assert (dropped.float().mean(1) - 0.3).abs().max() < 4 * 0.032


def test_no_label_is_dropped_in_validation(tmp_path):
    module = tiny_module(conditional=True, label_dropout=LabelDropout(0.9))
    seen = labels_seen_by_the_objective(module)
    run = trainer(tmp_path, 1, limit_val_batches=None)
    run.validate(module, tiny_data(global_batch_size=50), verbose=False)
    assert (torch.cat(seen) >= 0).all()


def test_the_null_label_is_learned():
    # Labels times a mask of 0 and 1 would teach the first class to be no class.
    module = tiny_module(conditional=True)
    for parameter in module.net.parameters():
        nn.init.normal_(parameter, std=0.1)
    x = torch.randn(4, 1, 8, 8)
    module.denoiser("raw")(x, 500, labels(-1, -1, -1, -1)).x0.sum().backward()
    (embedding,) = [m for m in module.net.modules() if isinstance(m, nn.Embedding)]
    assert embedding.weight.grad.abs().sum(1).nonzero().flatten().tolist() == [10]


X_T = normal(2, 5, 3)
COND, NULL = np.tanh(X_T.numpy() + np.array([[[0]], [[2]]])), np.tanh(X_T.numpy() - 1)
"""What the network Labelled says about five channels, with the labels and without."""


def guided_eps(scale):
    return guide(Denoiser(Labelled(), Linear(), Eps()), scale)(X_T, 500, labels(0, 2)).eps


def test_guidance_0_is_unconditional_and_1_conditional():
    np.testing.assert_allclose(guided_eps(0.0), NULL, rtol=1e-9)
    np.testing.assert_allclose(guided_eps(1.0), COND, rtol=1e-9)


def test_a_guidance_scale_is_the_papers_one_plus_w_in_all_channels():
    w = 2.0
    expected = (1 + w) * COND - w * NULL  # Ho & Salimans 2022, eq. 6
    np.testing.assert_allclose(guided_eps(1 + w), expected, rtol=1e-9)


# ---- Likelihood -----------------------------------------------------------------------------
# The bound is off by a factor (T, ln 2), lacks its decoder term, or is infinite with beta_tilde_1.


@pytest.mark.parametrize(
    "schedule",
    [SohlDickstein(), Linear(50), Cosine(30), ZeroTerminalSNR(Linear(50))],
    ids=named,
)
def test_the_bound_is_the_entropy_of_standard_normal_data(schedule):
    # x_T is exactly the prior, v = 0 exactly right and every reverse step Gaussian with the
    # variance that follows from Var[x0 | x_t] = sigma_t²: the bound is tight.
    T, levels = schedule.T, torch.arange(1, schedule.T + 1)
    variance = AnalyticVariance((schedule.sigma**2).tolist())
    denoiser = Denoiser(Says(torch.zeros(4 * T, 1)), schedule, V(), variance)
    # ±1 has the moments of the normal distribution that terms quadratic in x0 and eps ask for.
    corners = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    x0, eps = corners.repeat_interleave(T, dim=0).split(1, dim=1)
    t = levels.repeat(4)
    batch = NoisedBatch(x0, eps, t, schedule.add_noise(x0, t, eps))
    each = VariationalBound(GaussianDecoder())(denoiser, batch)["loss"].view(4, T).mean(0) / T
    prior = float(prior_term(schedule, x0, GaussianDecoder()).mean())
    entropy = 0.5 * np.log(2 * np.pi * np.e)
    assert abs(float(each[1:].sum()) + prior - entropy) > 0.1  # without the decoder
    assert abs(float(each.mean()) + prior - entropy) > 0.1  # T times too small
    assert float(each.sum()) + prior == pytest.approx(entropy, rel=1e-9)


def test_the_first_term_of_8_bit_data_is_the_mass_of_its_bin_in_bits():
    std = np.sqrt(BETA[2] * VARIANCE[1] / VARIANCE[2])  # beta_tilde_1 = 0 gives no density
    grey = 2 * 100 / 255 - 1
    edges = stats.norm(grey + 0.003, std).cdf([grey - 1 / 255, grey + 1 / 255])
    expected = -np.log2(edges[1] - edges[0])
    x0 = torch.full((1, 2, 3), grey, dtype=torch.float64)  # the mean over dimensions, not the sum
    denoiser = Denoiser(Says(x0 + 0.003), Linear(), X0())
    batch = NoisedBatch(x0, 0 * x0, torch.tensor([1]), x0)
    ours = VariationalBound()(denoiser, batch)["loss"] / 1000
    assert float(ours) == pytest.approx(expected, rel=1e-9)


# ---- The network's state --------------------------------------------------------------------
# Dropout is active while sampling or off ever after; shortcuts start with a variance of 1e-10.


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_dropout_is_off_while_sampling(guidance):
    torch.manual_seed(0)
    module = tiny_module(conditional=True, net=partial(TinyUNet, dropout=0.5))
    for parameter in module.net.parameters():
        nn.init.normal_(parameter, std=0.1)
    x = torch.randn(2, 1, 8, 8)
    assert not torch.equal(*(module.net(x, torch.zeros(2), labels(0, 1)) for _ in range(2)))
    ours = [module.sample(2, DDIM(3), [0, 1], guidance, weights="raw") for _ in range(2)]
    assert torch.equal(*ours)


def test_training_goes_on_with_dropout_after_sampling():
    module = tiny_module()
    module.sample(1, DDIM(1), weights="raw")
    assert all(m.training for m in module.net.modules() if isinstance(m, nn.Dropout))


def test_shortcuts_start_at_full_strength():
    torch.manual_seed(0)
    x = torch.randn(8, 64, 16, 16)
    out = ResidualBlock(64, 128, embedding=8, groups=4)(x, torch.randn(8, 8))
    # Glorot: weights of variance 2/(64 + 128), so 64 inputs of variance 1 add up to 2/3.
    assert out.std().item() == pytest.approx(np.sqrt(2 / 3), rel=0.05)


# ---- Shapes ---------------------------------------------------------------------------------
# Output fixed at 3 channels, which broadcasts in the loss; groups that do not divide; odd sizes.


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_network_answers_with_the_channels_of_the_data(channels):
    x0 = torch.zeros(2, channels, 8, 8)
    module = tiny_module(data=image_spec(channels))
    assert module.net(x0, torch.zeros(2)).shape == x0.shape


class TwoChannels(Network):
    def __init__(self):
        super().__init__()

    def forward(self, x, c_noise, condition=Condition()):
        return torch.cat([x, x], dim=1)


def test_network_with_the_wrong_number_of_channels_is_refused_instead_of_broadcast():
    denoiser = Denoiser(TwoChannels(), Linear(), X0())
    with pytest.raises(InputError, match=r"gives 2 channels.*needs 1"):
        denoiser(torch.zeros(3, 1, 4, 4), 5)


def test_groups_that_do_not_divide_28_channels_are_refused_with_ones_that_do():
    small = partial(UNet, image_spec(), 1, multipliers=[1, 2], blocks=1)
    with pytest.raises(InputError, match="set groups=7 or channels=32"):
        small(channels=28, groups=8)
    for channels, groups in ((28, 7), (32, 8)):
        net = small(channels=channels, groups=groups)
        assert net(torch.zeros(1, 1, 8, 8), torch.zeros(1)).shape == (1, 1, 8, 8)


@torch.no_grad()
@pytest.mark.parametrize(
    ("shape", "levels"),
    [((1, 28, 28), 3), ((3, 32, 32), 4), ((4, 16, 16), 2), ((3, 8, 24), 3), ((3, 7, 5), 1)],
)
def test_any_size_that_the_levels_can_halve_fits(shape, levels):
    channels, multipliers = shape[0], [1, 2, 2, 3][:levels]
    data = DataSpec(shape)
    net = TinyUNet(data, 2 * channels, multipliers=multipliers, attention_levels=[0])
    output = net(torch.zeros(2, *shape), torch.zeros(2))
    assert output.shape == (2, 2 * channels, *shape[1:])


def test_a_size_that_the_levels_cannot_halve_is_refused_when_built_with_sizes_that_fit():
    net = partial(TinyUNet, multipliers=[1, 1, 1, 1])
    with pytest.raises(InputError, match="24×24 or 32×32"):
        tiny_module(data=DataSpec((1, 28, 28)), net=net)
