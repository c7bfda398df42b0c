"""What the network predicts and how its error is weighted: one affine form, checked by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ddpm_lightning.diffusion.denoiser import Denoiser
from ddpm_lightning.diffusion.objectives import MSE, EpsMSE, MinSNR, NoisedBatch, Plain
from ddpm_lightning.diffusion.parameterizations import X0, Eps, V
from ddpm_lightning.diffusion.schedules import Cosine, Linear, Schedule
from ddpm_lightning.errors import InputError


class ZeroTerminalSNR(Schedule):
    """alpha = cos, sigma = sin of an angle from 0 to π/2: x_T is pure noise."""

    def __init__(self, T: int = 100) -> None:
        angle = torch.linspace(0, torch.pi / 2, T + 1, dtype=torch.float64)
        alpha = angle.cos()
        alpha[-1] = 0
        super().__init__(alpha, angle.sin())


class Straight(Schedule):
    """alpha = 1 − t/T, sigma = t/T: variance is not preserved."""

    def __init__(self, T: int = 100) -> None:
        rising = torch.linspace(0, 0.99, T + 1, dtype=torch.float64)
        super().__init__(1 - rising, rising)


class Says(nn.Module):
    """A network whose output is given."""

    def __init__(self, output: torch.Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, x, c_noise, y=None):
        return self.output


PARAMETERIZATIONS = [Eps(), X0(), V()]
SCHEDULES = [Linear(), Cosine(), Straight()]
values = st.floats(-3, 3)


def column(*numbers):
    return torch.tensor(numbers, dtype=torch.float64).view(-1, 1)


@st.composite
def levels(draw):
    schedule = draw(st.sampled_from(SCHEDULES))
    return schedule, draw(st.integers(1, schedule.T))


# Targets and predictions


@settings(deadline=None, max_examples=200)
@given(levels(), values, values)
def test_targets_are_eps_x0_and_v(level, x0, eps):
    schedule, t = level
    alpha, sigma = float(schedule.alpha[t]), float(schedule.sigma[t])
    expected = {Eps: eps, X0: x0, V: alpha * eps - sigma * x0}
    for parameterization in PARAMETERIZATIONS:
        target = parameterization.target(schedule, t, column(x0), column(eps))
        assert target.item() == pytest.approx(expected[type(parameterization)], abs=1e-9)


@settings(deadline=None, max_examples=200)
@given(levels(), values, values, st.sampled_from(PARAMETERIZATIONS))
def test_a_network_that_hits_its_target_recovers_x0_and_eps(level, x0, eps, parameterization):
    schedule, t = level
    x0, eps = column(x0), column(eps)
    target = parameterization.target(schedule, t, x0, eps)
    denoiser = Denoiser(Says(target), schedule, parameterization)
    prediction = denoiser(schedule.add_noise(x0, t, eps), t)
    assert prediction.x0.item() == pytest.approx(x0.item(), abs=1e-9)
    # Through x0 the digits of eps are those of sigma·eps: 1e-16/sigma is left.
    assert prediction.eps.item() == pytest.approx(eps.item(), abs=1e-9)


@settings(deadline=None, max_examples=200)
@given(levels(), values, values, st.sampled_from(PARAMETERIZATIONS))
def test_output_to_x0_and_eps_and_back_is_the_identity(level, x_t, output, parameterization):
    schedule, t = level
    prediction = Denoiser(Says(column(output)), schedule, parameterization)(column(x_t), t)
    back = parameterization.target(schedule, t, prediction.x0, prediction.eps)
    assert back.item() == pytest.approx(output, abs=1e-9)


@settings(deadline=None, max_examples=200)
@given(levels(), values, values)
def test_eps_x0_and_v_networks_convert_into_each_other(level, x_t, output):
    # Any output of any one is an x0 and an eps, and those as targets of the others say the same.
    schedule, t = level
    for one in PARAMETERIZATIONS:
        told = Denoiser(Says(column(output)), schedule, one)(column(x_t), t)
        for other in PARAMETERIZATIONS:
            converted = other.target(schedule, t, told.x0, told.eps)
            same = Denoiser(Says(converted), schedule, other)(column(x_t), t)
            assert same.x0.item() == pytest.approx(told.x0.item(), rel=1e-8, abs=1e-8)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("schedule", [Linear(), Linear(4000), Cosine()])
def test_float32_targets_are_right_to_four_decimals_at_every_level(schedule, parameterization):
    t = torch.arange(1, schedule.T + 1)
    x0, eps = torch.randn(2, schedule.T, 4, dtype=torch.float64).unbind()
    exact = parameterization.target(schedule, t, x0, eps)
    single = parameterization.target(schedule, t, x0.float(), eps.float())
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single, exact, rtol=0, atol=3e-5)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS, ids=lambda p: type(p).__name__)
def test_coefficients_are_finite_at_every_level_of_the_cosine_schedule(parameterization):
    schedule = Cosine()
    x_t = torch.randn(schedule.T, 2)
    denoiser = Denoiser(Says(torch.ones(schedule.T, 2)), schedule, parameterization)
    prediction = denoiser(x_t, torch.arange(1, schedule.T + 1))
    assert prediction.x0.isfinite().all()
    assert prediction.eps.isfinite().all()


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_network_counts_levels_from_0_in_a_dtype_that_holds_them(parameterization, dtype):
    t = torch.tensor([1, 258, 1000])
    coefficients = parameterization.coefficients(Linear(), t, torch.zeros(3, 1, dtype=dtype))
    assert coefficients.c_noise.tolist() == [0, 257, 999]
    assert coefficients.c_noise.dtype == torch.float32


# Zero terminal SNR


def test_eps_is_refused_at_zero_terminal_snr_with_the_fix_in_the_message():
    with pytest.raises(InputError, match="use V or X0"):
        Denoiser(Says(torch.zeros(1)), ZeroTerminalSNR(), Eps())


def test_eps_is_refused_where_alpha_vanishes_in_float32_only():
    schedule = Linear(beta_end=0.5, rescale=False)
    assert 0 < float(schedule.alpha[-1]) < 1e-60
    with pytest.raises(InputError, match="use V or X0"):
        Denoiser(Says(torch.zeros(1)), schedule, Eps())


@pytest.mark.parametrize("parameterization", [X0(), V()], ids=lambda p: type(p).__name__)
def test_x0_and_v_are_finite_at_zero_terminal_snr(parameterization):
    schedule = ZeroTerminalSNR()
    x0, eps = torch.randn(2, 1, 4).unbind()
    target = parameterization.target(schedule, schedule.T, x0, eps)
    denoiser = Denoiser(Says(target), schedule, parameterization)
    prediction = denoiser(schedule.add_noise(x0, schedule.T, eps), torch.tensor([schedule.T]))
    np.testing.assert_allclose(prediction.x0, x0, atol=1e-6)


# Weighted losses


def loss_of(prediction, batch, schedule, parameterization, weighting):
    """Per-sample loss of the network that predicts this x0, whatever its parameterization."""
    alpha, sigma = schedule.at(batch.t, batch.x0)
    eps = (batch.x_t - alpha * prediction) / sigma
    output = parameterization.target(schedule, batch.t, prediction, eps)
    denoiser = Denoiser(Says(output), schedule, parameterization)
    return MSE(weighting)(denoiser, batch)["loss"]


def noised(schedule, t, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x0, eps, error = torch.randn(3, len(t), 2, 3, dtype=dtype, generator=generator).unbind()
    batch = NoisedBatch(x0, eps, t, schedule.add_noise(x0, t, eps))
    return batch, x0 + 0.1 * error, 0.01 * error.square().flatten(1).mean(1)


def snr_of(schedule, t):
    return ((schedule.alpha / schedule.sigma) ** 2)[t]


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_eps_mse_weighs_the_error_of_x0_by_the_snr_whatever_is_predicted(
    schedule, parameterization
):
    t = torch.tensor([1, 2, 30, 60, schedule.T])
    batch, prediction, error = noised(schedule, t)
    loss = loss_of(prediction, batch, schedule, parameterization, EpsMSE())
    np.testing.assert_allclose(loss, snr_of(schedule, t) * error, rtol=1e-8)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_min_snr_weighs_the_error_of_x0_by_the_capped_snr_whatever_is_predicted(
    schedule, parameterization
):
    t = torch.tensor([1, 2, 30, 60, schedule.T])
    batch, prediction, error = noised(schedule, t)
    loss = loss_of(prediction, batch, schedule, parameterization, MinSNR(5.0))
    np.testing.assert_allclose(loss, snr_of(schedule, t).clamp(max=5) * error, rtol=1e-8)


def test_min_snr_is_the_smaller_of_snr_and_gamma():
    schedule, t = Linear(), torch.tensor([1, 1000])  # SNR 9999 and 4e-5
    weight = MinSNR(gamma=3.0)(schedule, t, 1.0, torch.zeros(2, 1))
    np.testing.assert_allclose(weight.flatten(), [3.0, 4.036e-5], rtol=1e-3)


def test_min_snrs_cap_defaults_to_the_papers_5():
    weight = MinSNR()(Linear(), torch.tensor([1]), 1.0, torch.zeros(1, 1))
    assert weight.item() == 5


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS, ids=lambda p: type(p).__name__)
def test_eps_mse_is_the_unweighted_error_of_eps_whatever_is_predicted(parameterization):
    # DDPM eq. 14, the paper's L_simple.
    schedule, t = Linear(), torch.tensor([1, 10, 500, 1000])
    batch, prediction, _ = noised(schedule, t)
    alpha, sigma = schedule.at(t, batch.x0)
    eps_hat = (batch.x_t - alpha * prediction) / sigma
    expected = (eps_hat - batch.eps).square().flatten(1).mean(1)
    loss = loss_of(prediction, batch, schedule, parameterization, EpsMSE())
    np.testing.assert_allclose(loss, expected, rtol=1e-8)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS, ids=lambda p: type(p).__name__)
def test_plain_is_the_unweighted_error_of_the_networks_output(parameterization):
    schedule, t = Cosine(), torch.tensor([1, 10, 500, 1000])
    batch, _, _ = noised(schedule, t)
    alpha, sigma = schedule.at(t, batch.x0)
    output = torch.full_like(batch.x0, 0.3)
    target = {Eps: batch.eps, X0: batch.x0, V: alpha * batch.eps - sigma * batch.x0}
    expected = (output - target[type(parameterization)]).square().flatten(1).mean(1)
    loss = MSE(Plain())(Denoiser(Says(output), schedule, parameterization), batch)["loss"]
    np.testing.assert_allclose(loss, expected, rtol=1e-9)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("weighting", [Plain(), EpsMSE(), MinSNR()])
def test_float32_losses_are_finite_at_every_level_of_the_cosine_schedule(
    parameterization, weighting
):
    schedule = Cosine()
    t = torch.arange(1, schedule.T + 1)
    batch, _, _ = noised(schedule, t, torch.float32)
    denoiser = Denoiser(Says(torch.zeros_like(batch.x0)), schedule, parameterization)
    loss = MSE(weighting)(denoiser, batch)["loss"]
    assert loss.shape == (schedule.T,)
    assert loss.isfinite().all()


@pytest.mark.parametrize("weighting", [Plain(), EpsMSE(), MinSNR()])
def test_losses_are_finite_at_zero_terminal_snr(weighting):
    schedule = ZeroTerminalSNR()
    batch, _, _ = noised(schedule, torch.tensor([schedule.T]), torch.float32)
    denoiser = Denoiser(Says(torch.zeros_like(batch.x0)), schedule, V())
    assert MSE(weighting)(denoiser, batch)["loss"].isfinite().all()
