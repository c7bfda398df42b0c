"""The numbers of ``--device`` and ``--dtype`` beside those of the CPU in float64."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch

from ddpm_lightning.diffusion.samplers import DDIM, DDPM, LMS, DPMSolverPP, Euler, Heun, UniPC
from ddpm_lightning.networks import DiT, SmallUNet
from tests.small import TinyUNet, inputs, randomized, tiny_data, tiny_module, trainer

TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4, torch.bfloat16: 0.1}
NETS = {
    "unet": partial(TinyUNet, dropout=0.0),
    "convnext": partial(TinyUNet, dropout=0.0, block="convnext"),
    "small": partial(SmallUNet, channels=8),
    "dit": partial(DiT, patch=2, width=16, depth=1, heads=2),
}


@pytest.fixture
def close(dtype):
    """Assert that a tensor equals the reference as far as the precision reaches."""

    def check(actual: torch.Tensor, reference: torch.Tensor) -> None:
        distance = (actual.detach().cpu().double() - reference.detach()).abs().max()
        assert distance <= TOLERANCE[dtype] * reference.abs().max()

    return check


def two_denoisers(net, device, dtype):
    """The same denoiser twice: on the device, and in float64 on the CPU."""
    denoiser = tiny_module(net=net).denoiser()
    weights = randomized(denoiser.net).double()
    return (
        replace(denoiser, net=copy.deepcopy(weights).to(device, dtype)),
        replace(denoiser, net=weights),
    )


@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
def test_predictions_and_gradients(net, device, dtype, close):
    subject, reference = two_denoisers(net, device, dtype)
    x = inputs(4, 1, 8, 8, dtype=torch.float64)[0]
    t = torch.tensor([1, 10, 400, 1000])
    gradients = []
    for denoiser, x_t, levels in (
        (subject, x.to(device, dtype), t.to(device)),
        (reference, x, t),
    ):
        weights = next(denoiser.net.parameters()).requires_grad_()
        x0 = denoiser(x_t, levels).x0
        (gradient,) = torch.autograd.grad(x0.square().mean(), weights)
        gradients.append((x0, gradient))
    (x0, gradient), (x0_reference, gradient_reference) = gradients
    assert (x0.device.type, gradient.dtype) == (device.type, dtype)
    close(x0, x0_reference)
    close(gradient, gradient_reference)


@pytest.mark.parametrize("sampler", [DDPM, DDIM, Heun, Euler, DPMSolverPP, UniPC, LMS])
def test_trajectories(sampler, device, dtype, close):
    subject, reference = two_denoisers(NETS["unet"], device, dtype)
    x_T, *steps = torch.randn(9, 2, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double()

    def noise(draw: int, shape: tuple[int, ...]) -> torch.Tensor:
        return steps[draw - 1]

    with torch.no_grad():
        sample = sampler(steps=8, clip=(-1, 1))
        expected = sample(reference, x_T, noise=noise)
        actual = sample(
            subject,
            x_T.to(device, dtype),
            noise=lambda draw, shape: noise(draw, shape).to(device, dtype),
        )
    assert actual.device.type == device.type
    close(actual, expected)


def test_a_sample_depends_on_the_seed_and_not_on_the_device(device):
    module = tiny_module()
    randomized(module.ema.net)
    expected = module.sample(3, DDIM(4), seed=5)
    actual = module.to(device).sample(3, DDIM(4), seed=5)
    torch.testing.assert_close(actual, expected, atol=2e-4, rtol=0)


@pytest.mark.gpu
def test_training_on_the_gpu_follows_training_on_the_cpu(device, tmp_path):
    losses = []
    for accelerator in ("cpu", device.type):
        torch.manual_seed(0)
        module = tiny_module(net=NETS["unet"])
        run = trainer(tmp_path / accelerator, 5, accelerator=accelerator, devices=1)
        run.fit(module, tiny_data())
        losses.append(run.callback_metrics["train/loss"].item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
