"""Diffusion in the latents of a codec, held against oracles in data space."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch

from ddpm_lightning.batch import Condition, DataSpec, Moments
from ddpm_lightning.callbacks import Likelihood
from ddpm_lightning.checkpoint import read_checkpoint
from ddpm_lightning.cli import main
from ddpm_lightning.codecs import Codec, Haar
from ddpm_lightning.commands.edits import Interpolate, RePaint, SDEdit, edit_images
from ddpm_lightning.diffusion import Cosine
from ddpm_lightning.diffusion.flow import flow_likelihood
from ddpm_lightning.diffusion.guidance import guide
from ddpm_lightning.diffusion.oracles import Mixture
from ddpm_lightning.diffusion.samplers import DDIM, DDPM, DPMSolverPP
from ddpm_lightning.errors import InputError
from ddpm_lightning.images import to_uint8, write_png
from ddpm_lightning.loaded import Loaded
from ddpm_lightning.randomness import IndexedNoise, Stream
from ddpm_lightning.run_folder import last_checkpoint
from ddpm_lightning.sampling import Request, generate
from tests.core import normal
from tests.small import (
    TinyUNet,
    assert_same_weights,
    fail,
    fit,
    image_spec,
    tiny_data,
    tiny_module,
    trainer,
)

SHAPE, SCALE = (1, 4, 4), 0.5
SPEC = DataSpec(SHAPE, None, num_classes=2)
SCHEDULE = Cosine(T=50)
LatentUNet = partial(TinyUNet, multipliers=[1], attention_levels=[])
VARIANCES, LABELS = torch.tensor([0.1, 0.3, 0.05]), torch.tensor([0, 1, 1])


def haar() -> Haar:
    """A Haar codec whose shift differs by channel; one scale, or the mixture's shape would not."""
    codec = Haar()
    codec.attach(SPEC)
    codec.shift.copy_(torch.tensor([0.4, -0.2, 0.1, 0.0]))
    codec.scale.fill_(SCALE)
    return codec


@dataclass
class Known:
    """An oracle in place of a trained module."""

    data: DataSpec
    latent: DataSpec
    codec: Codec
    oracle: Mixture
    knows_null = True
    text = None
    device = torch.device("cpu")

    def denoiser(self, weights="ema"):
        return self.oracle


def in_data() -> Mixture:
    return Mixture(SCHEDULE, normal(3, *SHAPE, seed=2), VARIANCES, labels=LABELS)


def in_latents(codec: Codec) -> Mixture:
    """The same mixture, mapped: z = (Qx − shift)/scale."""
    means = codec.encode(normal(3, *SHAPE, seed=2))
    return Mixture(SCHEDULE, means, VARIANCES / float(codec.scale[0]) ** 2, labels=LABELS)


# ------------------------------------------------------------------------- linear codecs


@pytest.mark.parametrize("levels", [1, 2])
def test_haar_is_an_orthogonal_map(levels):
    codec = Haar(levels)
    codec.attach(SPEC)
    columns = codec.encode(torch.eye(16).view(16, *SHAPE)).flatten(1)
    torch.testing.assert_close(columns @ columns.T, torch.eye(16))


def test_haar_has_averages_and_differences_of_a_block():
    codec = Haar()
    codec.attach(DataSpec((1, 2, 2)))
    z = codec.encode(torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]]))
    assert z.flatten().tolist() == [6.0, -2.0, -3.0, 1.0]


def test_decoding_undoes_encoding():
    codec, x = haar(), normal(3, *SHAPE)
    torch.testing.assert_close(codec.decode(codec.encode(x)), x)


def test_log_det_is_that_of_the_jacobian():
    codec = haar()
    jacobian = torch.autograd.functional.jacobian(
        lambda x: codec.scaled(codec.moments(x)).flatten(), normal(1, *SHAPE).float()
    )
    _, expected = torch.linalg.slogdet(jacobian.reshape(16, 16))
    assert codec.log_det() == pytest.approx(expected.item(), abs=1e-5)


# ---------------------------------------------------------------- the oracle in latents


def orthogonal() -> Haar:
    """A Haar codec with shift 0 and scale 1, by which noise is mapped to noise."""
    codec = Haar()
    codec.attach(SPEC)
    return codec


def known(codec: Codec) -> Known:
    return Known(SPEC, replace(SPEC, shape=(4, 2, 2)), codec, in_latents(codec))


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("sampler", [DDIM(10), DPMSolverPP(10)], ids=["DDIM", "DPMSolverPP"])
def test_samples_are_those_of_the_oracle_in_data(sampler, guidance):
    codec, request = orthogonal(), Request(sampler, guidance, seed=3)
    samples = generate(known(codec), torch.arange(6), request).x
    noise = IndexedNoise(3, torch.arange(6), Stream.SAMPLING)(0, (4, 2, 2))
    denoiser, label = guide(in_data(), request.guidance), Condition(torch.arange(6) % 2)
    chain = sampler.trajectory(denoiser, codec.decode(noise), label)
    torch.testing.assert_close(samples, list(chain)[-1].x_t.float(), atol=1e-5, rtol=1e-5)


def test_frames_are_shown_in_data():
    codec, request = orthogonal(), Request(DDIM(4), seed=3)
    frames = generate(known(codec), torch.arange(2), request, frames=3).frames
    noise = IndexedNoise(3, torch.arange(2), Stream.SAMPLING)(0, (4, 2, 2))
    torch.testing.assert_close(frames.x_t[0], codec.decode(noise))


def test_the_density_of_the_latents_gives_that_of_the_data():
    codec, x = haar(), normal(5, *SHAPE, seed=4)
    label = Condition(torch.tensor([0, 1, 1, 0, -1]))
    z = in_latents(codec).log_density(codec.encode(x), 0, label) + codec.log_det()
    torch.testing.assert_close(z, in_data().log_density(x, 0, label), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_the_flow_gives_latents_the_likelihood_of_the_data():
    codec, x = orthogonal(), normal(3, *SHAPE, seed=4)
    noise = IndexedNoise(0, torch.arange(3), Stream.LIKELIHOOD)
    z = flow_likelihood(in_latents(codec), codec.encode(x), noise).nll
    torch.testing.assert_close(z, flow_likelihood(in_data(), x, noise).nll, atol=1e-5, rtol=1e-5)


# --------------------------------------------------------------------------- the module


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of three steps on the digits in Haar's latents, and the module."""
    folder = tmp_path_factory.mktemp("latent")
    return folder, fit(folder, 3, codec=Haar(), net=LatentUNet)


def test_measured_latents_have_mean_0_and_variance_1_a_channel(run):
    z = run[1].latents(tiny_data().finished("train")).transpose(0, 1).flatten(1)
    torch.testing.assert_close(z.mean(1), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std(1, correction=0), torch.ones(4))


def test_a_checkpoint_holds_the_codec_and_draws_the_same_pictures(run):
    folder, module = run
    loaded = Loaded.read(last_checkpoint(folder)).module
    assert_same_weights(loaded.codec, module.codec)
    sampled = [one.sample(2, DDIM(3)) for one in (loaded, module.eval())]
    assert torch.equal(*sampled)
    assert sampled[0].shape == (2, 1, 8, 8)


def test_neither_optimizer_nor_average_has_the_codec(run):
    content = read_checkpoint(last_checkpoint(run[0]))
    names = [name for name in content["state_dict"] if "codec" in name]
    assert names == ["codec.shift", "codec.scale", "codec.measured"]
    (group,) = content["optimizer_states"][0]["param_groups"]
    assert len(group["params"]) == len(list(run[1].net.parameters()))


@pytest.mark.slow
def test_a_run_in_latents_goes_on_exactly(run, tmp_path):
    fit(tmp_path, 6, codec=Haar(), net=LatentUNet)
    through = read_checkpoint(last_checkpoint(tmp_path))["state_dict"]
    again = tmp_path / "again"
    fit(again, 3, codec=Haar(), net=LatentUNet)
    resumed = fit(again, 6, resume=True, codec=Haar(), net=LatentUNet).state_dict()
    assert [k for k, value in through.items() if not torch.equal(value, resumed[k])] == []


def test_without_a_codec_nothing_is_added_to_a_module():
    module = tiny_module()
    assert not [name for name in module.state_dict() if "codec" in name]
    assert module.latent == module.data


def test_condition_images_are_refused_beside_a_codec():
    with pytest.raises(InputError, match="encodes no condition images"):
        tiny_module(data=image_spec(image_channels=1), codec=Haar())


def test_sides_that_do_not_halve_are_refused():
    with pytest.raises(InputError, match="multiples of 2, not 7×7"):
        tiny_module(data=image_spec(size=7), codec=Haar())


class Noisy(Haar):
    """A posterior of deviation 2 around Haar's latents."""

    draws = True

    def moments(self, x):
        mean = super().moments(x).mean
        return Moments(mean, torch.full_like(mean, 2.0))


def test_a_codec_that_draws_adds_its_deviation_and_measures_it():
    codec, noise = Noisy(), IndexedNoise(0, torch.arange(500))
    codec.attach(SPEC)
    x = normal(500, *SHAPE)
    codec.measure([codec.moments(x)])
    z = codec.encode(x, noise).transpose(0, 1).flatten(1)
    torch.testing.assert_close(z.std(1), torch.ones(4, dtype=z.dtype), atol=0.05, rtol=0)
    assert codec.encode(x).std() < 0.5


# --------------------------------------------------------------------- commands and edits


def test_a_codec_of_ones_own_is_named_by_its_path(tmp_path):
    quiet = ["enable_progress_bar=false", "enable_model_summary=false", "logger=false"]
    flags = [f"--trainer.{one}" for one in (*quiet, "limit_val_batches=1", "max_steps=1")]
    net = ["--model.net=UNet", "--model.net.channels=8", "--model.net.groups=4"]
    net += ["--model.net.multipliers=[1]", "--model.net.attention_levels=[]"]
    data = ["--data=Digits", "--data.global_batch_size=8"]
    codec = ["--model.codec=tests.test_codecs.Noisy", "--model.codec.levels=2"]
    main(["fit", *data, *net, *codec, *flags, f"--trainer.default_root_dir={tmp_path}"])
    module = Loaded.read(last_checkpoint(tmp_path)).module
    assert type(module.codec).__name__ == "Noisy"
    assert module.latent.shape == (16, 2, 2)


def test_the_test_split_has_a_density_in_nats(run, tmp_path):
    test = trainer(tmp_path, 3, callbacks=[Likelihood(evaluations=2)], limit_test_batches=1)
    test.test(run[1], tiny_data(), verbose=False)
    (record,) = json.loads((tmp_path / "metrics.json").read_text())
    assert record["metric"] == "npd"


def test_bpd_is_refused_for_latents(run, tmp_path, capsys):
    words = ["--ckpt", str(last_checkpoint(run[0])), "--out", str(tmp_path / "out"), "--n", "4"]
    assert "works on latents" in fail(capsys, "evaluate", *words, "--metrics", "[bpd]")


def test_sample_reads_the_codec_from_the_checkpoint(run, tmp_path):
    checkpoint = str(last_checkpoint(run[0]))
    flags = ["--sampler", "DDIM", "--sampler.steps", "2", "--n", "2"]
    main(["sample", "--ckpt", checkpoint, "--out", str(tmp_path / "out"), *flags])
    assert len(list((tmp_path / "out").glob("0*.png"))) == 2


def test_a_safetensors_file_holds_the_codec(run, tmp_path):
    checkpoint, out = str(last_checkpoint(run[0])), str(tmp_path / "model.safetensors")
    main(["export", "--ckpt", checkpoint, "--format", "safetensors", "--out", out])
    drawn = [Loaded.read(path).module.sample(2, DDIM(2)) for path in (checkpoint, out)]
    assert torch.equal(*drawn)


def test_diffusers_pipelines_are_refused_for_latents(run, tmp_path, capsys):
    words = ["--ckpt", str(last_checkpoint(run[0])), "--out", str(tmp_path / "out")]
    line = fail(capsys, "export", *words, "--format", "diffusers")
    assert "works on latents of Haar" in line


def picture(path, seed):
    values = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (1, 8, 8), np.uint8))
    write_png(path, values)
    return values


def test_a_painted_picture_keeps_the_rest_to_the_bit(run, tmp_path):
    given = picture(tmp_path / "image.png", 1)
    mask = torch.zeros(1, 8, 8, dtype=torch.uint8)
    mask[:, :3, :3] = 255
    write_png(tmp_path / "mask.png", mask)
    edit = RePaint(tmp_path / "image.png", tmp_path / "mask.png", 1)
    drawn = to_uint8(edit_images(run[1], edit, 2, Request(DDPM(5))).x)
    kept = mask == 0
    assert torch.equal(drawn[0][kept], given[kept])
    assert not torch.equal(drawn[0][~kept], given[~kept])


def test_a_variation_of_strength_0_is_the_decoded_picture(run, tmp_path):
    given = picture(tmp_path / "image.png", 1)
    edited = edit_images(run[1], SDEdit(tmp_path / "image.png", 0.0), 1, Request(DDIM(5)))
    assert torch.equal(to_uint8(edited.x)[0], given)


@pytest.mark.slow
def test_an_interpolation_starts_and_ends_near_the_pictures(run, tmp_path):
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    ends = [picture(file, seed) for seed, file in enumerate(files)]
    edited = edit_images(run[1], Interpolate(*files, iterations=20), 2, Request(DDIM(20)))
    for drawn, end in zip(to_uint8(edited.x), ends, strict=True):
        assert (drawn.float() - end.float()).abs().mean() < 10
