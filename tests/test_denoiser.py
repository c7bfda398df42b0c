"""From network output to a prediction: precision, clipping, learned variance, guidance."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ddpm_lightning.batch import Condition, DataSpec
from ddpm_lightning.diffusion.denoiser import Denoiser
from ddpm_lightning.diffusion.guidance import Guidance, Guided, guide
from ddpm_lightning.diffusion.levels import Level
from ddpm_lightning.diffusion.losses import MSE, NoisedBatch
from ddpm_lightning.diffusion.parameterizations import X0, Eps, V
from ddpm_lightning.diffusion.prediction import FixedLarge, FixedSmall, Prediction, Variance
from ddpm_lightning.diffusion.samplers import (
    DDIM,
    DDPM,
    LMS,
    DPMSolverPP,
    DPMSolverPPSDE,
    Euler,
    Heun,
    KarrasSpacing,
    UniPC,
)
from ddpm_lightning.diffusion.schedules import Cosine, Linear
from ddpm_lightning.diffusion.weightings import MinSNR, Plain
from ddpm_lightning.errors import InputError
from ddpm_lightning.networks import Network, UNet
from ddpm_lightning.randomness import IndexedNoise
from tests.core import SeenDtypes, named, normal


class Recorder(Network):
    """Keeps what it was given and answers with a function of all of it."""

    def __init__(self, extra_channels: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.extra_channels = extra_channels
        self.calls: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def forward(self, x, c_noise, condition=Condition()):
        self.calls.append((x, c_noise, condition))
        rows = (-1,) + (1,) * (x.ndim - 1)
        label = -1 if condition.label is None else condition.label
        out = self.weight * torch.tanh(x + (label + c_noise / 1000).to(x.dtype).view(rows))
        extra = [out[:, :1] * (i + 2) for i in range(self.extra_channels)]
        return torch.cat([out, *extra], dim=1)


class LearnedVariance(Variance):
    """Variance straight from extra channels, one for each data channel."""

    def extra_channels(self, channels: int) -> int:
        return channels

    def __call__(self, prediction: Prediction, s: Level) -> Tensor:
        return prediction.extra.square()


def tiny_unet() -> UNet:
    data = DataSpec((1, 8, 8), num_classes=3)
    sizes = {"channels": 8, "multipliers": [1, 2], "blocks": 1, "attention_levels": [1]}
    return UNet(data, 1, **sizes, groups=4).eval()


def images(*shape):
    return normal(*shape).float()


# The prediction


@pytest.mark.parametrize("parameterization", [Eps(), X0(), V()], ids=named)
def test_x0_is_read_off_the_network_by_the_papers_formula(parameterization):
    schedule, t, x_t = Linear(), 700, normal(3, 2, 4)
    output = Recorder()(x_t, torch.full((3,), 699.0, dtype=torch.float64)).detach()
    alpha_bar = np.prod(1 - np.linspace(1e-4, 0.02, 1000)[:700])
    alpha, sigma = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    expected = {
        Eps: (x_t - sigma * output) / alpha,
        X0: output,
        V: alpha * x_t - sigma * output,
    }[type(parameterization)]
    with torch.no_grad():
        x0 = Denoiser(Recorder().double(), schedule, parameterization)(x_t, t).x0
    np.testing.assert_allclose(x0, expected, rtol=1e-10)


def test_a_level_for_the_batch_and_the_same_level_per_row_agree():
    denoiser, x_t = Denoiser(Recorder(), Linear(), V()), normal(4, 2, 3)
    one, rows = denoiser(x_t, 321), denoiser(x_t, torch.full((4,), 321))
    torch.testing.assert_close(one.x0, rows.x0, rtol=1e-12, atol=0)
    torch.testing.assert_close(one.eps, rows.eps, rtol=1e-12, atol=1e-14)


def test_the_network_is_given_one_noise_coordinate_a_row_counted_from_0():
    net = Recorder()
    denoiser = Denoiser(net, Linear(), Eps())
    denoiser(images(3, 1, 2), 1000)
    denoiser(images(3, 1, 2), torch.tensor([1, 2, 1000]))
    assert [c_noise.tolist() for _, c_noise, _ in net.calls] == [[999] * 3, [0, 1, 999]]


def test_the_condition_reaches_the_network_with_one_row_for_each():
    net, condition = Recorder(), Condition(torch.tensor([2, -1]), torch.zeros(2, 3, 2))
    denoiser = Denoiser(net, Linear(), Eps())
    denoiser(images(2, 1, 2), 5, condition)
    denoiser(images(2, 1, 2), 5)
    assert [call[2] for call in net.calls] == [condition, Condition()]
    with pytest.raises(InputError, match=r"2 rows \(label\) for a batch of 3"):
        denoiser(images(3, 1, 2), 5, condition)


def test_a_denoiser_is_a_value_that_works_with_another_network():
    schedule, x_t, other = Linear(), images(2, 1, 4), Recorder()
    other.weight.data.fill_(0.5)
    denoiser = Denoiser(Recorder(), schedule, X0())
    ema = dataclasses.replace(denoiser, net=other)
    torch.testing.assert_close(ema(x_t, 9).x0, 0.5 * denoiser(x_t, 9).x0)
    assert not isinstance(denoiser, nn.Module)


def test_the_levels_of_noisy_data_are_1_to_T():
    denoiser = Denoiser(Recorder(), Linear(), X0())
    for t in (0, -1, 1001):
        with pytest.raises(InputError, match=f"level {t}: .* from 1 to 1000"):
            denoiser(images(2, 1, 4), t)
    for t in (1, 1000):
        assert denoiser(images(2, 1, 4), t).x0.isfinite().all()


def test_a_denoiser_cannot_be_changed_in_place():
    denoiser = Denoiser(Recorder(), Linear(), X0())
    with pytest.raises(dataclasses.FrozenInstanceError):
        denoiser.schedule = Cosine()


@pytest.mark.parametrize("variance", [FixedSmall(), FixedLarge()])
def test_a_prediction_states_its_reverse_variance_for_any_lower_level(variance):
    prediction = Denoiser(Recorder(), Linear(), Eps(), variance)(images(1, 1, 2), 500)
    for s in (0, 1, 250, 499):
        assert prediction.variance(s) == variance(prediction, Linear().level(s))


# Precision


@pytest.mark.parametrize("t", [3, torch.tensor([3, 1000])])
def test_float64_data_stays_float64_around_a_float32_network(t):
    net = Recorder()
    prediction = Denoiser(net, Linear(), Eps())(normal(2, 1, 3), t)
    assert net.calls[0][0].dtype == torch.float32
    assert prediction.x0.dtype == prediction.eps.dtype == torch.float64


@pytest.mark.parametrize("data", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("t", [3, torch.tensor([3, 1000])])
def test_only_the_network_itself_runs_in_bf16(data, t):
    net = Recorder().bfloat16()
    prediction = Denoiser(net, Linear(), Eps())(images(2, 1, 3).to(data), t)
    x, c_noise, _ = net.calls[0]
    assert (x.dtype, c_noise.dtype) == (torch.bfloat16, torch.float32)
    assert prediction.x0.dtype == prediction.eps.dtype == torch.float32


@pytest.mark.parametrize("network", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("data", [torch.bfloat16, torch.float32, torch.float64])
def test_the_unet_takes_every_pairing_of_network_and_data_precision(network, data):
    denoiser = Denoiser(tiny_unet().to(network), Linear(), Eps())
    x0 = denoiser(
        images(2, 1, 8, 8).to(data), torch.tensor([1, 1000]), Condition(torch.tensor([0, -1]))
    ).x0
    assert x0.dtype == torch.promote_types(data, torch.float32)
    assert x0.isfinite().all()


@pytest.mark.parametrize("weighting", [Plain(), MinSNR()], ids=named)
def test_no_float64_tensor_appears_in_a_float32_training_step(weighting):
    schedule = Cosine()
    denoiser = Denoiser(tiny_unet(), schedule, V())
    x0, eps = images(2, 4, 1, 8, 8).unbind()
    t, y = torch.tensor([1, 2, 500, 1000]), torch.tensor([0, 1, 2, -1])
    with SeenDtypes() as seen:
        batch = NoisedBatch(x0, eps, t, schedule.add_noise(x0, t, eps), Condition(y))
        MSE(weighting)(denoiser, batch)["loss"].mean().backward()
    assert seen.operations > 100
    assert seen.float64 == set()


@pytest.mark.parametrize(
    "sampler",
    [
        DDPM(3),
        DDIM(3, eta=0.5),
        DDIM(3, spacing=KarrasSpacing()),
        DPMSolverPP(4),
        DPMSolverPPSDE(4),
        Euler(4, churn=1.0),
        Heun(4),
        LMS(5, threshold=0.9),
        UniPC(4),
    ],
    ids=named,
)
def test_no_float64_tensor_appears_in_float32_sampling(sampler):
    denoiser = Denoiser(tiny_unet(), Cosine(), V(), FixedLarge())
    denoiser = guide(denoiser, Guidance(2.0, interval=(0.1, 0.9), rescale=0.7))
    x_T, y = images(2, 1, 8, 8), torch.tensor([0, 1])
    with SeenDtypes() as seen:
        sampler.clipped((-1, 1))(denoiser, x_T, Condition(y), IndexedNoise(0, torch.arange(2)))
    assert seen.operations > 100
    assert seen.float64 == set()


# Clipping


def test_without_a_range_nothing_is_clipped():
    prediction = Denoiser(Recorder(), Linear(), Eps())(images(2, 1, 4), 900)
    assert prediction.clip(None) is prediction


def test_the_raw_output_is_gone_once_x0_was_changed():
    prediction = Denoiser(Recorder(), Linear(), Eps())(images(2, 1, 4), 900)
    guided = Guided(Denoiser(Recorder(), Linear(), Eps()), 2.0)
    assert prediction.output is not None
    assert prediction.clip((-1, 1)).output is None
    assert prediction.clip((-1, 1), threshold=0.9).output is None
    assert guided(images(2, 1, 4), 900, Condition(torch.tensor([0, 1]))).output is None


# Learned variance


def test_extra_channels_go_to_the_variance_and_not_into_x0():
    x_t = images(2, 1, 4)
    plain = Denoiser(Recorder(), Linear(), Eps())(x_t, 5)
    learned = Denoiser(Recorder(extra_channels=1), Linear(), Eps(), LearnedVariance())(x_t, 5)
    assert plain.extra is None
    assert torch.equal(learned.x0, plain.x0)
    assert torch.equal(learned.output, plain.output)
    torch.testing.assert_close(learned.variance(3), (2 * plain.output).square())


def test_a_learned_variance_survives_clipping():
    denoiser = Denoiser(Recorder(extra_channels=1), Linear(), Eps(), LearnedVariance())
    prediction = denoiser(images(2, 1, 4), 5)
    assert torch.equal(prediction.clip((-1, 1)).variance(3), prediction.variance(3))


def test_under_guidance_the_learned_variance_is_the_conditional_one():
    denoiser = Denoiser(Recorder(extra_channels=1), Linear(), Eps(), LearnedVariance())
    x_t, y = images(2, 1, 4), torch.tensor([0, 2])
    guided = Guided(denoiser, 3.0)(x_t, 5, Condition(y))
    torch.testing.assert_close(guided.variance(3), denoiser(x_t, 5, Condition(y)).variance(3))


def test_ancestral_sampling_uses_the_learned_variance():
    denoiser = Denoiser(Recorder(extra_channels=1), Linear(), Eps(), LearnedVariance())
    prediction = denoiser(images(2, 1, 4), 5)
    step = [DDPM().step(prediction, 3, lambda z=z: torch.tensor(z)) for z in (0.0, 1.0)]
    torch.testing.assert_close(step[1] - step[0], prediction.extra.abs())


# Guidance


@pytest.mark.parametrize("t", [600, torch.tensor([1, 500, 1000])])
@pytest.mark.parametrize("guidance", [0.0, 2.5, -1.0])
def test_guidance_extrapolates_from_unconditional_to_conditional(guidance, t):
    denoiser = Denoiser(Recorder(), Linear(), V())
    x_t, y = normal(3, 2, 4), torch.tensor([0, 1, 2])
    conditional = denoiser(x_t, t, Condition(y)).x0
    unconditional = denoiser(x_t, t, Condition(torch.full_like(y, -1))).x0
    guided = Guided(denoiser, guidance)(x_t, t, Condition(y)).x0
    expected = (1 - guidance) * unconditional + guidance * conditional
    torch.testing.assert_close(guided, expected, rtol=1e-5, atol=1e-5)


def test_guidance_calls_the_network_once_with_a_doubled_batch():
    net, y = Recorder(), torch.tensor([0, 2, 1])
    Guided(Denoiser(net, Linear(), Eps()), 2.0)(
        images(3, 1, 4), torch.tensor([1, 2, 3]), Condition(y)
    )
    assert len(net.calls) == 1
    x, c_noise, condition = net.calls[0]
    assert torch.equal(x[:3], x[3:])
    assert c_noise.tolist() == [0, 1, 2, 0, 1, 2]
    assert condition.label.tolist() == [0, 2, 1, -1, -1, -1]


def test_guidance_costs_one_network_call_a_sampling_step():
    net = Recorder()
    DDIM(4)(
        Guided(Denoiser(net, Linear(), Eps()), 2.0),
        images(3, 1, 4),
        Condition(torch.tensor([0, 1, 2])),
    )
    assert [len(x) for x, _, _ in net.calls] == [6] * 4


def test_guidance_without_labels_is_an_error():
    with pytest.raises(InputError, match="guidance needs labels"):
        Guided(Denoiser(Recorder(), Linear(), Eps()), 2.0)(images(1, 1, 4), 5)


def test_clipping_comes_after_guidance():
    denoiser = Denoiser(Recorder(), Linear(), X0())
    x_t, y = images(2, 1, 4), torch.tensor([0, 2])
    state = next(DDIM(1, clip=(-0.1, 0.1)).trajectory(Guided(denoiser, 8.0), x_t, Condition(y)))
    expected = Guided(denoiser, 8.0)(x_t, 1000, Condition(y)).x0.clamp(-0.1, 0.1)
    assert torch.equal(state.x0, expected)
