"""Autoencoders: bottlenecks against formulas, runs that go on exactly, and their codec."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from torch.distributions import Normal, kl_divergence

from ddpm_lightning import Autoencoder, DiffusionModule
from ddpm_lightning.autoencoder import psnr
from ddpm_lightning.batch import DataSpec
from ddpm_lightning.checkpoint import read_checkpoint, rebuild
from ddpm_lightning.cli import main
from ddpm_lightning.codecs import AutoencoderCodec
from ddpm_lightning.diffusion.samplers import DDIM
from ddpm_lightning.errors import InputError
from ddpm_lightning.loaded import Loaded
from ddpm_lightning.networks import Autoencoder2d, KLBottleneck, VQBottleneck
from ddpm_lightning.run_folder import last_checkpoint
from tests.core import normal
from tests.small import TinyUNet, fail, fit, image_spec, tiny_data, tiny_module

LatentUNet = partial(TinyUNet, multipliers=[1], attention_levels=[])
CONFIG = {
    "lightning_module": "Autoencoder",
    "model": {"net": {"class_path": "Autoencoder2d"}},
    "data": {"class_path": "Digits", "init_args": {"global_batch_size": 8, "subset": 64}},
}
NET = {"channels": 8, "multipliers": [1, 2], "groups": 4, "latent_channels": 2}


def train(folder: Path, steps: int, *more: str) -> Path:
    """Train a tiny autoencoder by the command line; return its checkpoint."""
    config = folder.parent / f"{folder.name}.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    quiet = ["enable_progress_bar=false", "enable_model_summary=false", "logger=false"]
    flags = [f"--trainer.{one}" for one in (*quiet, "accelerator=cpu", "limit_val_batches=1")]
    net = [f"--model.net.{name}={value}" for name, value in NET.items()]
    where = [f"--trainer.default_root_dir={folder}", f"--trainer.max_steps={steps}"]
    main(["fit", f"--config={config}", *net, *flags, *where, "--grid=null", *more])
    return last_checkpoint(folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    return train(tmp_path_factory.mktemp("autoencoder") / "run", 4)


# ------------------------------------------------------------------------- bottlenecks


def test_the_kl_is_that_of_torch():
    h = normal(3, 4, 2, 2).float()
    mean, std = KLBottleneck().moments(h)
    expected = kl_divergence(Normal(mean, std), Normal(0.0, 1.0)).flatten(1).sum(1)
    _, penalties = KLBottleneck(weight=0.5)(h, None)
    torch.testing.assert_close(penalties["kl"], 0.5 * expected)


def test_a_draw_has_the_posteriors_moments():
    h = torch.tensor([0.7, -1.2]).view(1, 2, 1, 1).expand(20_000, 2, 1, 1)
    z, _ = KLBottleneck()(h, lambda shape: normal(20_000, *shape).float())
    assert z.mean().item() == pytest.approx(0.7, abs=0.02)
    assert z.std().item() == pytest.approx(math.exp(-0.6), abs=0.02)


def codes() -> VQBottleneck:
    bottleneck = VQBottleneck(codes=3, commitment=0.25).built(2)
    bottleneck.codebook.weight.data = torch.tensor([[0.0, 0.0], [1.0, 1.0], [-1.0, 2.0]])
    return bottleneck


def test_each_place_takes_its_nearest_code():
    h = torch.tensor([[0.9, -0.8], [0.8, 1.5]]).view(1, 2, 1, 2)  # (0.9, 0.8) and (−0.8, 1.5)
    assert codes()(h, None)[0].flatten().tolist() == pytest.approx([1.0, -1.0, 1.0, 2.0])
    assert codes().indices(h).tolist() == [[[1, 2]]]


def test_gradients_pass_straight_through_the_codes():
    h = torch.tensor([0.9, 0.8]).view(1, 2, 1, 1).requires_grad_()
    (codes()(h, None)[0] * torch.tensor([3.0, 5.0]).view(1, 2, 1, 1)).sum().backward()
    assert h.grad.flatten().tolist() == [3.0, 5.0]


def test_codes_and_encoder_are_drawn_together():
    h = torch.tensor([0.9, 0.6]).view(1, 2, 1, 1).requires_grad_()
    bottleneck = codes()
    penalties = bottleneck(h, None)[1]
    squared = (0.1**2 + 0.4**2) / 2
    assert penalties["codebook"].item() == pytest.approx(squared)
    assert penalties["commitment"].item() == pytest.approx(0.25 * squared)
    penalties["codebook"].sum().backward(retain_graph=True)
    assert h.grad is None or not h.grad.any()
    torch.testing.assert_close(bottleneck.codebook.weight.grad[1], torch.tensor([0.1, 0.4]))


@pytest.mark.slow
@pytest.mark.parametrize("bottleneck", [KLBottleneck(), VQBottleneck(16)], ids=["KL", "VQ"])
def test_one_batch_is_learned_by_heart(bottleneck):
    torch.manual_seed(0)
    net = Autoencoder2d(DataSpec((1, 8, 8)), bottleneck, channels=8, multipliers=[1, 2], groups=4)
    x = tiny_data().finished("train", 8).x0
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    losses = []
    for _ in range(60):
        again, penalties = net(x)
        loss = (again - x).abs().mean() + sum(penalties.values()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.4 * losses[0]


def test_psnr_is_that_of_its_formula():
    x = torch.zeros(2, 1, 4, 4)
    assert psnr(x, x + torch.tensor([0.2, 0.02]).view(2, 1, 1, 1)).tolist() == pytest.approx(
        [20.0, 40.0]
    )


# ------------------------------------------------------------------------------- runs


@pytest.mark.slow
def test_a_resumed_run_equals_one_that_never_stopped(trained, tmp_path):
    through = read_checkpoint(train(tmp_path / "through", 6))
    train(tmp_path / "parts", 4)
    parts = read_checkpoint(train(tmp_path / "parts", 6, "--ckpt_path=last"))
    state = parts["state_dict"]
    different = [k for k, v in through["state_dict"].items() if not torch.equal(v, state[k])]
    assert different == []


@pytest.mark.slow
def test_validation_logs_the_psnr(trained, capsys):
    root = trained.parent.parent
    main(["validate", "--ckpt_path", str(trained), f"--trainer.default_root_dir={root}"])
    assert "val/psnr" in capsys.readouterr().out


def test_grids_show_images_above_their_reconstructions(tmp_path):
    grid = ["--grid=ReconstructionGrid", "--grid.every_n_steps=1", "--grid.n=4"]
    train(tmp_path / "run", 1, *grid)
    assert [f.name for f in (tmp_path / "run" / "reconstructions").iterdir()] == [
        "step_00000001.png"
    ]


def test_sample_says_that_an_autoencoder_draws_nothing(trained, tmp_path, capsys):
    line = fail(capsys, "sample", "--ckpt", str(trained), "--out", str(tmp_path / "out"))
    assert "holds a model of the class Autoencoder, not DiffusionModule" in line


def test_an_unknown_module_is_refused(capsys):
    assert "give DiffusionModule or Autoencoder" in fail(
        capsys, "fit", "--lightning_module", "VAE"
    )


# -------------------------------------------------------------------------- its codec


def test_the_codec_encodes_by_the_averaged_weights(trained):
    module = Autoencoder.load_from_checkpoint(trained)
    codec = AutoencoderCodec(trained)
    codec.attach(image_spec())
    x = tiny_data().finished("val", 3).x0
    torch.testing.assert_close(codec.decode(codec.encode(x)), module.reconstruct(x))


@pytest.mark.slow
def test_a_latent_run_needs_the_autoencoders_file_no_more(trained, tmp_path):
    own = tmp_path / "autoencoder.ckpt"
    own.write_bytes(trained.read_bytes())
    config = {
        "model": {
            "net": {"class_path": "UNet", "init_args": {"channels": 8, "groups": 4, "blocks": 1}},
            "codec": {"class_path": "AutoencoderCodec", "init_args": {"ckpt": str(own)}},
        },
        "data": CONFIG["data"],
    }
    (tmp_path / "latent.yaml").write_text(yaml.safe_dump(config))
    quiet = ["enable_progress_bar=false", "enable_model_summary=false", "logger=false"]
    flags = [f"--trainer.{one}" for one in (*quiet, "accelerator=cpu", "limit_val_batches=1")]
    where = f"--trainer.default_root_dir={tmp_path / 'run'}"
    net = ["--model.net.multipliers=[1]", "--model.net.attention_levels=[]"]
    start = ["fit", f"--config={tmp_path / 'latent.yaml'}", *flags, where, *net]
    main([*start, "--trainer.max_steps=2"])
    own.unlink()
    main([*start, "--trainer.max_steps=4", "--ckpt_path=last"])
    loaded = Loaded.read(last_checkpoint(tmp_path / "run"))
    assert loaded.step == 4
    assert loaded.module.sample(2, DDIM(2)).shape == (2, 1, 8, 8)


def test_the_class_of_a_received_codec_is_imported_only_if_it_is_trusted(trained, tmp_path):
    fit(tmp_path, 3, codec=AutoencoderCodec(trained), net=LatentUNet)
    content = read_checkpoint(last_checkpoint(tmp_path))
    content["hyper_parameters"]["codec"]["init_args"]["network"]["class"] = "antigravity.Network"
    with pytest.raises(InputError, match="importing runs code of antigravity"):
        rebuild(content, "received.ckpt", DiffusionModule)


def test_a_checkpoint_of_a_diffusion_model_is_no_codec(tiny_checkpoint, tmp_path):
    with pytest.raises(InputError, match="holds a DiffusionModule, not an Autoencoder"):
        tiny_module(codec=AutoencoderCodec(tiny_checkpoint))


def test_images_of_another_size_are_refused(trained):
    with pytest.raises(InputError, match=r"encodes images of shape \[1, 8, 8\]"):
        tiny_module(data=image_spec(size=16), codec=AutoencoderCodec(trained))
