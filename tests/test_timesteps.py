"""Which levels are drawn: their distributions, stratification, and learning from losses."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode

from ddpm_lightning.configurable import build
from ddpm_lightning.diffusion.schedules import Cosine, Karras, Linear, Straight, ZeroTerminalSNR
from ddpm_lightning.diffusion.timesteps import (
    LogitNormal,
    LogNormal,
    LossSecondMoment,
    Stratified,
    Timesteps,
    Uniform,
    level_of,
)
from ddpm_lightning.errors import InputError
from ddpm_lightning.randomness import BatchNoise, IndexedNoise
from tests.core import named


class Given:
    """A source whose uniform numbers are the test's."""

    def __init__(self, u):
        self.u = torch.as_tensor(u, dtype=torch.float32)

    def uniform(self, draw):
        return self.u


def global_noise(step, size, rows=None):
    """What the trainer gives: noise that knows its rows' places in the global batch."""
    return BatchNoise(0, step, torch.arange(size) if rows is None else rows, size)


class Extreme(BatchNoise):
    """The ends of [0, 1), and numbers between."""

    def uniform(self, draw):
        return torch.tensor([0.0, 1e-45, 2.0**-24, 0.5, 0.999, 1 - 2.0**-24])


def evenly(n):
    """The n quantiles in the middle of n equal parts: any function of them is deterministic."""
    return Given((torch.arange(n) + 0.5) / n)


ALL = [
    Uniform(),
    LogNormal(),
    LogitNormal(),
    LogitNormal(uniform=0.1),
    LossSecondMoment(),
    Stratified(LogNormal()),
]


@pytest.mark.parametrize("timesteps", ALL, ids=named)
@pytest.mark.parametrize("T", [1, 2, 1000, 4000])
@pytest.mark.filterwarnings("ignore:.*not noise")
def test_rebuilt_it_draws_levels_in_1_to_T_however_extreme_the_numbers(timesteps, T):
    noise = Extreme(0, 0, torch.arange(6), 6)
    schedule = Cosine(T) if T > 1 else Straight(1)
    again = build(timesteps.describe())
    assert again.describe() == timesteps.describe()
    t, weight = again(schedule, noise)
    assert t.dtype == torch.int64
    assert weight.dtype == torch.float32
    assert t.min() >= 1
    assert t.max() <= T
    assert weight.isfinite().all()


# Log-normal and logit-normal


@pytest.mark.parametrize("schedule", [Karras(50), Cosine(50), Linear(50)])
def test_log_normal_puts_the_mass_around_each_level_on_it(schedule):
    log_sigma = np.log((schedule.sigma[1:] / schedule.alpha[1:]).numpy())
    edges = np.concatenate([[-np.inf], (log_sigma[1:] + log_sigma[:-1]) / 2, [np.inf]])
    expected = np.diff(stats.norm(-1.2, 1.2).cdf(edges))
    t, weight = LogNormal()(schedule, evenly(200_000))
    counts = np.bincount(t, minlength=51)[1:] / 200_000
    np.testing.assert_allclose(counts, expected, atol=2e-5)
    assert torch.equal(weight, torch.ones(200_000))


def test_log_normal_never_needs_the_level_without_data():
    schedule = ZeroTerminalSNR(Linear(100))
    t, _ = LogNormal(mean=3.0)(schedule, evenly(10_000))
    assert t.max() <= 99


@pytest.mark.parametrize(("settings", "T"), [((0.3, 0.8), 50), ((0.0, 1.0, 0.1), 1000)])
def test_logit_normal_has_the_papers_density_in_t_over_T_beside_a_uniform_share(settings, T):
    mean, std, uniform = *settings, *[0] * (3 - len(settings))
    t, weight = LogitNormal(*settings)(Straight(T), evenly(1_000_000))
    edges = np.arange(T + 1) / T
    with np.errstate(divide="ignore"):
        normal = np.diff(stats.norm(mean, std).cdf(np.log(edges / (1 - edges))))
    counts = np.bincount(t, minlength=T + 1)[1:] / 1_000_000
    np.testing.assert_allclose(counts, (1 - uniform) * normal + uniform / T, atol=4e-6)
    assert torch.equal(weight, torch.ones(1_000_000))


# Stratified


@pytest.mark.parametrize("size", [1, 7, 64, 100])
@pytest.mark.parametrize("step", [0, 5])
def test_each_part_of_the_levels_gets_exactly_its_rows(size, step):
    t, _ = Stratified()(Linear(size * 30), global_noise(step, size))
    # The parts are rotated by a number shared by all rows: undo it.
    shift = float(global_noise(step, size).shared(1))
    part = np.floor(((t.numpy() - 0.5) / (size * 30) - shift) % 1 * size + 1e-4)
    # Rounding to levels moves a row over an edge now and then, by one level at most.
    assert np.abs(np.sort(part) - np.arange(size)).max() <= 1
    gaps = np.diff(np.sort(t.numpy()))
    assert gaps.max(initial=0) <= 2 * 30 + 1


def test_processes_and_accumulated_parts_draw_what_one_process_would():
    whole, _ = Stratified(LogNormal())(Cosine(), global_noise(9, 48))
    for rows in torch.arange(48).split(8):
        part, _ = Stratified(LogNormal())(Cosine(), global_noise(9, 48, rows))
        assert torch.equal(part, whole[rows])


def test_the_rows_of_one_process_are_spread_over_the_levels_too():
    for first in (0, 16, 48):
        t, _ = Stratified()(Linear(), global_noise(1, 64, torch.arange(first, first + 16)))
        quarters = np.bincount((t.numpy() - 1) // 250, minlength=4)
        assert quarters.min() >= 3
        assert quarters.max() <= 5


@pytest.mark.slow
def test_every_row_alone_is_uniform_over_the_steps():
    draws = [Stratified()(Linear(), global_noise(step, 8)).t for step in range(4000)]
    for row in torch.stack(draws, dim=1):
        assert stats.kstest(row.numpy() / 1000, "uniform").pvalue > 1e-4


def test_stratified_hands_losses_and_state_to_what_it_wraps():
    outer = Stratified(LossSecondMoment(history=1))
    outer.update(torch.arange(1, 4), torch.tensor([1.0, 2.0, 3.0]))
    inner = LossSecondMoment(history=1)
    inner.load_state_dict(outer.state_dict())
    np.testing.assert_allclose(inner.probabilities(), [1 / 6, 2 / 6, 3 / 6], atol=1e-3)
    outer.load_state_dict({"losses": torch.ones(2, 1), "counts": torch.ones(2)})
    np.testing.assert_allclose(outer.timesteps.probabilities(), 0.5)


# Loss second moment


def warmed_up(losses, history=2, uniform=0.001):
    timesteps = LossSecondMoment(history, uniform)
    for _ in range(history):
        timesteps.update(torch.arange(1, len(losses) + 1), torch.tensor(losses))
    return timesteps


def test_levels_are_drawn_in_proportion_to_the_root_mean_square_of_their_losses():
    timesteps = LossSecondMoment(history=2, uniform=0.1)
    timesteps.update(torch.tensor([1, 2, 1, 2]), torch.tensor([3.0, 1.0, 4.0, 1.0]))
    rms = np.array([np.sqrt(12.5), 1.0])
    expected = 0.9 * rms / rms.sum() + 0.1 / 2
    np.testing.assert_allclose(timesteps.probabilities(), expected, rtol=1e-6)
    t, _ = timesteps(Straight(2), evenly(100_000))
    np.testing.assert_allclose(np.bincount(t)[1:] / 100_000, expected, atol=2e-5)


def test_importance_weights_keep_the_mean_over_levels():
    losses = [0.5, 8.0, 1.0, 0.1]
    t, weight = warmed_up(losses)(Straight(4), evenly(400_000))
    estimate = (weight * torch.tensor(losses)[t - 1]).mean()
    assert float(estimate) == pytest.approx(np.mean(losses), rel=1e-4)
    assert float(weight.mean()) == pytest.approx(1, rel=1e-4)


def test_weights_are_those_of_the_shares_really_drawn():
    # Level 1 takes nearly all: the others' shares are 18 to 50 steps of a float32 close to 1, and
    # rounding their sum to such steps changes them by percents.
    timesteps = warmed_up([1e6, *np.linspace(0.1, 2.0, 999)], uniform=0.001)
    last = Given(1 - torch.arange(1, 16_001) / 2**24)  # each of the last 16,000 float32 below 1
    t, weight = timesteps(Straight(1000), last)
    drawn = torch.bincount(t) / 2**24
    whole = t > t.min()  # the lowest level goes on below
    assert whole.sum() > 15_000
    np.testing.assert_allclose(weight[whole], 1 / (1000 * drawn[t[whole]]), rtol=1e-6)


def test_levels_are_uniform_until_each_has_a_full_history():
    timesteps = LossSecondMoment(history=2)
    t = torch.tensor([1, 1, 1, 2, 2, 3])
    timesteps(Straight(3), evenly(6))
    timesteps.update(t, torch.full((6,), 5.0))
    np.testing.assert_allclose(timesteps.probabilities(), 1 / 3)
    np.testing.assert_allclose(timesteps(Straight(3), evenly(6)).weight, 1, rtol=1e-6)
    timesteps.update(torch.tensor([3]), torch.tensor([50.0]))
    assert timesteps.probabilities()[2] > 0.6


@pytest.mark.parametrize("size", [1, 3, 8, 200])
def test_the_history_holds_the_last_losses_of_each_level_however_they_arrive(size):
    generator = torch.Generator().manual_seed(size)
    t = torch.randint(1, 6, (400,), generator=generator)
    losses = torch.rand(400, generator=generator)
    timesteps = LossSecondMoment(history=4)
    for part_t, part_losses in zip(t.split(size), losses.split(size), strict=True):
        timesteps.update(part_t, part_losses)
    state = timesteps.state_dict()
    for level in range(1, 6):
        last = losses[t == level][-4:]
        assert sorted(state["losses"][level - 1].tolist()) == sorted(last.tolist())
        assert state["counts"][level - 1] == (t == level).sum()


class WrittenPlaces(TorchDispatchMode):
    """Records the places of every indexed write."""

    def __init__(self):
        super().__init__()
        self.places = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if str(func) == "aten.index_put_.default":
            self.places += zip(*(index.tolist() for index in args[1]), strict=True)
        return func(*args, **(kwargs or {}))


def test_of_more_losses_than_the_history_holds_only_the_last_are_written():
    # Two writes to one place would leave it to torch which of them lasts.
    with WrittenPlaces() as written:
        LossSecondMoment(history=4).update(torch.tensor([1, 2, 1] * 5), torch.arange(15.0))
    assert sorted(written.places) == [(level, k) for level in (0, 1) for k in range(4)]


def test_losses_that_are_not_finite_are_forgotten_and_zeros_leave_the_levels_uniform():
    timesteps = warmed_up([1.0, 2.0])
    before = timesteps.probabilities()
    timesteps.update(torch.tensor([1, 2]), torch.tensor([float("nan"), float("inf")]))
    assert torch.equal(timesteps.probabilities(), before)
    np.testing.assert_allclose(warmed_up([0.0, 0.0]).probabilities(), 0.5)


def test_its_state_is_plain_tensors_and_resumes_exactly(tmp_path):
    one = warmed_up([0.5, 8.0, 1.0, 0.1])
    torch.save(one.state_dict(), tmp_path / "state.pt")
    other = LossSecondMoment(history=2)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for timesteps in (one, other):
        timesteps.update(torch.tensor([2, 2, 4]), torch.tensor([1.0, 2.0, 3.0]))
    a, b = (timesteps(Straight(4), evenly(100)) for timesteps in (one, other))
    assert torch.equal(a.t, b.t)
    assert torch.equal(a.weight, b.weight)


def test_a_saved_state_does_not_change_with_further_losses():
    timesteps = warmed_up([1.0, 2.0])
    state = timesteps.state_dict()
    timesteps.update(torch.tensor([1]), torch.tensor([9.0]))
    assert 9.0 not in state["losses"]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: LogitNormal(uniform=-0.1), r"^LogitNormal\("),
        (lambda: LogitNormal(uniform=1.1), r"^LogitNormal\("),
        (lambda: LossSecondMoment(history=0), r"^LossSecondMoment\("),
        (lambda: LossSecondMoment(uniform=0), r"^LossSecondMoment\("),
        (lambda: LossSecondMoment(uniform=1.5), r"^LossSecondMoment\("),
        (
            lambda: Stratified()(Linear(), IndexedNoise(0, torch.arange(4))),
            "IndexedNoise does not know",
        ),
        (
            lambda: LossSecondMoment(3).load_state_dict(warmed_up([1.0, 2.0]).state_dict()),
            "history",
        ),
        (
            lambda: warmed_up([1.0, 2.0, 3.0])(Straight(2), evenly(4)),
            "cover 3 levels, but the schedule has 2",
        ),
    ],
)
def test_settings_sources_and_statistics_that_do_not_fit_are_refused(call, words):
    with pytest.raises(InputError, match=words):
        call()


# Uniform


@pytest.mark.parametrize("T", [21, 1024, 16384])
def test_a_number_close_to_one_gives_the_last_level_and_not_the_one_above(T):
    # The largest float32 below 1, and a float64 number that rounds to 1 in float32.
    u = torch.tensor([1 - 2.0**-24, 1 - 2.0**-30, 0.0], dtype=torch.float64).float()
    assert level_of(u, Linear(T)).tolist() == [T, T, 1]


def test_most_distributions_have_nothing_to_learn():
    timesteps: Timesteps = Uniform()
    timesteps.update(torch.tensor([1]), torch.tensor([1.0]))
    assert timesteps.state_dict() == {}
    timesteps.load_state_dict({})
