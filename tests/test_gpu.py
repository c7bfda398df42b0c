"""On a GPU: training in mixed precision, resuming, noise, average and compiled code.

python -m pytest -m gpu --device cuda
"""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from benchmarks.syncs import Watched, places, told
from ddpm_lightning import EMA, DiffusionModule
from ddpm_lightning.callbacks import FastKernels, RunCheckpoint
from ddpm_lightning.diffusion.samplers import DDIM, DPMSolverPP, UniPC
from ddpm_lightning.randomness import BatchNoise, Draw, IndexedNoise
from ddpm_lightning.run_folder import last_checkpoint
from ddpm_lightning.sampling import Request
from tests.small import TinyUNet, inputs, randomized, tiny_data, tiny_module, trainer

pytestmark = pytest.mark.gpu
Net = partial(TinyUNet, dropout=0.0)
SAMPLERS = [DDIM(4, eta=1.0), DPMSolverPP(4), UniPC(4)]


def started(**arguments) -> DiffusionModule:
    """A conditional model whose weights are drawn anew, so that every layer matters."""
    module = tiny_module(net=Net, conditional=True, ema=EMA(0.9), **arguments)
    randomized(module.net)
    module.ema.follow(module.net)
    return module


def trained(folder, steps, device, precision="32-true", resume=None, callbacks=(), **arguments):
    """Fit on the device; give the module and the loss of its last step."""
    module = started(**arguments)
    run = trainer(
        folder,
        steps,
        accelerator=device.type if device.type == "cpu" else "gpu",
        devices=1,
        precision=precision,
        callbacks=[*callbacks, RunCheckpoint(every_n_steps=3)],
        gradient_clip_val=1.0,
    )
    run.fit(module, tiny_data(), ckpt_path=resume, weights_only=True)
    return module, run.callback_metrics["train/loss"].item()


def way(module: DiffusionModule) -> torch.Tensor:
    """Where training has led the weights and their average, as one vector."""
    start = started()
    pairs = zip(
        [*module.net.parameters(), *module.ema.net.parameters()],
        [*start.net.parameters(), *start.ema.net.parameters()],
        strict=True,
    )
    return torch.cat([(a.detach().cpu() - b.detach()).double().flatten() for a, b in pairs])


def apart(a: DiffusionModule, b: DiffusionModule) -> float:
    """How far two trainings ended from each other, as a share of the way that they went."""
    return float((way(a) - way(b)).norm() / way(b).norm())


# ------------------------------------------------------------------------------ training


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("32-true", 0.02), ("bf16-mixed", 0.6), ("16-mixed", 0.9)]
)
def test_training_goes_the_way_of_the_cpu_in_float32(precision, tolerance, device, tmp_path):
    expected, loss = trained(tmp_path / "cpu", 6, torch.device("cpu"))
    module, its_loss = trained(tmp_path / "gpu", 6, device, precision)
    assert its_loss == pytest.approx(loss, rel=0.05)
    assert apart(module, expected) < tolerance


def test_16_mixed_scales_the_loss(device, tmp_path):
    seen = []

    class Scale(RunCheckpoint):
        def on_train_batch_end(self, trainer, *rest):
            seen.append(trainer.precision_plugin.scaler.get_scale())
            super().on_train_batch_end(trainer, *rest)

    module = started()
    run = trainer(
        tmp_path, 3, accelerator="gpu", devices=1, precision="16-mixed", callbacks=[Scale(3)]
    )
    run.fit(module, tiny_data())
    assert len(seen) == 3
    assert all(scale >= 1 for scale in seen)
    assert all(p.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(precision, device, tmp_path):
    whole, loss = trained(tmp_path / "whole", 6, device, precision)
    trained(tmp_path / "parts", 3, device, precision)
    path = last_checkpoint(tmp_path / "parts")
    resumed, its_loss = trained(tmp_path / "parts", 6, device, precision, resume=path)
    assert its_loss == pytest.approx(loss, rel=0.01)
    assert apart(resumed, whole) < (0.05 if precision == "32-true" else 0.3)


def test_a_run_of_the_gpu_goes_on_and_samples_on_the_cpu(device, tmp_path):
    whole, _ = trained(tmp_path / "whole", 6, device)
    trained(tmp_path / "parts", 3, device)
    path = last_checkpoint(tmp_path / "parts")
    resumed, _ = trained(tmp_path / "parts", 6, torch.device("cpu"), resume=path)
    assert apart(resumed, whole) < 0.05
    loaded = DiffusionModule.load_from_checkpoint(path)
    expected = loaded.sample(3, DDIM(3))
    actual = loaded.to(device).sample(3, DDIM(3))
    torch.testing.assert_close(actual, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_channels_last_goes_the_same_way(precision, device, tmp_path):
    plain, _ = trained(tmp_path / "plain", 6, device, precision)
    kernels = FastKernels(float32_matmul_precision="highest")
    fast, _ = trained(tmp_path / "fast", 6, device, precision, callbacks=[kernels])
    assert fast.net.stem.weight.is_contiguous(memory_format=torch.channels_last)
    assert apart(fast, plain) < (0.02 if precision == "32-true" else 0.6)


def test_a_training_step_waits_once_for_the_gpu(device, tmp_path):
    watched = Watched(device, first=4, steps=1)  # behind the save of step 3
    trained(tmp_path, 7, device, "bf16-mixed", callbacks=[watched])
    assert sum(watched.waits.values()) == 1, told(watched.waits)


# ------------------------------------------------------------------------ noise, average


@pytest.mark.parametrize("draw", [0, 1, Draw.EPS])
def test_keyed_noise_is_the_same_on_the_gpu(draw, device):
    index = torch.tensor([5, 0, 2**40])
    here, there = IndexedNoise(7, index), IndexedNoise(7, index, device=device)
    batch = BatchNoise(7, 3, index, 8, device), BatchNoise(7, 3, index, 8)
    assert there(draw, (3, 4)).device.type == device.type
    assert there(draw, (3, 4)).cpu().equal(here(draw, (3, 4)))
    assert there.uniform(draw).cpu().equal(here.uniform(draw))
    assert batch[0].shared(1).cpu().equal(batch[1].shared(1))


def test_the_average_is_that_of_float64(device):
    torch.manual_seed(0)
    net, ema = nn.Linear(50, 50).to(device), EMA(0.99, warmup=False)
    ema.follow(net)
    expected = net.weight.detach().cpu().double()
    for step in range(20):
        with torch.no_grad():
            net.weight.add_(torch.randn_like(net.weight))
        ema.update(net, step)
        expected = 0.99 * expected + 0.01 * net.weight.detach().cpu().double()
    torch.testing.assert_close(ema.net.weight.cpu().double(), expected, atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------------------------ sampling


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda one: type(one).__name__)
def test_guided_samples_are_those_of_the_cpu(sampler, device):
    module, index = started(), torch.arange(5)
    request = Request(sampler, guidance=2.0, labels=[1, 2], batch_size=2, weights="raw")
    expected = module.generate(index, request).x
    actual = module.to(device).generate(index, request).x
    assert actual.device.type == "cpu"
    torch.testing.assert_close(actual, expected, atol=2e-3, rtol=0)


def test_samples_in_bfloat16_are_near(device):
    module, index = started(), torch.arange(5)
    expected = module.generate(index, Request(DDIM(4))).x
    with torch.autocast(device.type, dtype=torch.bfloat16):
        actual = module.to(device).generate(index, Request(DDIM(4))).x
    assert actual.dtype == torch.float32
    assert (actual - expected).norm() < 0.1 * expected.norm()


def test_a_sampled_batch_waits_for_the_gpu_at_its_end_alone(device):
    module, index = started().to(device), torch.arange(4)
    request = Request(DDIM(6), batch_size=4)
    module.generate(index, request)
    with places(device) as found:
        module.generate(index, request)
    assert sum(found.values()) <= 2, told(found)


# ------------------------------------------------------------------------------ compiled


def test_a_compiled_network_trains_as_the_plain_one(device, tmp_path):
    plain, loss = trained(tmp_path / "plain", 4, device)
    compiled, its_loss = trained(tmp_path / "compiled", 4, device, compile=True)
    assert its_loss == pytest.approx(loss, rel=0.01)
    assert apart(compiled, plain) < 0.05


def test_a_compiled_average_is_the_plain_one(device):
    nets = [started().net.to(device) for _ in range(2)]
    plain = EMA(0.9, warmup=False)
    plain.follow(nets[0])
    compiled = copy.deepcopy(plain)
    randomized(nets[1], seed=1)
    plain.update(nets[1], 0)
    torch.compile(compiled.update)(nets[1], 0)
    for a, b in zip(compiled.net.parameters(), plain.net.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_compiled_network_samples_as_the_plain_one(device):
    denoiser = started().to(device).denoiser("ema")
    x = inputs(4, 1, 8, 8)[0].to(device)
    compiled = replace(denoiser, net=torch.compile(denoiser.net))
    expected, actual = (DDIM(4, clip=(-1, 1))(one, x) for one in (denoiser, compiled))
    torch.testing.assert_close(actual, expected, atol=1e-3, rtol=0)
