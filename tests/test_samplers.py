"""Samplers: which levels, which formula, which noise; against closed forms and diffusers."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ddpm_lightning.batch import Condition
from ddpm_lightning.diffusion.denoiser import Denoiser
from ddpm_lightning.diffusion.oracles import Empirical, Gaussian, Mixture
from ddpm_lightning.diffusion.parameterizations import X0, EDMPreconditioning, Eps, V
from ddpm_lightning.diffusion.prediction import FixedLarge, FixedSmall
from ddpm_lightning.diffusion.samplers import (
    DDIM,
    DDPM,
    LMS,
    DDIMQuadratic,
    DPMSolverPP,
    DPMSolverPPSDE,
    Euler,
    Heun,
    KarrasSpacing,
    Levels,
    LogSNRSpacing,
    PowerSpacing,
    QuadraticSpacing,
    SingleStep,
    UniformSpacing,
    UniPC,
    encode,
)
from ddpm_lightning.diffusion.samplers.spacings import distinct
from ddpm_lightning.diffusion.schedules import (
    Cosine,
    Linear,
    Schedule,
    Sigmoid,
    Straight,
    Table,
    ZeroTerminalSNR,
)
from ddpm_lightning.diffusion.schedules import Karras as KarrasSchedule
from ddpm_lightning.errors import InputError
from ddpm_lightning.networks import Network
from ddpm_lightning.randomness import IndexedNoise
from tests.core import OF_THE_ODE, SAMPLERS, Watched, Waves, keyed, named, normal
from tests.small import labels

LINEAR = Linear()
SPACINGS = [
    UniformSpacing(),
    QuadraticSpacing(),
    LogSNRSpacing(),
    KarrasSpacing(),
    KarrasSpacing(rho=1.0),
    PowerSpacing(),
]
EVERY_SAMPLER = pytest.mark.parametrize("make", SAMPLERS, ids=lambda make: make.__name__)


def straight_to(top: float) -> Schedule:
    """alpha falls from 1 to 0 while sigma rises from 0 to top: zero terminal SNR."""
    rising = np.arange(21) / 20
    return Table((1 - rising).tolist(), (top * rising).tolist())


class ExactEps(Network):
    """The noise in x_t if the data is this one point."""

    def __init__(self, schedule: Schedule, point: torch.Tensor) -> None:
        super().__init__()
        self.alpha, self.sigma, self.point = schedule.alpha, schedule.sigma, point
        self.calls = 0

    def forward(self, x, c_noise, condition=Condition()):
        self.calls += 1
        t = int(c_noise[0]) + 1
        return (x - self.alpha[t] * self.point) / self.sigma[t]


def no_noise(*_):
    raise AssertionError("noise was drawn")


# Levels visited

# Also zero terminal SNR, where sigma/alpha is infinite at T, and a single level.
LENGTHS = [
    Linear(21),
    Linear(100),
    Linear(999),
    LINEAR,
    Cosine(50),
    Straight(20),
    Straight(1),
]


@settings(deadline=None, max_examples=300)
@given(st.sampled_from([*SPACINGS, DDIMQuadratic()]), st.data())
def test_every_spacing_takes_as_many_strictly_falling_steps_as_asked(spacing, data):
    schedule = data.draw(st.sampled_from(LENGTHS))
    # The DDIM paper's quadratic starts at four fifths.
    top = min(4 * schedule.T // 5 + 1, schedule.T) if spacing.starts_below_T else schedule.T
    steps = data.draw(st.integers(1, top))
    levels = spacing(schedule, steps)
    assert (len(levels), levels[0], levels[-1]) == (steps + 1, top, 0)
    assert all(t > s for t, s in pairwise(levels))
    assert spacing(schedule, None) == list(range(top, -1, -1))


@pytest.mark.parametrize(
    ("spacing", "schedule", "steps", "levels"),
    [
        (UniformSpacing(), LINEAR, 4, [1000, 750, 500, 250, 0]),
        (QuadraticSpacing(), LINEAR, 5, [1000, 640, 360, 160, 40, 0]),
        (PowerSpacing(0.5), LINEAR, 5, [1000, 894, 775, 632, 447, 0]),
        # 21·(i/8)² = 21, 16.1, 11.8, 8.2, 5.25, 2.95, 1.3, 0.33, 0: nothing but 0.33 must move.
        (QuadraticSpacing(), Linear(21), 8, [21, 16, 12, 8, 5, 3, 2, 1, 0]),
        # From zero terminal SNR the levels that are even in the noise start below T.
        (LogSNRSpacing(), Straight(100), 5, [100, 99, 82, 18, 1, 0]),
        (KarrasSpacing(), Straight(100), 5, [100, 99, 93, 48, 1, 0]),
        (Levels([1000, 500, 0]), LINEAR, 2, [1000, 500, 0]),
    ],
)
def test_levels_are_those_of_the_formula(spacing, schedule, steps, levels):
    assert spacing(schedule, steps) == levels


@pytest.mark.parametrize(
    ("spacing", "warp"),
    [(LogSNRSpacing(), np.log), (KarrasSpacing(), lambda noise: noise ** (1 / 7))],
)
def test_levels_even_in_a_function_of_the_noise(spacing, warp):
    *levels, end = spacing(LINEAR, 10)
    assert (levels[0], levels[-1], end) == (1000, 1, 0)
    noise = (LINEAR.sigma / LINEAR.alpha).numpy()
    wanted = np.linspace(warp(noise[1000]), warp(noise[1]), 10)  # EDM eq. 5
    for level, value in zip(levels, wanted, strict=True):
        # The nearest level on either side, so the wanted value lies within one level.
        assert warp(noise[max(level - 1, 1)]) <= value <= warp(noise[min(level + 1, 1000)])


@pytest.mark.parametrize("steps", [2, 10, 11, 20, 21, 29, 31])
def test_the_ddim_papers_quadratic_is_that_of_its_code(steps):
    # floor(800·(i/(S − 1))²) in whole numbers, where 11, 21 and 31 steps have quotients without
    # a remainder; its code counts levels from 0 and leaves out the clean data.
    theirs = [800 * i**2 // (steps - 1) ** 2 for i in range(steps)]
    # From 30 steps on its two lowest levels are one, a step that does nothing; ours move apart.
    theirs[1] = max(theirs[1], 1)
    assert DDIMQuadratic()(LINEAR, steps) == [*(level + 1 for level in theirs[::-1]), 0]


@pytest.mark.parametrize(
    ("wanted", "levels"),
    [
        ([9, 8.9, 8.8, 4, 0], [9, 8, 7, 4, 0]),  # crowded at the top
        ([9, 4.2, 4.1, 4, 0], [9, 6, 5, 4, 0]),  # in the middle
        ([9, 0.3, 0.2, 0.1, 0], [9, 3, 2, 1, 0]),  # at the bottom
        ([4, 3.9, 3.8, 3.7, 0], [4, 3, 2, 1, 0]),  # no room at all
    ],
)
def test_crowded_levels_make_way_without_leaving_0_to_T(wanted, levels):
    assert distinct(wanted) == levels


@EVERY_SAMPLER
def test_a_step_costs_one_evaluation_and_heuns_two_but_for_the_last(make):
    schedule = KarrasSchedule()
    net = ExactEps(schedule, torch.zeros(1, dtype=torch.float64))
    make(18, spacing=KarrasSpacing())(Denoiser(net, schedule, Eps()), normal(2, 1))
    assert net.calls == (35 if make is Heun else 18)  # EDM's 35 for 18 steps


@pytest.mark.parametrize(("factor", "evaluations"), [(9.9, 3), (10.1, 2)])
def test_heun_does_not_correct_a_step_across_more_than_ten_times_the_noise(factor, evaluations):
    schedule = Table([1, 0.5, 0.05], [0, 1, 0.1 * factor])  # sigma/alpha: 0, 2, 2·factor
    net = ExactEps(schedule, torch.zeros(1, dtype=torch.float64))
    Heun(spacing=Levels([2, 1, 0]), steps=None)(Denoiser(net, schedule, Eps()), normal(2, 1))
    assert net.calls == evaluations


@pytest.mark.parametrize(
    ("sampler", "tag"),
    [
        (DDPM(), "ddpm1000"),
        (DDIM(50, clip=(-1, 1)), "ddim50"),
        (DDIM(50, 1.0, QuadraticSpacing()), "ddim50_quadratic_eta1"),
        (DDPM(20, threshold=0.995), "ddpm20_threshold0.995"),
        (DPMSolverPPSDE(20, order=1, spacing=LogSNRSpacing()), "dpmsolverppsde20_logsnr_order1"),
        (Heun(18, churn=40.0, spacing=KarrasSpacing()), "heun18_karras_churn40"),
        (Euler(9, 8.0, (0.05, 50.0), 1.003), "euler9_churn8_churn_range0.05-50_churn_noise1.003"),
    ],
)
def test_the_tag_names_what_differs_from_the_default(sampler, tag):
    assert sampler.tag(LINEAR) == tag


# Closed forms


@pytest.mark.parametrize("schedule", [Linear(50), Cosine(50)], ids=named)
@EVERY_SAMPLER
def test_with_exact_eps_every_number_of_steps_ends_at_the_data_point(schedule, make):
    point = normal(3, 2)
    denoiser = Denoiser(ExactEps(schedule, point), schedule, Eps())
    for steps, spacing in zip((1, 2, 7, 30, 49, 50), SPACINGS, strict=True):
        x0 = make(steps, spacing=spacing)(denoiser, normal(4, 3, 2), noise=None)
        np.testing.assert_allclose(x0, point.expand(4, 3, 2), atol=1e-10)


def test_ddim_with_eta_1_stays_real_at_zero_terminal_snr():
    # There the posterior's variance is all of sigma_s²: a share above 1 would have a complex root.
    for top in np.linspace(0.3, 5, 30):
        x0 = DDIM(None, eta=1.0)(Denoiser(Waves(), straight_to(top), X0()), normal(2, 1))
        assert x0.dtype == torch.float64
        assert x0.isfinite().all()


EXTREMES = [
    *SAMPLERS,
    lambda steps, spacing: DDIM(steps, 1.0, spacing),
    lambda steps, spacing: Heun(steps, 30.0, spacing=spacing),
]


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from(
        [
            (Straight(20), X0()),
            (Straight(20), V()),
            (ZeroTerminalSNR(Cosine()), V()),
            (Straight(), X0()),
            (KarrasSchedule(), EDMPreconditioning()),
        ]
    ),
    st.sampled_from(EXTREMES),
    st.sampled_from(SPACINGS),
    st.integers(1, 20),
    st.booleans(),
)
def test_float32_sampling_is_finite_from_steep_schedules(parts, make, spacing, steps, exact):
    schedule, parameterization = parts
    network = Denoiser(Waves(), schedule, parameterization)
    denoiser = Empirical(schedule, normal(3, 2)) if exact else network
    x_T = schedule.prior_std * normal(2, 2).float()
    for state in make(steps, spacing=spacing).trajectory(denoiser, x_T, noise=keyed):
        assert state.x_t.dtype == state.x0.dtype == torch.float32
        assert state.x_t.isfinite().all()
        assert state.x0.isfinite().all()


@EVERY_SAMPLER
def test_the_first_step_from_zero_terminal_snr_is_a_plain_one(make):
    denoiser, x_T = Denoiser(Waves(), Straight(20), V()), normal(2, 2)
    eta = 1.0 if make in (DDPM, DPMSolverPPSDE) else 0.0
    ours, ddim = (
        list(sampler.trajectory(denoiser, x_T, noise=keyed))[1]
        for sampler in (make(5), DDIM(5, eta))
    )
    torch.testing.assert_close(ours.x_t, ddim.x_t, rtol=1e-12, atol=1e-12)


@EVERY_SAMPLER
@pytest.mark.parametrize("schedule", [LINEAR, Cosine(4000)], ids=named)
@pytest.mark.parametrize("steps", [2, 50])
def test_float32_sampling_follows_float64(make, schedule, steps):
    mean, cov = torch.tensor([0.5, -1.0, 2.0]), torch.diag(torch.tensor([1.0, 0.1, 0.01]))
    denoiser, x_T = Gaussian(schedule, mean, cov), normal(4, 3)

    def noise(draw, shape):
        return keyed(draw, shape, rows=4)

    exact = make(steps)(denoiser, x_T, noise=noise)
    ours = make(steps)(denoiser, x_T.float(), noise=noise)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=5e-6)


@pytest.mark.parametrize("make", [DPMSolverPP, LMS, UniPC], ids=lambda make: make.__name__)
def test_a_level_without_data_leaves_multistep_methods_no_history(make):
    # At alpha_T = 0 the prediction says nothing about the slope: what follows is a fresh start.
    denoiser = Denoiser(Waves(), Straight(20), V())
    _, *after = make(None, spacing=Levels([20, 13, 9, 4, 1, 0])).trajectory(denoiser, normal(2, 2))
    afresh = make(None, spacing=Levels([13, 9, 4, 1, 0])).trajectory(denoiser, after[0].x_t)
    for a, b in zip(after, afresh, strict=True):
        torch.testing.assert_close(a.x_t, b.x_t, rtol=1e-12, atol=1e-12)


# Step by step against diffusers

PREDICTION_TYPE = {Eps: "epsilon", X0: "sample", V: "v_prediction"}


def assert_steps_agree(scheduler, sampler, denoiser, pairs, **settings):
    """One step from the same x_t with the same noise at levels of both ends and between."""
    # Our float64 tables, from level 1 on, in place of their float32 ones; beyond their first
    # level lies clean data, which is our level 0.
    scheduler.alphas_cumprod = LINEAR.alpha[1:] ** 2
    scheduler.one = scheduler.final_alpha_cumprod = torch.ones((), dtype=torch.float64)
    for t, s in pairs[:5] + pairs[5::37] + pairs[-5:]:
        x_t = normal(2, 3, 4, seed=t)
        output = denoiser.net(x_t, torch.full((2,), t - 1.0, dtype=torch.float64))
        noise = torch.Generator().manual_seed(t)
        theirs = scheduler.step(output, t - 1, x_t, generator=noise, **settings).prev_sample
        prediction = denoiser(x_t, t).clip(sampler.clip)
        ours = sampler.step(prediction, s, lambda t=t: normal(2, 3, 4, seed=t))
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


CLIPS = pytest.mark.parametrize("clip", [None, (-1.0, 1.0)])
PREDICTIONS = pytest.mark.parametrize("parameterization", [Eps(), X0(), V()], ids=named)


@CLIPS
@PREDICTIONS
@pytest.mark.parametrize("variance", [FixedSmall(), FixedLarge()])
@pytest.mark.parametrize(
    ("steps", "spacing"), [(1000, UniformSpacing()), (30, QuadraticSpacing())]
)
def test_ddpm_steps_are_those_of_diffusers(steps, spacing, variance, parameterization, clip):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(
        variance_type="fixed_small" if isinstance(variance, FixedSmall) else "fixed_large",
        prediction_type=PREDICTION_TYPE[type(parameterization)],
        clip_sample=clip is not None,
    )
    denoiser, sampler = (
        Denoiser(Waves(), LINEAR, parameterization, variance),
        DDPM(steps, spacing, clip),
    )
    levels = sampler.levels(LINEAR)
    scheduler.set_timesteps(timesteps=[t - 1 for t in levels[:-1]])
    pairs = list(pairwise(levels))
    if levels[-2] > 1:
        # They add noise in a last step that starts above level 1 (with variance 1e-20 or beta);
        # we never do, so that step differs on purpose.
        pairs.pop()
    assert_steps_agree(scheduler, sampler, denoiser, pairs)


@CLIPS
@PREDICTIONS
@pytest.mark.parametrize("eta", [0.0, 0.5])
# They find the next level by subtracting T // S, so S must divide T.
@pytest.mark.parametrize("steps", [10, 1000])
def test_ddim_steps_are_those_of_diffusers(steps, eta, parameterization, clip):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(
        prediction_type=PREDICTION_TYPE[type(parameterization)],
        clip_sample=clip is not None,
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(steps)
    denoiser, sampler = Denoiser(Waves(), LINEAR, parameterization), DDIM(steps, eta, clip=clip)
    # use_clipped_model_output: recompute eps from the clipped x0, as we always do.
    settings = {"eta": eta, "use_clipped_model_output": True}
    pairs = list(pairwise(sampler.levels(LINEAR)))
    assert_steps_agree(scheduler, sampler, denoiser, pairs, **settings)


# Noise


@pytest.mark.parametrize("make", OF_THE_ODE)
def test_solvers_of_the_ode_draw_no_noise(make):
    make(5)(Denoiser(Waves(), LINEAR, Eps()), normal(2, 1), noise=no_noise)


@pytest.mark.parametrize("sampler", [DDPM(5), DDIM(5, eta=0.3)], ids=named)
def test_step_i_asks_for_draw_i_with_the_shape_of_a_sample(sampler):
    asked = []

    def noise(draw, shape):
        asked.append((draw, shape))
        return keyed(draw, shape)

    sampler(Denoiser(Waves(), LINEAR, Eps()), normal(2, 3, 4), noise=noise)
    assert asked == [(i, (3, 4)) for i in (1, 2, 3, 4)]  # x_T is draw 0, the last step has none


def test_without_a_source_the_noise_is_torchs_global_one():
    denoiser, x_T = Denoiser(Waves(), LINEAR, Eps()), normal(2, 1)
    torch.manual_seed(3)
    a, b = DDPM(5)(denoiser, x_T), DDPM(5)(denoiser, x_T)
    torch.manual_seed(3)
    again = DDPM(5)(denoiser, x_T)
    assert torch.equal(a, again)
    assert not torch.equal(a, b)


@pytest.mark.parametrize(
    "sampler",
    [
        *(make(7) for make in SAMPLERS),
        DDIM(7, eta=0.5),
        Heun(7, churn=5.0),
        DDPM(7, threshold=0.9),
    ],
)
def test_rows_of_a_batch_do_not_depend_on_each_other(sampler):
    denoiser, x_T = Denoiser(Waves(), LINEAR, Eps()), normal(5, 2, 3)
    together = sampler(denoiser, x_T, noise=IndexedNoise(0, torch.arange(5)))
    for k in range(5):
        alone = sampler(denoiser, x_T[k : k + 1], noise=IndexedNoise(0, torch.tensor([k])))
        assert torch.equal(together[k : k + 1], alone)


# Churn


@pytest.mark.parametrize("churn", [1.0, 8.0, 400.0])
def test_churn_raises_to_the_level_nearest_to_edms(churn):
    sampler, noise = Euler(20, churn), (LINEAR.sigma / LINEAR.alpha).numpy()
    for t in (1, 50, 500, 900):
        wanted = noise[t] * (1 + min(churn / 20, np.sqrt(2) - 1))  # EDM algorithm 2
        nearest = 1 + np.abs(np.log(noise[1:] / wanted)).argmin()
        assert sampler.raised(LINEAR, t, steps=20) == nearest
    assert sampler.raised(LINEAR, 1000, steps=20) == 1000


def test_churn_acts_only_in_its_range():
    noise = (LINEAR.sigma / LINEAR.alpha).tolist()
    sampler = Euler(20, 8.0, (noise[200], noise[600]))
    raised = [t for t in range(1, 1000) if sampler.raised(LINEAR, t, steps=20) > t]
    assert (raised[0], raised[-1]) == (200, 600)


def test_churn_adds_just_the_noise_of_the_raised_level():
    denoiser = Watched(Gaussian(LINEAR, torch.zeros(1), torch.eye(1)))
    sampler = Euler(churn=40.0, churn_noise=1.5, steps=None, spacing=Levels([1000, 500, 0]))
    x_T = normal(2, 1)
    states = list(sampler.trajectory(denoiser, x_T, noise=keyed))
    t, raised_x = denoiser.seen[1]
    assert [state.t for state in states] == [1000, 500, 0]
    assert t > 500
    alpha, sigma = LINEAR.alpha.numpy(), LINEAR.sigma.numpy()
    # In x/alpha: z + sqrt(t̂² − t²)·S_noise·eps (EDM algorithm 2, line 6).
    added = np.sqrt((sigma[t] / alpha[t]) ** 2 - (sigma[500] / alpha[500]) ** 2)
    expected = alpha[t] * (states[1].x_t / alpha[500] + 1.5 * added * keyed(2, (1,)))
    torch.testing.assert_close(raised_x, expected)


# Clipping and dynamic thresholding


def test_dynamic_thresholding_is_imagens_and_within_the_range_it_is_clipping():
    x0 = torch.tensor([2, 2, 0.2]).view(3, 1, 1) * normal(3, 4, 5)
    x0[:, 0, 0] = 5.0
    prediction = Denoiser(Waves(), LINEAR, X0())(normal(3, 4, 5), 500)
    ours = prediction.with_x0(x0).clip((-1.0, 1.0), threshold=0.9)
    for k in range(3):
        row = x0[k].numpy()
        reach = np.sort(np.abs(row).ravel())[18 - 1]  # 90 % of 20 values lie within
        expected = np.clip(row, -reach, reach) / reach if reach > 1 else np.clip(row, -1, 1)
        np.testing.assert_allclose(ours.x0[k], expected)
    torch.testing.assert_close(LINEAR.add_noise(ours.x0, 500, ours.eps), ours.x_t)


@pytest.mark.parametrize(
    ("threshold", "n", "kept"),
    [
        (0.55, 100, 55),  # 0.55·100 is a little more than 55 in floating point
        (0.551, 100, 56),
        (0.001, 100, 1),
        (1.0, 100, 100),
        (0.5, 1, 1),
        (1e-10, 1, 1),
    ],
)
def test_the_share_that_stays_is_rounded_up_to_whole_values(threshold, n, kept):
    x0 = torch.arange(n, 0, -1, dtype=torch.float64)[None] + 1  # n + 1 … 2
    prediction = Denoiser(Waves(), LINEAR, X0())(normal(1, n), 500)
    ours = prediction.with_x0(x0).clip((-1.0, 1.0), threshold)
    assert (ours.x0 == 1).sum() == n - kept + 1  # the largest that stays is the reach itself


def test_thresholding_maps_onto_any_range():
    prediction = Denoiser(Waves(), LINEAR, X0())(normal(3, 400), 500)
    base = prediction.with_x0(3 * normal(3, 400))
    moved = prediction.with_x0((base.x0 + 1) / 2)
    a, b = base.clip((-1.0, 1.0), 0.9).x0, moved.clip((0.0, 1.0), 0.9).x0
    torch.testing.assert_close((a + 1) / 2, b)


@EVERY_SAMPLER
def test_every_sampler_clips_and_thresholds_each_prediction(make):
    denoiser, x_T = Denoiser(Waves(), LINEAR, Eps()), normal(2, 30)
    for threshold in (None, 0.8):
        sampler = make(10, clip=(-0.5, 0.25), threshold=threshold)
        for state in sampler.trajectory(denoiser, x_T, noise=keyed):
            assert -0.5 <= state.x0.min() <= state.x0.max() <= 0.25
    plain, thresholded = make(10)(denoiser, x_T, noise=keyed), make(10, threshold=0.8)
    assert torch.equal(thresholded(denoiser, x_T, noise=keyed), plain)  # no range: nothing to do
    assert not torch.equal(thresholded.clipped((-1, 1))(denoiser, x_T, noise=keyed), plain)


# Inversion


WIDE = Gaussian(LINEAR, torch.tensor([0.3, -0.2]), torch.tensor([[1.0, 0.4], [0.4, 0.5]]))


@pytest.mark.slow
def test_more_iterations_invert_ddim_better_but_for_rows_between_modes():
    means = torch.tensor([[-1.0, 0.5], [1.0, -0.3], [0.2, 1.0]], dtype=torch.float64)
    oracle = Mixture(LINEAR, means, torch.full((3,), 0.01, dtype=torch.float64))
    x0 = DDIM(1000)(oracle, normal(256, 2))
    errors = []
    for iterations in (1, 5, 20, 100):
        again = DDIM(50)(oracle, encode(oracle, x0, steps=50, iterations=iterations))
        errors.append((again - x0).norm(dim=1))
    most = [float(error.quantile(0.95)) for error in errors]
    assert all(a > 10 * b for a, b in pairwise(most)), most
    assert float((errors[-1] > 0.1).double().mean()) < 0.05


def test_inverted_data_is_standard_normal_noise():
    # The flow from N(m, C) to level T is the affine map with the square root of the covariance.
    one = Gaussian(LINEAR, torch.tensor([0.5]), torch.tensor([[0.25]]))
    x_T = encode(one, torch.tensor([[0.5], [1.0], [0.0]], dtype=torch.float64))
    np.testing.assert_allclose(x_T.ravel(), [0.0, 1.0, -1.0], atol=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "sampler"),
    [
        (LINEAR, DDIM(10, spacing=LogSNRSpacing())),
        (LINEAR, DDIM(50)),
        (Straight(20), DDIM(2)),
        (Straight(20), DDIM(20)),
    ],
)
def test_iterated_inversion_is_the_exact_inverse_of_ddim_also_from_no_data_at_all(
    schedule, sampler
):
    oracle = Gaussian(schedule, WIDE.mean, WIDE.cov)
    x0, settings = sampler(oracle, normal(5, 2)), {"steps": sampler.steps, "iterations": 300}
    again = encode(oracle, x0, spacing=sampler.spacing, **settings)
    np.testing.assert_allclose(sampler(oracle, again), x0, atol=1e-7)


def test_inversion_takes_labels_and_restores_modes():
    denoiser, x0 = Denoiser(Waves(), LINEAR, X0()), normal(2, 3)
    assert not torch.equal(
        encode(denoiser, x0, steps=3), encode(denoiser, x0, labels(1, 2), steps=3)
    )
    net = Moody()
    assert torch.equal(encode(moody(net), x0, steps=3), encode(moody(net), x0, steps=3))
    assert net.modes() == AS_BUILT


# The trajectory


@pytest.mark.parametrize("sampler", [*(make(4) for make in SAMPLERS), DDIM(4, eta=0.5)], ids=named)
def test_the_trajectory_goes_from_x_T_to_what_a_call_returns(sampler):
    denoiser, x_T = Denoiser(Waves(), LINEAR, Eps()), normal(2, 3)
    states = list(sampler.trajectory(denoiser, x_T, noise=keyed))
    assert [state.t for state in states] == [1000, 750, 500, 250, 0]
    assert torch.equal(states[0].x_t, x_T)
    assert torch.equal(states[-1].x_t, sampler(denoiser, x_T, noise=keyed))
    assert torch.equal(states[-1].x_t, states[-1].x0)


def test_each_state_holds_the_prediction_at_its_level_and_its_label():
    denoiser, x_T = Denoiser(Waves(), LINEAR, X0()), normal(2, 3)
    for state in list(DDIM(4).trajectory(denoiser, x_T, labels(1, 4)))[:-1]:
        assert torch.equal(state.x0, denoiser(state.x_t, state.t, labels(1, 4)).x0)


def test_a_sampler_clips_to_its_own_range_or_to_that_of_the_data_and_by_default_never():
    states = DDPM(20).trajectory(Denoiser(Waves(), LINEAR, Eps()), normal(2, 3))
    assert next(states).x0.abs().max() > 10
    own, free = DDPM(clip=(0.0, 1.0)), DDIM(7, eta=0.5, spacing=QuadraticSpacing())
    assert own.clipped((-1.0, 1.0)) is own
    assert free.clipped(None) is free
    clipped = free.clipped((-1.0, 1.0))
    assert clipped.describe() == DDIM(7, 0.5, QuadraticSpacing(), (-1.0, 1.0)).describe()


class OwnStep(SingleStep):
    """A step of a stranger's, with a setting of its own and none of the others."""

    def __init__(self, share: float = 0.5) -> None:
        super().__init__()
        self.share = share

    def step(self, prediction, s, noise):
        return prediction.x0


# Evaluation mode


class Moody(Network):
    """Has dropout, and a part that the user froze in evaluation mode."""

    def __init__(self, fails_at: int = -1) -> None:
        super().__init__()
        self.dropout, self.frozen = nn.Dropout(0.5), nn.Dropout(0.5)
        self.frozen.eval()
        self.fails_at, self.calls = fails_at, 0

    def forward(self, x, c_noise, condition=Condition()):
        self.calls += 1
        if self.calls == self.fails_at:
            raise RuntimeError("out of memory")
        return self.frozen(self.dropout(x))

    def modes(self):
        return [module.training for module in self.modules()]


AS_BUILT = [True, True, False]


def moody(net):
    return Denoiser(net, LINEAR, X0())


def test_every_part_is_in_evaluation_mode_while_sampling_and_has_its_mode_back_after():
    net = Moody()
    modes = [net.modes() for _ in DDIM(3).trajectory(moody(net), normal(2, 1))]
    assert modes == [[False] * 3] * 3 + [AS_BUILT]
    states = DDIM(3).trajectory(moody(net), normal(2, 1))
    next(states)
    states.close()  # early
    assert net.modes() == AS_BUILT
    net = Moody(fails_at=2)
    with pytest.raises(RuntimeError, match="out of memory"):
        DDIM(3)(moody(net), normal(2, 1))
    assert net.modes() == AS_BUILT


def test_sampling_records_no_gradients_and_leaves_the_callers_mode_alone():
    net = Moody()
    net.weight = nn.Parameter(torch.ones(()))
    for state in DDIM(3).trajectory(moody(net), normal(2, 1).requires_grad_()):
        assert torch.is_grad_enabled()
        assert state.x0.grad_fn is None
    assert torch.is_grad_enabled()


# Few steps, steep schedules


@pytest.mark.parametrize("make", OF_THE_ODE)
@pytest.mark.parametrize("schedule", [Linear(), Cosine(), Sigmoid()], ids=named)
def test_few_steps_find_both_modes_of_a_mixture_whatever_the_schedules_last_levels(make, schedule):
    means = torch.tensor([[-0.4], [0.6]], dtype=torch.float64)
    weights = torch.tensor([0.3, 0.7])
    oracle = Mixture(schedule, means, torch.tensor([0.01, 0.01]), weights)
    u = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    x_T = torch.special.ndtri(u)[:, None] * schedule.prior_std
    samples = make(18)(oracle, x_T)
    # The true weight is 0.7 and the standard deviation sqrt(0.01 + 0.21·1²) = 0.469.
    assert (samples > 0.1).double().mean().item() == pytest.approx(0.7, abs=0.05)
    assert samples.std().item() == pytest.approx(0.469, abs=0.05)


# What is refused


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: DDIMQuadratic()(LINEAR, 802), "takes 1 to 801"),
        *((lambda s=s: s(LINEAR, 0), "1 to 1000") for s in SPACINGS),
        *((lambda s=s: s(LINEAR, 1001), "1 to 1000") for s in SPACINGS),
        *(
            (lambda levels=levels: Levels(levels), "strictly decreasing levels down to 0")
            for levels in ([], [0], [10, 5], [10, 10, 0], [5, 10, 0], [10, 0, -1])
        ),
        (lambda: Levels([1001, 0])(LINEAR, None), "above the last level 1000"),
        (
            lambda: DDIM(spacing=Levels([1000, 500, 0])).levels(LINEAR),
            r"2 steps, but the sampler asks for 50; .*steps=None",
        ),
        (lambda: LMS(order=5), "1, 2, 3 or 4"),
        (lambda: DPMSolverPP(order=3), "1 or 2"),
        (lambda: Heun(churn=-1.0), "at least 0"),
        (lambda: Euler(churn_range=(2.0, 1.0)), "low, high"),
        (lambda: UniPC(threshold=0.0), "above 0 and at most 1"),
        (lambda: UniPC(threshold=99.5), "above 0 and at most 1"),
        (lambda: DDPM(clip=(1.0, -1.0)), "low < high"),
        (lambda: DDIM(eta=-0.1), "eta lies between 0"),
        (lambda: DDIM(eta=1.1), "eta lies between 0"),
        (lambda: OwnStep().clipped((-1.0, 1.0)), "OwnStep does not take clip"),
        (
            lambda: encode(Denoiser(Waves(), Straight(20), X0()), normal(2, 3), steps=1),
            "take more steps",
        ),
        (lambda: encode(WIDE, normal(2, 2), steps=3, iterations=0), "at least one evaluation"),
    ],
)
def test_what_cannot_be_sampled_is_an_error_with_the_fix(call, words):
    with pytest.raises(InputError, match=words):
        call()
