"""diffusers' AutoencoderKL as a codec, against the real library."""

from __future__ import annotations

import json
import shutil
from functools import partial

import pytest
import torch

from ddpm_lightning.checkpoint import read_checkpoint
from ddpm_lightning.checkpoint_structure import check_structure
from ddpm_lightning.diffusion.samplers import DDIM
from ddpm_lightning.errors import InputError
from ddpm_lightning.interchange import DiffusersAutoencoder
from ddpm_lightning.loaded import Loaded
from ddpm_lightning.run_folder import last_checkpoint
from tests.core import normal
from tests.small import TinyUNet, fit, image_spec, tiny_module

diffusers = pytest.importorskip("diffusers")

LatentUNet = partial(TinyUNet, multipliers=[1], attention_levels=[])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small random AutoencoderKL for grey images of even sides, and its folder."""
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=3,
        norm_num_groups=4,
        sample_size=8,
    ).eval()
    folder = tmp_path_factory.mktemp("vae")
    vae.save_pretrained(folder)
    return vae, folder


def codec(folder, **arguments) -> DiffusersAutoencoder:
    made = DiffusersAutoencoder(str(folder), **arguments)
    made.attach(image_spec())
    return made


def test_moments_and_images_are_those_of_diffusers(saved):
    vae, folder = saved
    x = normal(2, 1, 8, 8).float()
    with torch.no_grad():
        posterior = vae.encode(x).latent_dist
        mean, std = codec(folder).moments(x)
        torch.testing.assert_close((mean, std), (posterior.mean, posterior.std))
        expected = vae.decode(mean).sample.clamp(-1, 1)
    torch.testing.assert_close(codec(folder).decode(mean), expected)


def test_the_autoencoder_of_a_pipeline_is_found(saved, tmp_path):
    shutil.copytree(saved[1], tmp_path / "pipeline" / "vae")
    x = normal(1, 1, 8, 8).float()
    found = codec(tmp_path / "pipeline").encode(x)
    torch.testing.assert_close(found, codec(saved[1]).encode(x))


@pytest.mark.slow
def test_a_run_needs_the_folder_no_more(saved, tmp_path):
    shutil.copytree(saved[1], tmp_path / "vae")
    own = DiffusersAutoencoder(str(tmp_path / "vae"), draw=True)
    module = fit(tmp_path / "run", 3, codec=own, net=LatentUNet).eval()
    shutil.rmtree(tmp_path / "vae")
    loaded = Loaded.read(last_checkpoint(tmp_path / "run")).module
    assert torch.equal(loaded.sample(2, DDIM(2)), module.sample(2, DDIM(2)))


def test_a_received_checkpoint_cannot_ask_for_a_file_or_a_download(saved, tmp_path):
    fit(tmp_path, 3, codec=codec(saved[1]), net=LatentUNet)
    content = read_checkpoint(last_checkpoint(tmp_path))
    arguments = content["hyper_parameters"]["codec"]["init_args"]
    arguments |= {"source": "somebody/model", "network": None}
    with pytest.raises(InputError, match="described by a file"):
        check_structure(content)


def test_a_folder_of_another_network_is_refused(saved, tmp_path):
    shutil.copytree(saved[1], tmp_path / "vae")
    path = tmp_path / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": "VQModel"}))
    with pytest.raises(InputError, match="holds a VQModel, not an AutoencoderKL"):
        codec(tmp_path / "vae")


def test_images_of_another_number_of_channels_are_refused(saved):
    with pytest.raises(InputError, match="encodes images of 1 channels, and the data has 3"):
        tiny_module(data=image_spec(channels=3), codec=DiffusersAutoencoder(str(saved[1])))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="there is no folder"):
        DiffusersAutoencoder(str(tmp_path / "nowhere"))
