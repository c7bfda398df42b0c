"""Autoencoders in every precision, wrong settings, and parts of checkpoints from others."""

from __future__ import annotations

import copy

import pytest
import torch

from ddpm_lightning import Autoencoder, DiffusionModule
from ddpm_lightning.batch import DataSpec
from ddpm_lightning.checkpoint import KEY, read_checkpoint, rebuild
from ddpm_lightning.checkpoint_structure import check_structure
from ddpm_lightning.codecs import AutoencoderCodec
from ddpm_lightning.configurable import with_download
from ddpm_lightning.data import Digits
from ddpm_lightning.diffusion.samplers import DDIM
from ddpm_lightning.errors import InputError
from ddpm_lightning.networks import Autoencoder2d, KLBottleneck, VQBottleneck
from ddpm_lightning.sampling import Request
from tests.small import fit, image_spec, lively, tiny_data, trainer
from tests.test_autoencoder import LatentUNet, train
from tests.test_text import TextUNet, digits, text_module

SMALL = {"channels": 8, "multipliers": [1, 2], "groups": 4, "latent_channels": 2}
FETCHES = {
    "class_path": "ddpm_lightning.interchange.DiffusersAutoencoder",
    "init_args": {"source": "someone/else"},
}


@pytest.mark.slow
@pytest.mark.parametrize("bottleneck", [KLBottleneck(), VQBottleneck(4)])
@pytest.mark.parametrize("precision", ["bf16-true", "64-true", "bf16-mixed"])
def test_a_precision_trains_an_autoencoder(precision, bottleneck, tmp_path):
    module = Autoencoder(image_spec(), lambda data: Autoencoder2d(data, bottleneck, **SMALL))
    before = module.net.dequantized.weight.detach().clone()
    trainer(tmp_path, 2, precision=precision).fit(module, tiny_data())
    after = module.net.dequantized.weight.detach()
    assert after.isfinite().all()
    assert not torch.equal(after.to(before), before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"multipliers": []}, "multipliers"),
        ({"multipliers": [0, 1]}, "multipliers"),
        ({"channels": 32, "groups": 3}, "groups=2"),
    ],
)
def test_wrong_settings_of_an_autoencoder_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Autoencoder2d(DataSpec((1, 8, 8)), **{"groups": 4} | settings)


def test_codes_do_not_drive_the_encoder_away():
    with pytest.raises(InputError, match="commitment=-1"):
        VQBottleneck(4, commitment=-1)


@pytest.fixture(scope="module")
def received(tmp_path_factory):
    """A checkpoint of a run in the latents of an autoencoder, as read."""
    folder = tmp_path_factory.mktemp("received")
    codec = AutoencoderCodec(train(folder / "autoencoder", 1))
    fit(
        folder / "run", 1, data=Digits(global_batch_size=8, subset=64), net=LatentUNet, codec=codec
    )
    path = folder / "run" / "checkpoints" / "last.ckpt"
    return path, read_checkpoint(path, weights=True)


def changed(received, change):
    path, checkpoint = received
    checkpoint = copy.deepcopy(checkpoint)
    change(checkpoint)
    return path, checkpoint


@pytest.mark.slow
def test_a_codec_within_a_received_codec_reads_and_fetches_nothing(received):
    def nested(checkpoint):
        network = checkpoint["hyper_parameters"]["codec"]["init_args"]["network"]
        network["settings"]["bottleneck"] = FETCHES

    _, checkpoint = changed(received, nested)
    with pytest.raises(InputError, match="described by a file"):
        check_structure(checkpoint)


@pytest.mark.parametrize("part", ["net", "schedule", "module"])
def test_a_codec_under_an_unknown_name_reads_and_fetches_nothing(received, part):
    checkpoint = copy.deepcopy(received[1])
    stated = checkpoint["hyper_parameters"]
    (stated if part == "module" else stated[part]["init_args"])["unknown"] = FETCHES
    with pytest.raises(InputError, match="described by a file"):
        check_structure(checkpoint)


def test_a_part_of_another_kind_is_refused_before_it_is_built(received):
    network = copy.deepcopy(received[1])["hyper_parameters"]["codec"]["init_args"]["network"]
    network["settings"]["bottleneck"] = FETCHES
    with pytest.raises(InputError, match=r"codec\.network\.bottleneck is a .*not a Bottleneck"):
        AutoencoderCodec(network=network)


@pytest.mark.parametrize("scale", [0.0, float("nan"), -1.0])
def test_a_scale_that_cannot_be_is_refused(received, scale):
    def damaged(checkpoint):
        checkpoint["state_dict"]["codec.scale"].fill_(scale)

    path, checkpoint = changed(received, damaged)
    with pytest.raises(InputError, match=r"codec\.scale"):
        rebuild(checkpoint, path, DiffusionModule)


def test_what_a_decoder_makes_infinite_is_told(received):
    module = rebuild(received[1], received[0], DiffusionModule)
    module.codec.scale.fill_(float("inf"))
    with pytest.raises(InputError, match="what the codec decodes of them is not"):
        module.generate(torch.arange(2), Request(DDIM(2)))


def test_a_received_checkpoint_fetches_no_text_encoder(tmp_path):
    stated = {
        "class_path": "ddpm_lightning.text.HuggingFaceEncoder",
        "init_args": {"path": "someone/else"},
    }
    assert with_download({"text": stated}, False)["text"]["init_args"]["download"] is False
    module = lively(text_module(net=TextUNet, data=digits().spec))
    checkpoint = {
        "hyper_parameters": dict(module.hparams) | {"text": stated},
        "state_dict": module.state_dict(),
        KEY: {"class_path": module.class_path(), "data": None},
    }
    with pytest.raises(InputError, match="hf download someone/else"):
        rebuild(checkpoint, tmp_path / "a.ckpt", DiffusionModule)
