"""Samplers: which levels, which formula, which noise; against closed forms and diffusers."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ddpm_lightning.diffusion.denoiser import Denoiser, Guided
from ddpm_lightning.diffusion.parameterizations import X0, Eps, V
from ddpm_lightning.diffusion.samplers import DDIM, DDPM, Levels, Quadratic, Uniform
from ddpm_lightning.diffusion.samplers.spacings import distinct
from ddpm_lightning.diffusion.schedules import Cosine, Linear, Schedule
from ddpm_lightning.diffusion.variances import FixedLarge, FixedSmall
from ddpm_lightning.errors import InputError
from ddpm_lightning.networks import Network
from ddpm_lightning.randomness import IndexedNoise
from ddpm_lightning.sampling import generate

LINEAR = Linear()


class Straight(Schedule):
    """alpha falls from 1 to 0 while sigma rises from 0 to top: zero terminal SNR."""

    def __init__(self, top: float = 1.0, T: int = 20) -> None:
        rising = torch.linspace(0, 1, T + 1, dtype=torch.float64)
        super().__init__(1 - rising, top * rising)


class Waves(Network):
    """A fixed function of x, level and label, one element at a time."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, x, c_noise, y=None):
        rows = (-1,) + (1,) * (x.ndim - 1)
        phase = c_noise / 300 if y is None else c_noise / 300 + y
        return torch.sin(2 * x + phase.view(rows))


class ExactEps(Network):
    """The noise in x_t if the data is this one point."""

    def __init__(self, schedule: Schedule, point: torch.Tensor) -> None:
        super().__init__()
        self.alpha, self.sigma, self.point = schedule.alpha, schedule.sigma, point
        self.calls = 0

    def forward(self, x, c_noise, y=None):
        self.calls += 1
        t = int(c_noise[0]) + 1
        return (x - self.alpha[t] * self.point) / self.sigma[t]


class Zero(Network):
    """Predicts v = 0, which is exact for standard normal data where variance is preserved."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, x, c_noise, y=None):
        return torch.zeros_like(x)


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def keyed(draw, shape, rows=2):
    """Step noise in float64 that depends on the draw alone."""
    return normal(rows, *shape, seed=1000 + draw)


def no_noise(*_):
    raise AssertionError("noise was drawn")


# Levels visited


@settings(deadline=None, max_examples=300)
@given(st.sampled_from([Uniform(), Quadratic()]), st.data())
def test_every_spacing_takes_as_many_strictly_falling_steps_as_asked(spacing, data):
    schedule = Linear(data.draw(st.sampled_from([21, 100, 999, 1000])))
    steps = data.draw(st.integers(1, schedule.T))
    levels = spacing(schedule, steps)
    assert len(levels) == steps + 1
    assert (levels[0], levels[-1]) == (schedule.T, 0)
    assert all(t > s for t, s in pairwise(levels))


@pytest.mark.parametrize("spacing", [Uniform(), Quadratic()])
def test_one_step_goes_from_T_to_0_and_T_steps_visit_every_level(spacing):
    assert spacing(LINEAR, 1) == [1000, 0]
    assert spacing(LINEAR, 1000) == list(range(1000, -1, -1))
    assert spacing(LINEAR, None) == list(range(1000, -1, -1))


def test_uniform_levels_are_evenly_spaced():
    assert Uniform()(LINEAR, 4) == [1000, 750, 500, 250, 0]
    steps = -np.diff(Uniform()(LINEAR, 300))
    assert set(steps.tolist()) == {3, 4}


def test_quadratic_levels_shrink_towards_the_data():
    assert Quadratic()(LINEAR, 5) == [1000, 640, 360, 160, 40, 0]


def test_where_rounding_collides_levels_move_to_the_nearest_free_one():
    # 21·(i/8)² = 21, 16.1, 11.8, 8.2, 5.25, 2.95, 1.3, 0.33, 0: nothing but 0.33 must move.
    assert Quadratic()(Linear(21), 8) == [21, 16, 12, 8, 5, 3, 2, 1, 0]


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


@pytest.mark.parametrize("S", [1, 2, 3, 4, 5, 7, 10, 25, 30, 50, 100, 250, 500, 999, 1000])
def test_uniform_is_diffusers_trailing_spacing(S):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(S)
    # They count levels from 0 and leave out the clean data at the end.
    assert [t + 1 for t in scheduler.timesteps.tolist()] == Uniform()(LINEAR, S)[:-1]


@pytest.mark.parametrize("spacing", [Uniform(), Quadratic()])
@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_a_number_of_steps_outside_1_to_T_is_an_error(spacing, steps):
    with pytest.raises(InputError, match="1 to 1000"):
        spacing(LINEAR, steps)


def test_named_levels_are_visited_as_they_stand():
    sampler = DDPM(spacing=Levels([900, 10, 3, 0]))
    states = sampler.trajectory(Denoiser(Zero(), LINEAR, V()), normal(2, 1))
    assert [state.t for state in states] == [900, 10, 3, 0]


@pytest.mark.parametrize("levels", [[], [0], [10, 5], [10, 10, 0], [5, 10, 0], [10, 0, -1]])
def test_levels_that_do_not_fall_to_0_are_an_error(levels):
    with pytest.raises(InputError, match="strictly decreasing levels down to 0"):
        Levels(levels)


def test_named_levels_above_T_are_an_error():
    with pytest.raises(InputError, match="above the last level 1000"):
        Levels([1001, 0])(LINEAR, None)


def test_named_levels_and_another_number_of_steps_are_an_error_with_the_fix():
    assert Levels([1000, 500, 0])(LINEAR, 2) == [1000, 500, 0]
    with pytest.raises(InputError, match=r"2 steps, but the sampler asks for 50; .*steps=None"):
        DDIM(spacing=Levels([1000, 500, 0])).levels(LINEAR)


@pytest.mark.parametrize("sampler", [DDPM(), DDIM(None)], ids=lambda s: type(s).__name__)
def test_without_a_number_of_steps_samplers_visit_every_level_from_T_to_0(sampler):
    net = ExactEps(Linear(100), torch.zeros(1, dtype=torch.float64))
    states = list(sampler.trajectory(Denoiser(net, Linear(100), Eps()), normal(2, 1)))
    assert [state.t for state in states] == list(range(100, -1, -1))
    assert net.calls == 100


def test_the_tag_names_the_steps_taken():
    assert DDIM(50).tag(LINEAR) == "ddim50"
    assert DDPM().tag(Linear(100)) == "ddpm100"


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_eta_outside_0_to_1_is_an_error(eta):
    with pytest.raises(InputError, match="eta lies between 0"):
        DDIM(eta=eta)


# Closed forms


@pytest.mark.parametrize("schedule", [Linear(50), Cosine(50)], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("sampler", [DDPM, DDIM], ids=lambda s: s.__name__)
@pytest.mark.parametrize("spacing", [Uniform(), Quadratic()], ids=lambda s: type(s).__name__)
def test_with_exact_eps_every_number_of_steps_ends_at_the_data_point(schedule, sampler, spacing):
    point = normal(3, 2)
    denoiser = Denoiser(ExactEps(schedule, point), schedule, Eps())
    for steps in range(1, 51):
        x0 = sampler(steps, spacing=spacing)(denoiser, normal(4, 3, 2), noise=None)
        np.testing.assert_allclose(x0, point.expand(4, 3, 2), atol=1e-10)


@pytest.mark.parametrize("steps", [1, 3, 50])
def test_with_exact_eps_ddim_stays_on_the_line_from_noise_to_data(steps):
    schedule, point, x_T = Cosine(50), normal(1, seed=1), normal(4, 1)
    denoiser = Denoiser(ExactEps(schedule, point), schedule, Eps())
    alpha, sigma = schedule.alpha.numpy(), schedule.sigma.numpy()
    eps = (x_T - alpha[50] * point) / sigma[50]
    for state in DDIM(steps).trajectory(denoiser, x_T):
        expected = alpha[state.t] * point + sigma[state.t] * eps
        np.testing.assert_allclose(state.x_t, expected, atol=1e-10)


@pytest.mark.parametrize("steps", [1, 7, 100, 1000])
def test_ddim_on_standard_normal_data_contracts_by_the_cosine_of_each_turn(steps):
    # x = cos(angle)·x_0 + sin(angle)·eps and v = 0: each step is a projection, and the product
    # of cosines tends to 1, the exact flow, as the turns get finer.
    angle = np.arctan2(LINEAR.sigma.numpy(), LINEAR.alpha.numpy())
    turns = np.diff(angle[DDIM(steps).levels(LINEAR)])
    x_T = normal(3, 1)
    x0 = DDIM(steps)(Denoiser(Zero(), LINEAR, V()), x_T)
    np.testing.assert_allclose(x0, np.cos(turns).prod() * x_T, rtol=1e-12)


@pytest.mark.parametrize(("s", "t"), [(1, 2), (499, 500), (1, 1000), (300, 900)])
def test_ddpm_with_fixed_large_keeps_standard_normal_data_standard_normal(s, t):
    # DDPM sec. 3.2: beta is the right reverse variance for standard normal data.
    prediction = Denoiser(Zero(), LINEAR, V(), FixedLarge())(normal(1, 1), t)
    mean = DDPM().step(prediction, s, lambda: torch.zeros(1, 1, dtype=torch.float64))
    noise = DDPM().step(prediction, s, lambda: torch.ones(1, 1, dtype=torch.float64)) - mean
    gain = (mean / prediction.x_t).item()
    assert gain**2 + noise.item() ** 2 == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("steps", [7, 100])
@pytest.mark.parametrize("spacing", [Uniform(), Quadratic()], ids=lambda s: type(s).__name__)
def test_ddim_with_eta_1_is_ddpm_with_fixed_small(steps, spacing):
    denoiser = Denoiser(Waves(), Linear(100), Eps(), FixedSmall())
    x_T = normal(2, 3)
    ddim = DDIM(steps, 1.0, spacing).trajectory(denoiser, x_T, noise=keyed)
    ddpm = DDPM(steps, spacing).trajectory(denoiser, x_T, noise=keyed)
    for a, b in zip(ddim, ddpm, strict=True):
        torch.testing.assert_close(a.x_t, b.x_t, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("top", np.linspace(0.3, 5, 30))
def test_ddim_with_eta_1_stays_real_at_zero_terminal_snr(top):
    # There the posterior's variance is all of sigma_s², and rounding can exceed it.
    x0 = DDIM(None, eta=1.0)(Denoiser(Waves(), Straight(float(top)), X0()), normal(2, 1))
    assert x0.dtype == torch.float64
    assert x0.isfinite().all()


@pytest.mark.parametrize("sampler", [DDPM(5), DDIM(5), DDIM(5, eta=1.0)])
@pytest.mark.parametrize("parameterization", [X0(), V()], ids=lambda p: type(p).__name__)
def test_sampling_is_finite_from_zero_terminal_snr(sampler, parameterization):
    assert sampler(Denoiser(Waves(), Straight(), parameterization), normal(2, 1)).isfinite().all()


# Step by step against diffusers

PREDICTION_TYPE = {Eps: "epsilon", X0: "sample", V: "v_prediction"}


def with_our_tables(scheduler, schedule):
    """Put our float64 tables, from level 1 on, in place of their float32 ones."""
    scheduler.alphas_cumprod = schedule.alpha[1:] ** 2
    # Beyond their first level lies clean data, which is our level 0.
    scheduler.one = scheduler.final_alpha_cumprod = torch.ones((), dtype=torch.float64)
    return scheduler


def both_steps(scheduler, sampler, denoiser, t, s, **settings):
    """One step from the same x_t with the same noise: theirs and ours."""
    x_t = normal(2, 3, 4, seed=t)
    output = denoiser.net(x_t, torch.full((2,), t - 1.0, dtype=torch.float64))
    theirs = scheduler.step(
        output, t - 1, x_t, generator=torch.Generator().manual_seed(t), **settings
    ).prev_sample
    prediction = denoiser(x_t, t).clip(sampler.clip)
    return theirs, sampler.step(prediction, s, lambda: normal(2, 3, 4, seed=t))


@pytest.mark.parametrize("clip", [None, (-1.0, 1.0)])
@pytest.mark.parametrize("parameterization", [Eps(), X0(), V()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("spacing", [Uniform(), Quadratic()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("steps", [10, 1000])
def test_ddpm_steps_are_those_of_diffusers(steps, spacing, variance, parameterization, clip):
    diffusers = pytest.importorskip("diffusers")
    scheduler = with_our_tables(
        diffusers.DDPMScheduler(
            variance_type=variance,
            prediction_type=PREDICTION_TYPE[type(parameterization)],
            clip_sample=clip is not None,
        ),
        LINEAR,
    )
    ours = {"fixed_small": FixedSmall(), "fixed_large": FixedLarge()}[variance]
    denoiser = Denoiser(Waves(), LINEAR, parameterization, ours)
    sampler = DDPM(steps, spacing, clip)
    levels = sampler.levels(LINEAR)
    scheduler.set_timesteps(timesteps=[t - 1 for t in levels[:-1]])
    pairs = list(pairwise(levels))
    if levels[-2] > 1:
        # They add noise in a last step that starts above level 1 (with variance 1e-20 or beta);
        # we never do, so that step differs on purpose.
        pairs.pop()
    for t, s in pairs[:5] + pairs[5::37] + pairs[-5:]:
        theirs, our = both_steps(scheduler, sampler, denoiser, t, s)
        torch.testing.assert_close(our, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("clip", [None, (-1.0, 1.0)])
@pytest.mark.parametrize("parameterization", [Eps(), X0(), V()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
# They find the next level by subtracting T // S, so S must divide T.
@pytest.mark.parametrize("steps", [10, 1000])
def test_ddim_steps_are_those_of_diffusers(steps, eta, parameterization, clip):
    diffusers = pytest.importorskip("diffusers")
    scheduler = with_our_tables(
        diffusers.DDIMScheduler(
            prediction_type=PREDICTION_TYPE[type(parameterization)],
            clip_sample=clip is not None,
            timestep_spacing="trailing",
        ),
        LINEAR,
    )
    scheduler.set_timesteps(steps)
    denoiser = Denoiser(Waves(), LINEAR, parameterization)
    sampler = DDIM(steps, eta, clip=clip)
    pairs = list(pairwise(sampler.levels(LINEAR)))
    for t, s in pairs[:5] + pairs[5::37] + pairs[-5:]:
        # use_clipped_model_output: recompute eps from the clipped x0, as we always do.
        settings = {"eta": eta, "use_clipped_model_output": True}
        theirs, our = both_steps(scheduler, sampler, denoiser, t, s, **settings)
        torch.testing.assert_close(our, theirs, rtol=1e-10, atol=1e-10)


# Noise


@pytest.mark.parametrize(
    "sampler", [DDPM(spacing=Levels([9, 0])), DDIM(None, 1.0, Levels([9, 0]))]
)
def test_the_last_step_adds_no_noise(sampler):
    sampler(Denoiser(Waves(), LINEAR, Eps()), normal(2, 1), noise=no_noise)


def test_ddim_without_eta_draws_no_noise():
    DDIM(5)(Denoiser(Waves(), LINEAR, Eps()), normal(2, 1), noise=no_noise)


@pytest.mark.parametrize("sampler", [DDPM(5), DDIM(5, eta=0.3)], ids=lambda s: type(s).__name__)
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


@pytest.mark.parametrize("sampler", [DDPM(7), DDIM(7), DDIM(7, eta=0.5)])
def test_rows_of_a_batch_do_not_depend_on_each_other(sampler):
    denoiser, x_T = Denoiser(Waves(), LINEAR, Eps()), normal(5, 2, 3)
    together = sampler(denoiser, x_T, noise=IndexedNoise(0, torch.arange(5)))
    for k in range(5):
        alone = sampler(denoiser, x_T[k : k + 1], noise=IndexedNoise(0, torch.tensor([k])))
        assert torch.equal(together[k : k + 1], alone)


# The trajectory


@pytest.mark.parametrize("sampler", [DDPM(4), DDIM(4, eta=0.5)], ids=lambda s: type(s).__name__)
def test_the_trajectory_goes_from_x_T_to_what_a_call_returns(sampler):
    denoiser, x_T = Denoiser(Waves(), LINEAR, Eps()), normal(2, 3)
    states = list(sampler.trajectory(denoiser, x_T, noise=keyed))
    assert [state.t for state in states] == [1000, 750, 500, 250, 0]
    assert torch.equal(states[0].x_t, x_T)
    assert torch.equal(states[-1].x_t, sampler(denoiser, x_T, noise=keyed))
    assert torch.equal(states[-1].x_t, states[-1].x0)


def test_each_state_holds_the_prediction_at_its_level():
    denoiser = Denoiser(Waves(), LINEAR, Eps())
    for state in list(DDIM(4).trajectory(denoiser, normal(2, 3)))[:-1]:
        assert torch.equal(state.x0, denoiser(state.x_t, state.t).x0)


def test_labels_reach_every_step():
    denoiser, x_T = Denoiser(Waves(), LINEAR, X0()), normal(2, 3)
    y = torch.tensor([1, 4])
    for state in list(DDIM(4).trajectory(denoiser, x_T, y))[:-1]:
        assert torch.equal(state.x0, denoiser(state.x_t, state.t, y).x0)


def test_a_clipping_sampler_keeps_every_prediction_and_the_sample_in_range():
    denoiser = Denoiser(Waves(), LINEAR, Eps())
    for state in DDPM(20, clip=(-0.5, 0.25)).trajectory(denoiser, normal(2, 3), noise=keyed):
        assert -0.5 <= state.x0.min() <= state.x0.max() <= 0.25


def test_by_default_nothing_is_clipped():
    states = DDPM(20).trajectory(Denoiser(Waves(), LINEAR, Eps()), normal(2, 3))
    assert next(states).x0.abs().max() > 10


def test_clipping_to_the_datas_range_changes_nothing_else():
    sampler = DDIM(7, eta=0.5, spacing=Quadratic()).clipped((-1.0, 1.0))
    assert sampler.clip == (-1.0, 1.0)
    assert (sampler.steps, sampler.eta, type(sampler.spacing)) == (7, 0.5, Quadratic)


def test_a_samplers_own_range_and_data_without_one_win_over_clipping():
    own, free = DDPM(clip=(0.0, 1.0)), DDPM()
    assert own.clipped((-1.0, 1.0)) is own
    assert free.clipped(None) is free


# Evaluation mode


class Moody(Network):
    """Has dropout, and a part that the user froze in evaluation mode."""

    def __init__(self, fails_at: int = -1) -> None:
        super().__init__()
        self.dropout, self.frozen = nn.Dropout(0.5), nn.Dropout(0.5)
        self.frozen.eval()
        self.fails_at, self.calls = fails_at, 0

    def forward(self, x, c_noise, y=None):
        self.calls += 1
        if self.calls == self.fails_at:
            raise RuntimeError("out of memory")
        return self.frozen(self.dropout(x))

    def modes(self):
        return [module.training for module in self.modules()]


AS_BUILT = [True, True, False]


def moody(net):
    return Denoiser(net, LINEAR, X0())


@pytest.mark.parametrize("guidance", [None, 2.0])
def test_dropout_is_off_while_sampling(guidance):
    denoiser, x_T = moody(Moody()), normal(2, 50)
    if guidance is not None:
        denoiser = Guided(denoiser, guidance)
    y = torch.tensor([0, 1])
    assert torch.equal(DDIM(3)(denoiser, x_T, y), DDIM(3)(denoiser, x_T, y))


def test_every_part_has_its_mode_back_after_sampling():
    net = Moody()
    modes = [net.modes() for _ in DDIM(3).trajectory(moody(net), normal(2, 1))]
    assert modes[:-1] == [[False] * 3] * 3
    assert net.modes() == AS_BUILT


def test_modes_are_back_when_the_iterator_is_closed_early():
    net = Moody()
    states = DDIM(3).trajectory(moody(net), normal(2, 1))
    next(states)
    assert net.modes() == [False] * 3
    states.close()
    assert net.modes() == AS_BUILT


def test_modes_are_back_when_the_network_raises():
    net = Moody(fails_at=2)
    with pytest.raises(RuntimeError, match="out of memory"):
        DDIM(3)(moody(net), normal(2, 1))
    assert net.modes() == AS_BUILT


def test_a_network_in_evaluation_mode_stays_there():
    net = Moody().eval()
    DDIM(3)(moody(net), normal(2, 1))
    assert net.modes() == [False] * 3


def test_sampling_records_no_gradients_and_leaves_the_callers_mode_alone():
    net = Moody()
    net.weight = nn.Parameter(torch.ones(()))
    for state in DDIM(3).trajectory(moody(net), normal(2, 1).requires_grad_()):
        assert torch.is_grad_enabled()
        assert state.x0.grad_fn is None
    assert torch.is_grad_enabled()


def test_a_denoiser_without_a_network_can_be_sampled():
    class Oracle:
        schedule = LINEAR

        def __call__(self, x_t, t, y=None):
            return Denoiser(Zero(), LINEAR, X0())(x_t, t, y)

    assert torch.equal(DDIM(3)(Oracle(), normal(2, 1)), torch.zeros(2, 1, dtype=torch.float64))


# Samples by index


@pytest.mark.parametrize("sampler", [DDPM(6), DDIM(6, eta=0.5)], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("guidance", [None, 3.0])
def test_samples_do_not_depend_on_the_batch_size(sampler, guidance):
    denoiser = Denoiser(Waves(), LINEAR, V())
    if guidance is not None:
        denoiser = Guided(denoiser, guidance)
    runs = [
        generate(
            denoiser,
            sampler,
            (1, 4, 4),
            torch.arange(7),
            labels=torch.tensor([0, 1, 2, 0, 1, 2, 0]),
            batch_size=batch_size,
            frames=3,
        )
        for batch_size in (7, 1, 3)
    ]
    assert runs[0].x.shape == (7, 1, 4, 4)
    for other in runs[1:]:
        assert torch.equal(other.x, runs[0].x)
        assert torch.equal(other.frames, runs[0].frames)


def test_a_sample_depends_on_its_index_and_not_on_its_place():
    denoiser = Denoiser(Waves(), LINEAR, V())
    some = generate(denoiser, DDPM(6), (2,), torch.tensor([8, 3, 5])).x
    all_of_them = generate(denoiser, DDPM(6), (2,), torch.arange(9)).x
    assert torch.equal(some, all_of_them[[8, 3, 5]])


def test_another_seed_gives_other_samples():
    denoiser = Denoiser(Waves(), LINEAR, V())
    a, b = (generate(denoiser, DDPM(6), (2,), torch.arange(3), seed=seed).x for seed in (0, 1))
    assert not torch.isclose(a, b).any()


# No trajectory has more frames than levels: 6 steps have 7.
@pytest.mark.parametrize(("frames", "kept"), [(2, 2), (3, 3), (5, 5), (7, 7), (50, 7)])
def test_frames_lead_from_the_noise_to_the_sample(frames, kept):
    schedule = Straight(top=3.0)
    denoiser = Denoiser(Waves(), schedule, X0())
    samples = generate(
        denoiser, DDPM(6), (2, 3), torch.arange(5), seed=4, batch_size=2, frames=frames
    )
    noise = IndexedNoise(4, torch.arange(5))(0, (2, 3))
    assert samples.frames.shape == (kept, 5, 2, 3)
    torch.testing.assert_close(samples.frames[0], 3 * noise)  # x_T has standard deviation sigma_T
    assert torch.equal(samples.frames[-1], samples.x)


def test_no_frames_are_kept_unless_asked_for():
    samples = generate(Denoiser(Waves(), LINEAR, V()), DDIM(2), (1,), torch.arange(2))
    assert samples.frames is None


@pytest.mark.parametrize("frames", [1, -1])
def test_a_trajectory_of_one_frame_is_an_error(frames):
    with pytest.raises(InputError, match="2 or more"):
        generate(Denoiser(Waves(), LINEAR, V()), DDIM(2), (1,), torch.arange(2), frames=frames)
