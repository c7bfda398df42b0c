"""What the network predicts and how its error is weighted: one affine form, checked by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm_lightning.diffusion.denoiser import Denoiser
from ddpm_lightning.diffusion.losses import MSE
from ddpm_lightning.diffusion.parameterizations import (
    X0,
    EDMPreconditioning,
    Eps,
    MeanShift,
    PosteriorMean,
    V,
    Velocity,
)
from ddpm_lightning.diffusion.schedules import (
    Cosine,
    Karras,
    Linear,
    SohlDickstein,
    Straight,
    Table,
    ZeroTerminalSNR,
)
from ddpm_lightning.diffusion.weightings import Plain
from ddpm_lightning.errors import InputError
from tests.core import PARAMETERIZATIONS, Says, named, noised

RISING = np.linspace(0, 0.99, 101)
ALMOST_STRAIGHT = Table((1 - RISING).tolist(), RISING.tolist())  # alpha_T > 0, so all are legal
SCHEDULES = [Linear(), Cosine(), ALMOST_STRAIGHT, Karras(100)]
SAFE_AT_ZERO_SNR = [X0(), V(), PosteriorMean(), MeanShift(), Velocity()]
values = st.floats(-3, 3)


def column(*numbers):
    return torch.tensor(numbers, dtype=torch.float64).view(-1, 1)


def coefficients(parameterization, schedule, t, like=None):
    return parameterization.coefficients(schedule.level(t, like))


def target(parameterization, schedule, t, x0, eps):
    level = schedule.level(t, like=x0)
    return parameterization.target(level, parameterization.coefficients(level), x0, eps)


@st.composite
def levels(draw):
    schedule = draw(st.sampled_from(SCHEDULES))
    return schedule, draw(st.integers(1, schedule.T))


def targets(schedule, t, x0, eps):
    """What each network should say, by its paper's own definition, in numpy."""
    alpha, sigma = schedule.alpha.numpy(), schedule.sigma.numpy()
    s, x_t = t - 1, alpha[t] * x0 + sigma[t] * eps
    gain = alpha[t] / alpha[s] * sigma[s] ** 2 / sigma[t] ** 2
    mean = (alpha[s] - gain * alpha[t]) * x0 + gain * x_t
    std = np.sqrt(sigma[t] ** 2 - (alpha[t] / alpha[s] * sigma[s]) ** 2)
    noise, data = sigma[t] / alpha[t], 0.7  # EDM's sigma and sigma_data
    c_skip = data**2 / (noise**2 + data**2)
    c_out = noise * data / np.sqrt(noise**2 + data**2)
    return {
        Eps: eps,
        X0: x0,
        V: alpha[t] * eps - sigma[t] * x0,
        PosteriorMean: mean,
        MeanShift: std * alpha[s] * (x0 - alpha[t] / sigma[t] * eps),
        Velocity: eps - x0,
        EDMPreconditioning: (x0 - c_skip * (x_t / alpha[t])) / c_out,
    }


# Targets and predictions


@settings(deadline=None, max_examples=200)
@given(levels(), values, values)
def test_targets_are_what_each_network_is_defined_to_predict(level, x0, eps):
    schedule, t = level
    expected = targets(schedule, t, x0, eps)
    for parameterization in PARAMETERIZATIONS:
        ours = target(parameterization, schedule, t, column(x0), column(eps))
        assert ours.item() == pytest.approx(expected[type(parameterization)], abs=1e-9)


@pytest.mark.parametrize("schedule", [SohlDickstein(), Linear(), Cosine()])
def test_mean_shift_is_added_to_the_forward_mean_in_forward_deviations(schedule):
    # DDPM eq. 7 with Sohl-Dickstein's mean, in betas.
    t = np.arange(2, schedule.T + 1)
    alpha_bar = schedule.alpha.numpy() ** 2
    beta, before, x0, x_t = 1 - alpha_bar[t] / alpha_bar[t - 1], alpha_bar[t - 1], 0.7, -0.4
    mean = np.sqrt(before) * beta * x0 + np.sqrt(1 - beta) * (1 - before) * x_t
    shift = (mean / (1 - alpha_bar[t]) - np.sqrt(1 - beta) * x_t) / np.sqrt(beta)
    denoiser = Denoiser(Says(column(*shift)), schedule, MeanShift())
    prediction = denoiser(torch.full((len(t), 1), x_t, dtype=torch.float64), torch.from_numpy(t))
    np.testing.assert_allclose(prediction.x0[:, 0], x0, rtol=1e-7)


@settings(deadline=None, max_examples=200)
@given(levels(), values, values, st.sampled_from(PARAMETERIZATIONS))
def test_a_network_that_hits_its_target_recovers_x0_and_eps(level, x0, eps, parameterization):
    schedule, t = level
    x0, eps = column(x0), column(eps)
    output = target(parameterization, schedule, t, x0, eps)
    denoiser = Denoiser(Says(output), schedule, parameterization)
    prediction = denoiser(schedule.add_noise(x0, t, eps), t)
    assert prediction.x0.item() == pytest.approx(x0.item(), abs=1e-9)
    # Through x0 the digits of eps are those of sigma·eps: 1e-16/sigma is left.
    assert prediction.eps.item() == pytest.approx(eps.item(), abs=1e-9)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS, ids=named)
@pytest.mark.parametrize("schedule", [Linear(4000), Cosine()], ids=named)
def test_float32_targets_are_right_to_four_decimals_at_every_level(schedule, parameterization):
    t = torch.arange(1, schedule.T + 1)
    x0, eps = torch.randn(2, schedule.T, 4, dtype=torch.float64).unbind()
    exact = target(parameterization, schedule, t, x0, eps)
    single = target(parameterization, schedule, t, x0.float(), eps.float())
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single, exact, rtol=0, atol=3e-5)


# EDM's preconditioning


@pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
def test_edm_tells_the_network_a_quarter_of_the_log_of_the_noise_level(schedule):
    t = torch.tensor([1, 2, 50, 100])
    expected = np.log((schedule.sigma[t] / schedule.alpha[t]).numpy()) / 4
    for like, rtol in (
        (torch.zeros(4, 1, 2), 1e-5),
        (torch.zeros(4, 1, dtype=torch.float64), 1e-12),
    ):
        c_noise = coefficients(EDMPreconditioning(), schedule, t, like).c_noise
        assert c_noise.shape == (4,)
        assert c_noise.dtype == like.dtype
        np.testing.assert_allclose(c_noise, expected, rtol=rtol, atol=1e-7)
    alone = coefficients(EDMPreconditioning(), schedule, 50, like).c_noise
    assert alone == pytest.approx(expected[2], rel=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
def test_edm_gives_inputs_and_targets_unit_variance_at_every_level(schedule):
    # Both are linear in x_0 (variance sigma_data²) and eps (variance 1).
    edm, like = EDMPreconditioning(0.5), torch.zeros(1, 1, dtype=torch.float64)
    for t in range(1, schedule.T + 1, 9):
        c_in = coefficients(edm, schedule, t, like).c_in
        for of_x0, of_eps in (
            (c_in * schedule.alpha[t], c_in * schedule.sigma[t]),
            (
                target(edm, schedule, t, column(1), column(0)),
                target(edm, schedule, t, column(0), column(1)),
            ),
        ):
            assert float((0.5 * of_x0) ** 2 + of_eps**2) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("parameterization", [EDMPreconditioning(), Velocity()], ids=named)
@pytest.mark.parametrize("schedule", [Karras(), Straight(4000)], ids=named)
def test_float32_targets_keep_their_digits_where_there_is_hardly_any_noise(
    schedule, parameterization
):
    t, generator = torch.arange(1, 21), torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 20, 4, dtype=torch.float64, generator=generator).float().unbind()
    exact = target(parameterization, schedule, t, x0.double(), eps.double())
    np.testing.assert_allclose(
        target(parameterization, schedule, t, x0, eps), exact, rtol=1e-5, atol=1e-6
    )


# Zero terminal SNR


@pytest.mark.parametrize("parameterization", [Eps(), EDMPreconditioning()])
@pytest.mark.parametrize("schedule", [ZeroTerminalSNR(Cosine(50)), Straight(50)])
def test_a_refusal_names_both_parts_the_level_and_the_fix(parameterization, schedule):
    names = rf"{type(parameterization).__name__} .* {type(schedule).__name__}: c_\w+ is not"
    with pytest.raises(InputError, match=names + r".* level 50, .*alpha = 0;.*V or X0"):
        parameterization.check(schedule)


def vanishing():
    """A schedule whose alpha vanishes in float32 only."""
    schedule = Linear(beta_end=0.5, rescale=False)
    assert 0 < float(schedule.alpha[-1]) < 1e-60
    return schedule


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Eps().check(Table([1, 1e-20], [0, 1])), "c_skip is not finite at level 1"),
        (lambda: Denoiser(Says(torch.zeros(1)), vanishing(), Eps()), "use V or X0"),
    ],
)
def test_what_has_no_finite_coefficients_is_refused(call, words):
    with pytest.raises(InputError, match=words):
        call()


@pytest.mark.parametrize("parameterization", SAFE_AT_ZERO_SNR, ids=named)
@pytest.mark.parametrize("schedule", [ZeroTerminalSNR(Cosine(100)), Straight(100)])
def test_the_others_recover_x0_at_zero_terminal_snr(parameterization, schedule):
    x0, eps = torch.randn(2, 1, 4).unbind()
    output = target(parameterization, schedule, schedule.T, x0, eps)
    denoiser = Denoiser(Says(output), schedule, parameterization)
    prediction = denoiser(schedule.add_noise(x0, schedule.T, eps), torch.tensor([schedule.T]))
    np.testing.assert_allclose(prediction.x0, x0, atol=1e-6)


# Losses


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS, ids=named)
def test_plain_is_the_unweighted_error_of_the_networks_output(parameterization):
    schedule, t = Cosine(), torch.tensor([1, 10, 500, 1000])
    batch, _, _ = noised(schedule, t)
    denoiser = Denoiser(Says(torch.full_like(batch.x0, 0.3)), schedule, parameterization)
    rows = zip(t.tolist(), batch.x0.numpy(), batch.eps.numpy(), strict=True)
    expected = [
        np.mean((0.3 - targets(schedule, *row)[type(parameterization)]) ** 2) for row in rows
    ]
    loss = MSE(Plain())(denoiser, batch)["loss"].detach()
    np.testing.assert_allclose(loss, expected, rtol=1e-9)
