"""Continuous time: schedules between their levels, and training at real times."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from ddpm_lightning import DiffusionModule
from ddpm_lightning.batch import Condition
from ddpm_lightning.callbacks import LossByTimestep
from ddpm_lightning.diffusion import (
    MSE,
    VE,
    VLB,
    VP,
    AnalyticVariance,
    Cosine,
    Denoiser,
    Eps,
    FixedLarge,
    FixedSmall,
    GaussianDecoder,
    Hybrid,
    Karras,
    LearnedDiagonal,
    LearnedRange,
    Linear,
    MeanShift,
    NoisedBatch,
    PosteriorMean,
    RealTimes,
    Sigmoid,
    SohlDickstein,
    Straight,
    Stratified,
    V,
    VariationalBound,
    Velocity,
    ZeroTerminalSNR,
    guide,
)
from ddpm_lightning.diffusion.guidance import Guidance
from ddpm_lightning.diffusion.oracles import Gaussian, Mixture
from ddpm_lightning.diffusion.posterior import posterior
from ddpm_lightning.errors import InputError
from ddpm_lightning.networks import Network
from ddpm_lightning.randomness import BatchNoise, IndexedNoise
from tests.core import named, normal
from tests.small import fit, tiny_module

CLOSED = [VP(), VE(), Cosine(), Straight(), Karras()]
SCHEDULES = [
    *CLOSED,
    *(VP(7, 1, 30), VE(9, 0.1, 20), Cosine(50, max_beta=0.3), Karras(40)),
    *(Linear(), Sigmoid(), SohlDickstein(), ZeroTerminalSNR(Linear(100))),
]
FLOAT64 = torch.zeros(1, dtype=torch.float64)


def values(level):
    return torch.stack([torch.as_tensor(v) for v in (level.alpha, level.sigma)])


# Schedules between their levels


@pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
def test_a_real_time_that_is_whole_is_the_level(schedule):
    t = torch.arange(1, schedule.T + 1)
    levels, times = schedule.level(t, like=FLOAT64), schedule.level(t.double(), like=FLOAT64)
    torch.testing.assert_close(values(times), values(levels), rtol=1e-11, atol=1e-16)
    middle = schedule.T // 2
    number = schedule.level(float(middle))
    np.testing.assert_allclose(values(number), values(schedule.level(middle)), rtol=1e-11)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
def test_signal_to_noise_falls_between_the_levels_too(schedule):
    t = torch.linspace(0, schedule.T, 20 * schedule.T + 1, dtype=torch.float64)[1:]
    if isinstance(schedule, Cosine) and schedule.is_closed:
        t = t[t < schedule.T - 0.9]  # eq. 17 ends in alpha = 0 and is floored at alpha_T
    angle = schedule.level(t, like=FLOAT64).angle
    assert bool((angle[1:] > angle[:-1]).all())
    assert 0 < angle[0] < angle[-1] <= math.pi / 2


@pytest.mark.parametrize("schedule", [*CLOSED, Linear()], ids=named)
def test_the_time_of_an_angle_is_found_again(schedule):
    t = torch.tensor([0.3, 1.0, 77.7, 500.0, 998.5], dtype=torch.float64)
    angle = schedule.level(t, like=FLOAT64).angle
    torch.testing.assert_close(schedule.time_at(angle), t, rtol=0, atol=1e-9)


def test_vp_is_the_exponential_of_the_integral_of_beta():
    for u in (0.001, 0.3, 1.0):
        integral, _ = integrate.quad(lambda v: 0.1 + 19.9 * v, 0, u)
        level = VP().level(1000 * u)
        assert level.alpha == pytest.approx(math.exp(-integral / 2), rel=1e-12)
        assert level.sigma**2 == pytest.approx(-math.expm1(-integral), rel=1e-12)


def test_vp_is_the_limit_of_linear_for_many_levels():
    differences = [
        abs(Linear(T).alpha[T // 2] - VP(T).alpha[T // 2]).item() for T in (1000, 2000, 4000)
    ]
    rates = np.divide(differences[:-1], differences[1:])
    assert differences[0] < 2e-3
    np.testing.assert_allclose(rates, 2, rtol=0.02)


def test_ve_is_geometric_between_its_ends_and_keeps_the_data():
    schedule = VE(1000, 0.01, 50)
    assert [schedule.level(t).sigma for t in (500.0, 1000.0)] == pytest.approx([0.5**0.5, 50])
    assert schedule.level(1e-6).sigma == pytest.approx(0.01)
    assert set(schedule.alpha.tolist()) == {1.0}


def test_cosine_follows_the_papers_formula():
    def f(u):
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    for t in (0.01, 3.3, 512.7, 998.9):
        level = Cosine().level(t)
        assert level.alpha**2 == pytest.approx(f(t / 1000) / f(0), rel=1e-12)
        assert level.alpha**2 + level.sigma**2 == pytest.approx(1, rel=1e-12)


def test_float32_levels_of_real_times_carry_the_rest_of_the_log_snr():
    t = torch.tensor([1.25, 400.5, 400.5625])
    narrow, wide = Cosine().level(t, torch.zeros(3)), Cosine().level(t, FLOAT64)
    assert narrow.alpha.dtype == torch.float32
    total = narrow.log_snr.double() + narrow.log_snr_rest.double()
    torch.testing.assert_close(total, wide.log_snr, rtol=1e-13, atol=0)


def test_two_real_times_have_the_posterior_of_their_gaussians():
    s, t = VP().level(199.5), VP().level(700.25)
    q = posterior(s, t)
    kept = t.alpha / s.alpha
    variance = t.sigma**2 - kept**2 * s.sigma**2
    assert q.variance == pytest.approx(s.sigma**2 * variance / t.sigma**2)
    assert q.x_t == pytest.approx(kept * s.sigma**2 / t.sigma**2)


# Denoisers at real times


def test_oracles_know_every_row_at_its_own_real_time():
    means, variances = normal(3, 4), torch.tensor([0.1, 0.2, 0.4])
    for oracle in (
        Mixture(VP(), means, variances),
        Gaussian(VP(), means[0], torch.diag(variances[[0, 1, 2, 0]])),
    ):
        x, t = normal(5, 4, seed=1), torch.tensor([0.5, 3.25, 200.1, 700.0, 999.9])
        together, density = oracle(x, t).x0, oracle.log_density(x, t)
        for i, each in enumerate(t.tolist()):
            row = x[i : i + 1]
            torch.testing.assert_close(together[i], oracle(row, each).x0[0], rtol=1e-6, atol=0)
            alone = oracle.log_density(row, each)[0]
            torch.testing.assert_close(density[i], alone, rtol=1e-6, atol=0)


class Times(Network):
    """Returns its noise coordinate everywhere."""

    def forward(self, x, c_noise, condition=None):
        return c_noise.view(-1, *[1] * (x.ndim - 1)).expand(x.shape)


def test_the_network_is_given_t_minus_1_whole_or_real():
    denoiser = Denoiser(Times(), VP(), V())
    for t in (7, 7.0, 7.25, torch.tensor([1.5, 900.0])):
        output = denoiser(torch.zeros(2, 1), t).output[:, 0]
        torch.testing.assert_close(output, (torch.as_tensor(t) - 1.0).float().expand(2))


@pytest.mark.parametrize("t", [0.0, -1.0, 1000.5])
def test_a_number_outside_the_times_is_refused(t):
    with pytest.raises(InputError, match="give one above 0, up to 1000"):
        Denoiser(Times(), VP(), V())(torch.zeros(2, 1), t)


def test_guidance_acts_within_its_interval_at_real_times():
    oracle = Mixture(
        VP(), torch.tensor([[-1.0], [1.0]]), torch.tensor([0.1, 0.1]), labels=torch.arange(2)
    )
    guided = guide(oracle, Guidance(3.0, interval=(0.2, 0.6)))
    x, label = normal(3, 1), Condition(torch.tensor([0, 1, 0]))
    t = torch.tensor([100.5, 400.5, 800.5])
    plain, strong = oracle(x, t, label).x0, guide(oracle, 3.0)(x, t, label).x0
    torch.testing.assert_close(
        guided(x, t, label).x0, torch.stack([plain[0], strong[1], plain[2]])
    )


# Training


def test_times_are_uniform_above_the_smallest():
    noise = IndexedNoise(0, torch.arange(20_000))
    drawn = RealTimes(0.1)(Linear(), noise)
    assert drawn.t.is_floating_point()
    assert stats.kstest(drawn.t.numpy() / 1000, stats.uniform(0.1, 0.9).cdf).pvalue > 1e-3
    assert bool((drawn.weight == 1).all())


def test_stratified_times_leave_no_gap_of_two_parts():
    noise = BatchNoise(0, 3, torch.arange(64), 64)
    t = Stratified(RealTimes())(VP(), noise).t.sort().values / 1000
    assert float(t.diff().max()) < 2 / 64


def noised(schedule, t):
    x0, eps = normal(len(t), 2), normal(len(t), 2, seed=1)
    return NoisedBatch(x0, eps, t, schedule.add_noise(x0, t, eps))


@pytest.mark.parametrize("parameterization", [Eps(), V(), Velocity()], ids=named)
def test_the_loss_at_whole_real_times_is_that_at_levels(parameterization):
    t = torch.tensor([1, 30, 999])
    denoiser = Denoiser(Times(), VP(), parameterization)
    at_levels, at_times = (MSE()(denoiser, noised(VP(), one))["loss"] for one in (t, t.double()))
    torch.testing.assert_close(at_times, at_levels)


@pytest.mark.parametrize(
    ("parameterization", "variance", "objective"),
    [
        (PosteriorMean(), FixedSmall(), MSE()),
        (MeanShift(), FixedSmall(), MSE()),
        (Eps(), FixedSmall(), MSE(VLB())),
        (Eps(), FixedLarge(), VariationalBound(GaussianDecoder())),
    ],
)
def test_what_needs_the_level_before_is_refused_at_real_times(
    parameterization, variance, objective
):
    denoiser = Denoiser(Times(), VP(), parameterization, variance)
    with pytest.raises(InputError, match=r"--model.timesteps Uniform"):
        objective(denoiser, noised(VP(), torch.tensor([0.5, 20.5])))


def test_a_table_by_level_is_refused_at_real_times():
    oracle = Gaussian(VP(10), torch.zeros(1), torch.eye(1), AnalyticVariance([0.0] + 10 * [0.1]))
    with pytest.raises(InputError, match="no entry for a real time"):
        oracle(torch.zeros(1, 1), torch.tensor([2.5])).variance(1)


def test_a_learned_variance_is_refused_at_real_times():
    level = VP().level(torch.tensor([2.5]), torch.zeros(1, 1))
    with pytest.raises(InputError, match=r"--model.timesteps Uniform"):
        LearnedDiagonal().learned(torch.zeros(1, 1), level.at(1), level)


@pytest.mark.slow
def test_a_run_at_real_times_trains_and_its_checkpoint_keeps_the_settings(tmp_path):
    fit(tmp_path, 3, LossByTimestep(), schedule=VP(50), timesteps=RealTimes(1e-3))
    module = DiffusionModule.load_from_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    assert module.timesteps.describe() == RealTimes(1e-3).describe()
    assert module.schedule.describe() == VP(50).describe()
    assert bool(module.sample(2).isfinite().all())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RealTimes(0), "above 0 and below 1"),
        (lambda: RealTimes(1), "above 0 and below 1"),
        (lambda: VP(beta_min=0), "beta_min"),
        (lambda: VP(beta_min=3, beta_max=2), "beta_max"),
        (lambda: VE(sigma_min=0), "sigma_min"),
        (lambda: VE(sigma_min=2, sigma_max=1), "sigma_max"),
    ],
)
def test_settings_out_of_range_are_refused(make, words):
    with pytest.raises(InputError, match=words):
        make()


@pytest.mark.parametrize(
    ("parts", "setting", "flag"),
    [
        ({"parameterization": PosteriorMean()}, "parameterization PosteriorMean", "param.* Eps"),
        ({"parameterization": MeanShift()}, "parameterization MeanShift", "param.* Eps"),
        ({"objective": MSE(VLB())}, r"objective MSE\(VLB\)", "objective.weighting EpsMSE"),
        ({"objective": Hybrid(), "variance": LearnedRange()}, "objective Hybrid", "objective MSE"),
    ],
)
def test_a_module_that_cannot_train_at_real_times_is_not_built(parts, setting, flag):
    fix = rf"\(--model\.timesteps Uniform\), .*--model\.{flag}$"
    with pytest.raises(InputError, match=rf"^model\.{setting} needs whole levels, .* {fix}"):
        tiny_module(timesteps=RealTimes(), **parts)
