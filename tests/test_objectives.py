"""Losses and their weights over noise levels, against the papers' formulas in numpy."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from ddpm_lightning.configurable import build
from ddpm_lightning.diffusion.bound import bound_term
from ddpm_lightning.diffusion.decoders import DiscretizedGaussian, GaussianDecoder
from ddpm_lightning.diffusion.denoiser import Denoiser
from ddpm_lightning.diffusion.losses import L1, MSE, Huber, Hybrid, NoisedBatch, VariationalBound
from ddpm_lightning.diffusion.parameterizations import (
    X0,
    EDMPreconditioning,
    Eps,
    MeanShift,
    PosteriorMean,
    V,
    Velocity,
)
from ddpm_lightning.diffusion.prediction import FixedLarge, FixedSmall
from ddpm_lightning.diffusion.schedules import (
    Cosine,
    Karras,
    Linear,
    SohlDickstein,
    Straight,
    Table,
    ZeroTerminalSNR,
)
from ddpm_lightning.diffusion.variances import LearnedDiagonal, LearnedRange
from ddpm_lightning.diffusion.weightings import EDM, P2, VLB, EpsMSE, MinSNR, Plain
from ddpm_lightning.errors import InputError
from tests.core import (
    PARAMETERIZATIONS,
    Says,
    SeenDtypes,
    named,
    noised,
    predicting,
)

WEIGHTINGS = [Plain(), EpsMSE(), MinSNR(), P2(), EDM(), VLB()]


# Weightings


@st.composite
def levels_of_any_schedule(draw):
    """A level of a random schedule of three, SNR from 1e6 down to 1e-4, any x_t's variance."""
    log_snr = sorted(draw(st.lists(st.floats(-9, 14), min_size=3, max_size=3, unique=True)))[::-1]
    assume(min(log_snr[0] - log_snr[1], log_snr[1] - log_snr[2]) > 0.01)
    length, snr = draw(st.floats(0.3, 3)), np.exp(log_snr)
    alpha, sigma = length * np.sqrt(snr / (1 + snr)), length * np.sqrt(1 / (1 + snr))
    return Table([1, *alpha.tolist()], [0, *sigma.tolist()]), draw(st.integers(1, 3))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*not noise")
@settings(deadline=None, max_examples=100)
@given(levels_of_any_schedule(), st.floats(0.05, 50), st.floats(0, 3), st.floats(0.1, 3))
def test_a_weight_is_the_same_for_every_parameterization(level, cap, gamma, data):
    schedule, t = level
    batch, x0_hat, error = noised(schedule, torch.tensor([t]))
    snr = float((schedule.alpha[t] / schedule.sigma[t]) ** 2)
    expected = {
        EpsMSE(): snr,
        MinSNR(): min(snr, 5),
        MinSNR(cap): min(snr, cap),
        P2(): snr / (1 + snr),
        P2(0.7, gamma): snr / (0.7 + snr) ** gamma,
        EDM(): snr + 1 / 0.5**2,
        EDM(data): snr + 1 / data**2,
    }
    for parameterization in PARAMETERIZATIONS:
        denoiser = predicting(x0_hat, batch, schedule, parameterization)
        for weighting, weight in expected.items():
            loss = MSE(weighting)(denoiser, batch)["loss"].item()
            assert loss == pytest.approx(weight * error.item(), rel=1e-6)


def weights(weighting, schedule, t, dtype=torch.float32):
    return weighting(schedule.level(torch.as_tensor(t), torch.zeros(1, 1, dtype=dtype)), 1.0)


@pytest.mark.parametrize("schedule", [Linear(4000), Cosine(4000)], ids=named)
def test_the_bounds_weight_keeps_its_digits_in_float32(schedule):
    t = torch.arange(1, 4001)
    single, double = (weights(VLB(), schedule, t, x) for x in (torch.float32, torch.float64))
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single, double, rtol=2e-6)


@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=named)
@pytest.mark.parametrize(
    ("schedule", "parameterization"),
    [
        (Linear(4000), Eps()),
        (Cosine(), Eps()),
        (Cosine(), X0()),
        (Cosine(), PosteriorMean()),
        (ZeroTerminalSNR(Cosine()), V()),
        (Straight(), Velocity()),
        (Karras(), EDMPreconditioning()),
        (SohlDickstein(), MeanShift()),
    ],
    ids=named,
)
def test_float32_losses_and_gradients_are_finite_at_every_level(
    weighting, schedule, parameterization
):
    batch, _, _ = noised(schedule, torch.arange(1, schedule.T + 1), torch.float32)
    denoiser = Denoiser(Says(nn.Parameter(torch.zeros_like(batch.x0))), schedule, parameterization)
    with SeenDtypes() as seen:
        terms = MSE(weighting)(denoiser, batch)["loss"]
        terms.sum().backward()
    assert seen.float64 == set()
    assert terms.shape == (schedule.T,)
    assert terms.dtype == torch.float32
    assert terms.isfinite().all()
    assert denoiser.net.output.grad.isfinite().all()


# Errors


def error_of(objective, error):
    """Loss of a network whose output is off by this, one row for each."""
    error = torch.tensor(error, dtype=torch.float64).view(-1, 1, 1)
    schedule, t = Linear(), torch.full((len(error),), 500)
    x0, eps = torch.randn(2, len(error), 1, 4, dtype=torch.float64).unbind()
    batch = NoisedBatch(x0, eps, t, schedule.add_noise(x0, t, eps))
    return objective(Denoiser(Says(eps + error), schedule, Eps()), batch)["loss"].tolist()


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (L1(), [3, 1, 0.05, 0, 0.5, 2]),
        (Huber(1.0), [2.5, 0.5, 0.00125, 0, 0.125, 1.5]),
        (Huber(0.1), [0.295, 0.095, 0.00125, 0, 0.045, 0.195]),
    ],
)
def test_l1_is_linear_and_huber_quadratic_up_to_delta(objective, expected):
    errors = [-3.0, -1.0, -0.05, 0.0, 0.5, 2.0]
    assert error_of(objective, errors) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("objective", [MSE, L1, Huber])
def test_the_weight_is_a_factor_on_every_error(objective):
    snr = float((Linear().alpha[500] / Linear().sigma[500]) ** 2)
    c_out2 = 1 / snr
    plain = error_of(objective(), [0.3, 2.0])
    weighted = error_of(objective(weighting=MinSNR(0.01)), [0.3, 2.0])
    np.testing.assert_allclose(weighted, np.array(plain) * min(snr, 0.01) * c_out2, rtol=1e-9)


# The variational bound


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS, ids=named)
def test_with_a_fixed_small_variance_the_bound_is_t_times_the_weighted_error(parameterization):
    schedule = Linear(100)
    t = torch.arange(1, 101)
    batch, x0_hat, _ = noised(schedule, t)
    denoiser = predicting(x0_hat, batch, schedule, parameterization)
    bound = VariationalBound(GaussianDecoder())(denoiser, batch)["loss"].detach()
    weighted = 100 * MSE(VLB())(denoiser, batch)["loss"].detach()
    np.testing.assert_allclose(bound[1:], weighted[1:], rtol=1e-7)
    # The decoder's normalisation is all that is left over at t = 1.
    norm = bound[0] - weighted[0]
    variance = denoiser.variance.decoder(denoiser(batch.x_t, t))
    assert float(norm) == pytest.approx(50 * np.log(2 * np.pi * variance), rel=1e-6)


def test_the_bound_is_in_bits_for_images_by_default():
    schedule, t = Linear(100), torch.tensor([2, 50, 100])
    batch, x0_hat, _ = noised(schedule, t)
    denoiser = predicting(x0_hat, batch, schedule, V())
    bits, nats = (
        VariationalBound(*decoder)(denoiser, batch)["loss"].detach()
        for decoder in ((), (GaussianDecoder(),))
    )
    np.testing.assert_allclose(bits * np.log(2), nats, rtol=1e-12)


@pytest.mark.parametrize("variance", [FixedLarge(), LearnedRange(), LearnedDiagonal()])
def test_the_bound_trains_mean_and_variance_at_every_level(variance):
    schedule, t = SohlDickstein(), torch.arange(1, 41)
    batch, x0_hat, _ = noised(schedule, t, torch.float32)
    extra = torch.zeros_like(x0_hat) if variance.extra_channels(1) else None
    denoiser = predicting(x0_hat, batch, schedule, Eps(), variance, extra)
    # Not the discretised decoder: it is content with any mean beyond the outermost bin.
    VariationalBound(GaussianDecoder())(denoiser, batch)["loss"].sum().backward()
    gradient = denoiser.net.output.grad
    assert gradient.isfinite().all()
    assert (gradient != 0).flatten(1).all()


# The hybrid


def hybrid_setting(variance=LearnedRange(), dtype=torch.float64):
    schedule, t = Linear(50), torch.tensor([1, 2, 25, 50])
    batch, x0_hat, _ = noised(schedule, t, dtype)
    extra = torch.full_like(x0_hat, 0.2)
    return predicting(x0_hat, batch, schedule, Eps(), variance, extra), batch


@pytest.mark.parametrize("variance", [LearnedRange(), LearnedDiagonal()])
def test_in_the_hybrid_the_mean_learns_from_simple_and_the_variance_from_the_bound(variance):
    denoiser, batch = hybrid_setting(variance)
    gradients = []
    for objective in (MSE(), VariationalBound(), Hybrid()):
        denoiser.net.output.grad = None
        objective(denoiser, batch)["loss"].sum().backward()
        gradients.append(denoiser.net.output.grad)
    simple, bound, hybrid = gradients
    assert (bound[:, :2] != 0).all()
    np.testing.assert_allclose(hybrid[:, :2], simple[:, :2], rtol=1e-12)
    np.testing.assert_allclose(hybrid[:, 2:], 0.001 * bound[:, 2:], rtol=1e-12, atol=1e-15)


def test_the_hybrid_is_the_sum_it_logs_of_one_call_of_the_network():
    denoiser, batch = hybrid_setting()
    calls = []
    denoiser.net.register_forward_hook(lambda *_: calls.append(1))
    terms = Hybrid(MSE(MinSNR()), weight=0.01)(denoiser, batch)
    assert len(calls) == 1
    assert list(terms) == ["loss", "simple", "vlb"]
    torch.testing.assert_close(terms["loss"], terms["simple"] + 0.01 * terms["vlb"])
    torch.testing.assert_close(terms["simple"], MSE(MinSNR())(denoiser, batch)["loss"])
    prediction = denoiser(batch.x_t, batch.t)
    expected = 50 * bound_term(prediction, batch.x0, DiscretizedGaussian())
    torch.testing.assert_close(terms["vlb"], expected)


@pytest.mark.parametrize(
    ("objective", "variance", "words"),
    [
        (Hybrid(), FixedSmall(), "FixedSmall learns nothing; use var"),
        (Hybrid(), FixedLarge(), "FixedLarge learns nothing; use var"),
        *(
            (
                objective,
                variance,
                f"{named(objective)} leaves what {named(variance)} learns untrained; use the "
                "objective Hybrid or VariationalB",
            )
            for objective in (MSE(), L1(), Huber())
            for variance in (LearnedRange(), LearnedDiagonal())
        ),
    ],
)
def test_an_objective_that_does_not_suit_the_variance_is_an_error_with_the_fix(
    objective, variance, words
):
    denoiser = Denoiser(Says(torch.zeros(1)), Linear(), Eps(), variance)
    with pytest.raises(InputError, match=words):
        objective.check(denoiser)
    (MSE() if isinstance(objective, Hybrid) else Hybrid(objective)).check(denoiser)
    VariationalBound().check(denoiser)


@pytest.mark.parametrize("variance", [LearnedRange(), LearnedDiagonal()])
@pytest.mark.parametrize("objective", [Hybrid(), VariationalBound(GaussianDecoder())])
def test_no_float64_tensor_appears_in_a_float32_step_of_the_bound(objective, variance):
    denoiser, batch = hybrid_setting(variance, torch.float32)
    with SeenDtypes() as seen:
        objective(denoiser, batch)["loss"].mean().backward()
    assert seen.float64 == set()


@pytest.mark.parametrize(
    "objective",
    [
        L1(EDM(0.3)),
        Huber(0.1, P2(2, 0.5)),
        MSE(VLB()),
        VariationalBound(GaussianDecoder()),
        Hybrid(L1(), 0.1, DiscretizedGaussian(17)),
    ],
    ids=named,
)
def test_an_objective_is_rebuilt_from_its_description(objective):
    assert build(objective.describe()).describe() == objective.describe()
