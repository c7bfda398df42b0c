"""From network output to a prediction: precision, clipping, learned variance, guidance."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from ddpm_lightning.batch import Condition, DataSpec
from ddpm_lightning.diffusion.denoiser import Denoiser
from ddpm_lightning.diffusion.guidance import Guidance, Guided, guide
from ddpm_lightning.diffusion.levels import Level
from ddpm_lightning.diffusion.losses import MSE, NoisedBatch
from ddpm_lightning.diffusion.parameterizations import X0, Eps, V
from ddpm_lightning.diffusion.prediction import FixedLarge, Prediction, Variance
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
from ddpm_lightning.diffusion.weightings import MinSNR
from ddpm_lightning.errors import InputError
from ddpm_lightning.networks import Network, UNet
from ddpm_lightning.randomness import IndexedNoise
from tests.core import SeenDtypes, named, normal
from tests.small import labels


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


def test_a_level_for_the_batch_and_the_same_level_per_row_agree():
    denoiser, x_t = Denoiser(Recorder(), Linear(), V()), normal(4, 2, 3)
    one, rows = denoiser(x_t, 321), denoiser(x_t, torch.full((4,), 321))
    torch.testing.assert_close(one.x0, rows.x0, rtol=1e-12, atol=0)
    torch.testing.assert_close(one.eps, rows.eps, rtol=1e-12, atol=1e-14)


def test_the_network_is_given_the_condition_and_one_noise_coordinate_a_row_counted_from_0():
    net, condition = Recorder(), Condition(torch.tensor([2, -1]), torch.zeros(2, 3, 2))
    denoiser = Denoiser(net, Linear(), Eps())
    denoiser(images(2, 1, 2), 1000, condition)
    denoiser(images(2, 1, 2), torch.tensor([1, 1000]))
    assert [c_noise.tolist() for _, c_noise, _ in net.calls] == [[999, 999], [0, 999]]
    assert [call[2] for call in net.calls] == [condition, Condition()]


def test_a_denoiser_is_a_value_that_works_with_another_network():
    schedule, x_t, other = Linear(), images(2, 1, 4), Recorder()
    other.weight.data.fill_(0.5)
    denoiser = Denoiser(Recorder(), schedule, X0())
    ema = dataclasses.replace(denoiser, net=other)
    torch.testing.assert_close(ema(x_t, 9).x0, 0.5 * denoiser(x_t, 9).x0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        denoiser.net = other


# Precision


@pytest.mark.parametrize("network", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("data", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("t", [3, torch.tensor([3, 1000])])
def test_only_the_network_itself_runs_in_its_precision(network, data, t):
    net, wanted = Recorder().to(network), torch.promote_types(data, torch.float32)
    prediction = Denoiser(net, Linear(), Eps())(images(2, 1, 3).to(data), t)
    x, c_noise, _ = net.calls[0]
    assert (x.dtype, c_noise.dtype) == (network, wanted)
    assert prediction.x0.dtype == prediction.eps.dtype == wanted
    unet = Denoiser(tiny_unet().to(network), Linear(), Eps())
    assert unet(images(2, 1, 8, 8).to(data), t).x0.dtype == wanted


def test_no_float64_tensor_appears_in_a_float32_training_step():
    schedule = Cosine()
    denoiser = Denoiser(tiny_unet(), schedule, V())
    x0, eps = images(2, 4, 1, 8, 8).unbind()
    t = torch.tensor([1, 2, 500, 1000])
    with SeenDtypes() as seen:
        batch = NoisedBatch(x0, eps, t, schedule.add_noise(x0, t, eps), labels(0, 1, 2, -1))
        MSE(MinSNR())(denoiser, batch)["loss"].mean().backward()
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
    x_T = images(2, 1, 8, 8)
    with SeenDtypes() as seen:
        sampler.clipped((-1, 1))(denoiser, x_T, labels(0, 1), IndexedNoise(0, torch.arange(2)))
    assert seen.operations > 100
    assert seen.float64 == set()


# Clipping


def test_the_raw_output_is_gone_once_x0_was_changed():
    denoiser, x_t = Denoiser(Recorder(), Linear(), Eps()), images(2, 1, 4)
    prediction = denoiser(x_t, 900)
    assert prediction.clip(None) is prediction
    assert prediction.output is not None
    assert prediction.clip((-1, 1)).output is None
    assert prediction.clip((-1, 1), threshold=0.9).output is None
    assert Guided(denoiser, 2.0)(x_t, 900, labels(0, 1)).output is None


# Learned variance


def test_extra_channels_go_to_the_variance_and_not_into_x0():
    x_t = images(2, 1, 4)
    plain = Denoiser(Recorder(), Linear(), Eps())(x_t, 5)
    learned = Denoiser(Recorder(extra_channels=1), Linear(), Eps(), LearnedVariance())(x_t, 5)
    assert plain.extra is None
    assert torch.equal(learned.x0, plain.x0)
    assert torch.equal(learned.output, plain.output)
    torch.testing.assert_close(learned.variance(3), (2 * plain.output).square())
    step = [DDPM().step(learned, 3, lambda z=z: torch.tensor(z)) for z in (0.0, 1.0)]
    torch.testing.assert_close(step[1] - step[0], learned.extra.abs())


def test_the_learned_variance_survives_clipping_and_under_guidance_is_the_conditional_one():
    denoiser = Denoiser(Recorder(extra_channels=1), Linear(), Eps(), LearnedVariance())
    conditional = denoiser(images(2, 1, 4), 5, labels(0, 2))
    guided = Guided(denoiser, 3.0)(images(2, 1, 4), 5, labels(0, 2))
    assert torch.equal(conditional.clip((-1, 1)).variance(3), conditional.variance(3))
    torch.testing.assert_close(guided.variance(3), conditional.variance(3))


# Guidance


def test_guidance_calls_the_network_once_with_a_doubled_batch():
    net = Recorder()
    guided = Guided(Denoiser(net, Linear(), Eps()), 2.0)
    guided(images(3, 1, 4), torch.tensor([1, 2, 3]), labels(0, 2, 1))
    ((x, c_noise, condition),) = net.calls
    assert torch.equal(x[:3], x[3:])
    assert c_noise.tolist() == [0, 1, 2, 0, 1, 2]
    assert condition.label.tolist() == [0, 2, 1, -1, -1, -1]


def test_clipping_comes_after_guidance():
    guided, x_t = Guided(Denoiser(Recorder(), Linear(), X0()), 8.0), images(2, 1, 4)
    state = next(DDIM(1, clip=(-0.1, 0.1)).trajectory(guided, x_t, labels(0, 2)))
    assert torch.equal(state.x0, guided(x_t, 1000, labels(0, 2)).x0.clamp(-0.1, 0.1))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda denoiser: denoiser(images(2, 1, 4), 0), "level 0: .* from 1 to 1000"),
        (lambda denoiser: denoiser(images(2, 1, 4), 1001), "level 1001: .* from 1 to 1000"),
        (
            lambda denoiser: denoiser(images(3, 1, 2), 5, labels(2, -1)),
            r"2 rows \(label\) for a batch of 3",
        ),
        (
            lambda denoiser: denoiser(images(3, 1, 2), 5, Condition(image=images(2, 1, 2))),
            r"2 rows \(image\) for a batch of 3",
        ),
        (lambda denoiser: Guided(denoiser, 2.0)(images(1, 1, 4), 5), "guidance needs labels"),
    ],
)
def test_arguments_that_do_not_fit_are_an_error(call, words):
    with pytest.raises(InputError, match=words):
        call(Denoiser(Recorder(), Linear(), X0()))
