"""Predictor–corrector sampling, against the papers' steps and exact answers."""

import pytest
import torch
from scipy import stats

from ddpm_lightning.diffusion import VE, VP, Linear, Straight
from ddpm_lightning.diffusion.oracles import Gaussian, Mixture
from ddpm_lightning.diffusion.samplers import (
    DDIM,
    DDPM,
    Langevin,
    LangevinBySigma,
    LogSNRSpacing,
    PredictorCorrector,
    ReverseDiffusion,
    UniformSpacing,
)
from ddpm_lightning.errors import InputError
from tests.core import keyed, normal

WEIGHTS = torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64)
MEANS = torch.tensor([-1.2, 0.3, 1.1], dtype=torch.float64)
STDS = torch.tensor([0.15, 0.3, 0.1], dtype=torch.float64)


def three_peaks(schedule):
    return Mixture(schedule, MEANS[:, None], STDS**2, WEIGHTS)


def distance(samples):
    """Largest distance of the samples' distribution function from the exact one."""

    def below(x):
        parts = zip(WEIGHTS.numpy(), MEANS.numpy(), STDS.numpy(), strict=True)
        return sum(weight * stats.norm.cdf(x, mean, std) for weight, mean, std in parts)

    return stats.kstest(samples.flatten().numpy(), below).statistic


def chance(n):
    """The distance that n exact samples exceed once in 1,000 times (Kolmogorov, Smirnov)."""
    return 1.95 / n**0.5


# The steps


def test_reverse_diffusion_is_the_papers_step_where_variance_is_preserved():
    schedule = Linear()
    x, z = normal(4, 2), normal(4, 2, seed=1)
    oracle = Gaussian(schedule, torch.zeros(2), 0.3 * torch.eye(2))
    prediction = oracle(x, 400)
    beta = 1 - (schedule.alpha[400] / schedule.alpha[399]) ** 2
    score = -prediction.eps / schedule.sigma[400]
    expected = (2 - (1 - beta).sqrt()) * x + beta * score + beta.sqrt() * z  # algorithm 3
    step = ReverseDiffusion().step(prediction, 399, lambda: z)
    torch.testing.assert_close(step, expected, rtol=1e-9, atol=1e-9)


def test_reverse_diffusion_is_the_papers_step_where_variance_explodes():
    schedule = VE()
    x, z = normal(4, 2), normal(4, 2, seed=1)
    prediction = Gaussian(schedule, torch.zeros(2), 0.3 * torch.eye(2))(x, 400)
    difference = schedule.sigma[400] ** 2 - schedule.sigma[399] ** 2
    expected = x - difference * prediction.eps / schedule.sigma[400] + difference.sqrt() * z
    step = ReverseDiffusion().step(prediction, 399, lambda: z)  # algorithm 2
    torch.testing.assert_close(step, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", [Linear(), VE()], ids=["vp", "ve"])
def test_langevin_is_the_papers_step_a_sample(schedule):
    x, z = normal(3, 6, 8), normal(3, 6, 8, seed=1)
    oracle = Gaussian(schedule, torch.zeros(6, 8), 0.3 * torch.eye(48))
    prediction = oracle(x, 400)
    score = -prediction.eps / schedule.sigma[400]
    kept = (schedule.alpha[400] / schedule.alpha[399]) ** 2  # 1 − beta, or 1
    rows = []
    for g, noise, place in zip(score, z, x, strict=True):
        size = 2 * kept * (0.2 * noise.norm() / g.norm()) ** 2  # algorithms 4 and 5
        rows.append(place + size * g + (2 * size).sqrt() * noise)
    step = Langevin(0.2).step(prediction, z)
    torch.testing.assert_close(step, torch.stack(rows), rtol=1e-6, atol=1e-9)


def test_by_sigma_is_langevin_where_data_is_one_point():
    schedule = VE()
    oracle = Gaussian(schedule, torch.zeros(6, 8), torch.zeros(48, 48))
    z = normal(3, 6, 8)
    prediction = oracle(schedule.level(400).sigma * z, 400)  # then the score is −z/sigma
    steps = [kind(0.1).step(prediction, z) for kind in (Langevin, LangevinBySigma)]
    torch.testing.assert_close(*steps, rtol=1e-5, atol=1e-9)


def test_each_step_predicts_and_then_corrects_at_the_level_it_led_to():
    oracle, x = three_peaks(VP(20)), normal(2, 1)
    corrector = LangevinBySigma(0.1, steps=2)
    states = list(PredictorCorrector(2, DDPM(), corrector).trajectory(oracle, x, noise=keyed))
    assert [state.t for state in states] == [20, 10, 0]
    y = DDPM().step(oracle(x, 20), 10, lambda: keyed(1, (1,)))
    for draw in (2, 3):
        y = corrector.step(oracle(y, 10), keyed(draw, (1,)))
    torch.testing.assert_close(states[1].x_t, y)
    torch.testing.assert_close(states[2].x_t, oracle(y, 10).x0)


def test_without_a_corrector_it_is_the_predictor():
    oracle, x = three_peaks(Linear()), normal(2, 1)
    alone = DDPM(20, spacing=LogSNRSpacing())(oracle, x, noise=keyed)
    same = PredictorCorrector(20, DDPM(), None, LogSNRSpacing())(oracle, x, noise=keyed)
    torch.testing.assert_close(same, alone)


# Where it ends


@pytest.mark.parametrize("predictor", [ReverseDiffusion(), DDPM(), DDIM()])
@pytest.mark.parametrize("schedule", [VP(), VE(sigma_max=20.0)], ids=["vp", "ve"])
def test_correction_brings_few_steps_closer_to_the_data(schedule, predictor):
    n = 3000
    torch.manual_seed(0)
    oracle, x = three_peaks(schedule), schedule.prior_std * normal(n, 1)
    corrector = LangevinBySigma(0.3, steps=4)
    found = [
        distance(PredictorCorrector(15, predictor, kind, LogSNRSpacing())(oracle, x))
        for kind in (None, corrector)
    ]
    assert found[1] < 0.6 * found[0]


@pytest.mark.parametrize("schedule", [VP(), VE(sigma_max=20.0)], ids=["vp", "ve"])
def test_many_steps_end_in_the_mixture(schedule):
    n = 4000
    torch.manual_seed(0)
    sampler = PredictorCorrector(150, corrector=LangevinBySigma(), spacing=LogSNRSpacing())
    samples = sampler(three_peaks(schedule), schedule.prior_std * normal(n, 1))
    assert distance(samples) < chance(n)


def test_with_the_papers_norms_shares_and_widths_are_right_in_many_dimensions():
    n, d = 1000, 192
    torch.manual_seed(0)
    means = torch.stack([-torch.ones(d), 0.5 * torch.ones(d)])
    oracle = Mixture(VP(), means, torch.tensor([0.09, 0.04]), torch.tensor([0.25, 0.75]))
    sampler = PredictorCorrector(100, spacing=LogSNRSpacing())
    samples = sampler(oracle, normal(n, d))
    first = samples.mean(1) < -0.25
    assert abs(float(first.double().mean()) - 0.25) < 4 * (0.25 * 0.75 / n) ** 0.5
    # Langevin's steps, not infinitely small, widen a Gaussian by 1/(1 − r²), r = 0.16, and a
    # little more.
    assert float(samples[first].std()) == pytest.approx(0.3, rel=0.04)
    assert float(samples[~first].std()) == pytest.approx(0.2, rel=0.04)


# Mistakes


def test_norms_of_few_values_are_refused_with_what_to_take():
    with pytest.raises(InputError, match=r"--sampler.corrector LangevinBySigma"):
        PredictorCorrector(5)(three_peaks(VP()), normal(2, 1))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PredictorCorrector(predictor=DDIM(10)), "has steps of its own"),
        (lambda: PredictorCorrector(predictor=DDPM(spacing=LogSNRSpacing())), "has spacing"),
        (lambda: Langevin(snr=0), "snr"),
        (lambda: LangevinBySigma(steps=0), "steps"),
    ],
)
def test_settings_that_do_nothing_or_harm_are_refused(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_it_starts_from_noise_without_data_and_names_its_files():
    sampler = PredictorCorrector(30, DDIM(), LangevinBySigma(0.3), UniformSpacing())
    samples = sampler(three_peaks(Straight()), normal(50, 1))
    assert bool(samples.isfinite().all())
    parts = "predictorddim", "correctorlangevinbysigma-snr0.3"
    assert sampler.tag(Straight()) == "_".join(["predictorcorrector30", *parts])
