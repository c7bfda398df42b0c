"""Latents that were encoded once, and training on them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Callback
from lightning.pytorch.strategies import ModelParallelStrategy
from safetensors.torch import load_file

from ddpm_lightning import Autoencoder
from ddpm_lightning.cli import main
from ddpm_lightning.codecs import Haar
from ddpm_lightning.codecs.codec import Codec
from ddpm_lightning.codecs.measuring import check_latents
from ddpm_lightning.commands.encode import encode
from ddpm_lightning.commands.shown_data import shown_data
from ddpm_lightning.data import CachedLatents, Captioned
from ddpm_lightning.data.cached_latents import Origin, write_latents
from ddpm_lightning.data.data_module import Tensors, identity
from ddpm_lightning.errors import InputError
from ddpm_lightning.images import from_uint8
from ddpm_lightning.loaded import DataPlace, Loaded
from ddpm_lightning.networks import Autoencoder2d
from tests.core import normal
from tests.small import TinyUNet, fail, fit, image_spec, tiny_data, tiny_module, trainer

LatentUNet = partial(TinyUNet, multipliers=[1], attention_levels=[])
DIGITS = ["--data=Digits", "--data.subset=64"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The tiny digits and their mirror images, in Haar's latents."""
    out = tmp_path_factory.mktemp("encoded") / "latents"
    main(["encode", f"--out={out}", "--codec=Haar", *DIGITS, "--data.flip=true"])
    return out


def codec(make=Haar) -> Codec:
    one = make()
    one.attach(image_spec())
    return one


def test_a_file_holds_the_latents_of_every_image_and_its_mirror_image(folder):
    images, labels = tiny_data().images("train")
    stored = load_file(folder / "train.safetensors")
    assert torch.equal(stored["labels"], labels)
    for k, shown in enumerate((images, images.flip(-1))):
        expected = codec().moments(from_uint8(shown)).mean
        torch.testing.assert_close(stored["latents"][:, k, 0], expected)
    assert load_file(folder / "val.safetensors")["latents"].shape[1] == 1


@pytest.mark.slow
@pytest.mark.parametrize("flip", [False, True])
def test_training_on_latents_is_training_on_their_images(folder, tmp_path, flip):
    data = tiny_data(flip=flip)
    arguments = {"codec": Haar(), "net": LatentUNet}
    images = fit(tmp_path / "images", 3, data=data, **arguments)
    cached = fit(tmp_path / "latents", 3, data=CachedLatents(data, folder), **arguments)
    for name, value in images.state_dict().items():
        torch.testing.assert_close(cached.state_dict()[name], value, atol=1e-5, rtol=1e-4)


def test_training_reads_no_image(folder, tmp_path, monkeypatch):
    data = CachedLatents(tiny_data(), folder)

    def read(*_):
        raise AssertionError("an image was read")

    monkeypatch.setattr(type(data.data), "read", read)
    fit(tmp_path, 2, data=data, codec=Haar(), net=LatentUNet)


def test_metrics_compare_with_the_images(folder):
    data = tiny_data()
    assert torch.equal(CachedLatents(data, folder).images("val")[0], data.images("val")[0])


def test_plots_show_the_images(folder):
    data = tiny_data()
    expected = data.finished("train", 3).x0
    assert torch.equal(shown_data(CachedLatents(data, folder), None).first(3), expected)


def test_captions_are_those_of_the_images(folder):
    data = Captioned(tiny_data(), [f"a {digit}" for digit in range(10)])
    cached = CachedLatents(data, folder)
    assert cached.spec == data.spec
    assert cached.captions("val") == data.captions("val")


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_the_precision_of_a_run_leaves_the_latents_as_they_are(folder, tmp_path, precision):
    seen = []

    class Seen(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            seen.append(batch)

    data = CachedLatents(tiny_data(), folder)
    fit(tmp_path, 1, Seen(), data=data, codec=Haar(), net=LatentUNet, run={"precision": precision})
    (batch,) = seen
    stored = load_file(folder / "train.safetensors")["latents"][:, 0, 0]
    assert batch.latents.mean.dtype == torch.float32
    assert torch.equal(batch.latents.mean, stored[batch.index])


@pytest.fixture
def left_processes():
    yield
    if dist.is_initialized():  # because Lightning leaves gloo's group to the tests that follow
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.usefixtures("left_processes")
def test_a_run_under_fsdp2_resumes_on_latents(tmp_path):
    # A codec with weights, rebuilt with others, because FSDP2 restores them only after setup.
    data, one = tiny_data(), codec(Weighted)
    one.weight.fill_(2.0)
    latents, labels = normal(64, 1, 1, 4, 4, 4).float(), torch.zeros(64, dtype=torch.int64)
    for split in ("train", "val"):
        origin = Origin(identity(data), one.digest(), "Weighted")
        write_latents(tmp_path, split, latents, labels, origin)
    cached = CachedLatents(data, tmp_path)
    for steps, weight in ((1, 2.0), (2, 1.0)):
        sharded = ModelParallelStrategy(1, 1, save_distributed_checkpoint=False)
        run = trainer(tmp_path, steps, devices=1, strategy=sharded, limit_val_batches=1)
        module = tiny_module(data=data.spec, codec=Weighted(weight), net=LatentUNet)
        path = tmp_path / "checkpoints" / "last.ckpt" if steps == 2 else None
        run.fit(module, cached, ckpt_path=path, weights_only=True)
    assert run.global_step == 2


def test_a_checkpoint_is_told_where_its_latents_are_now(folder, tmp_path):
    before, now = tmp_path / "before", tmp_path / "now"
    shutil.copytree(folder, before)
    fit(tmp_path, 1, data=CachedLatents(tiny_data(), before), codec=Haar(), net=LatentUNet)
    before.rename(now)
    path = tmp_path / "checkpoints" / "last.ckpt"
    with pytest.raises(InputError, match=r"where they are now by --data\.folder"):
        Loaded.read(path).data.source("train")
    assert len(Loaded.read(path, DataPlace(folder=str(now))).data.source("train")) == 64


class Weighted(Haar):
    """Haar's latents, with a weight that its arguments do not determine."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("weight", torch.tensor(weight))

    def latent_arguments(self):
        return {}


class Drawn(Haar):
    """Haar's latents, with a deviation that is drawn from."""

    draws = True


def test_a_stored_deviation_is_drawn_from(tmp_path):
    data, one = tiny_data(), codec(Drawn)
    latents, labels = normal(64, 1, 2, 4, 4, 4).float().abs(), torch.zeros(64, dtype=torch.int64)
    origin = Origin(identity(data), one.digest(), "Drawn")
    for split in ("train", "val"):
        write_latents(tmp_path, split, latents, labels, origin)
    cached = CachedLatents(data, tmp_path)
    module = fit(tmp_path / "run", 1, data=cached, codec=Drawn(), net=LatentUNet)
    batch = cached.finished("train")
    std = latents[:, 0, 1]
    noise = normal(64, 4, 4, 4, seed=9).float()
    drawn = module.latents(batch, lambda draw, shape: noise)
    scale = module.codec.scale.view(1, -1, 1, 1)
    torch.testing.assert_close(drawn - module.latents(batch), std * noise / scale)


# ------------------------------------------------------------------------------ refusals


def test_latents_of_other_data_are_refused(folder):
    with pytest.raises(InputError, match="holds latents of"):
        CachedLatents(tiny_data(held_out=10), folder).source("train")


def test_latents_of_another_codec_are_refused(folder, tmp_path):
    with pytest.raises(InputError, match="encoded by another codec than the model's Haar"):
        fit(
            tmp_path,
            1,
            data=CachedLatents(tiny_data(), folder),
            codec=Haar(levels=2),
            net=LatentUNet,
        )


def test_captions_around_latents_hide_no_other_codec(folder):
    data = CachedLatents(tiny_data(), folder)
    captioned = Captioned(data, [str(label) for label in range(data.num_classes or 0)])
    codec = Haar(levels=2)
    codec.attach(tiny_data().spec)
    check_latents(codec, captioned)
    with pytest.raises(InputError, match="encoded by another codec than the model's Haar"):
        captioned.source("train")


def test_a_run_without_a_codec_is_refused(folder, tmp_path):
    with pytest.raises(InputError, match="encoded by another codec than the model's Identity"):
        fit(tmp_path, 1, data=CachedLatents(tiny_data(), folder))


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_latents_of_another_codec_are_not_measured(folder, tmp_path, stage):
    module = tiny_module(data=tiny_data().spec, codec=Haar(levels=2), net=LatentUNet)
    run = trainer(tmp_path, 1, limit_val_batches=1, limit_test_batches=1)
    with pytest.raises(InputError, match="encoded by another codec than the model's Haar"):
        getattr(run, stage)(module, CachedLatents(tiny_data(), folder))


def test_latents_of_another_codec_are_refused_for_a_checkpoint(folder, tmp_path):
    fit(tmp_path, 1, data=tiny_data(), codec=Haar(levels=2), net=LatentUNet)
    loaded = Loaded.read(tmp_path / "checkpoints" / "last.ckpt")
    described = CachedLatents(tiny_data(), folder).describe()
    with pytest.raises(InputError, match="encoded by another codec"):
        replace(loaded, description=described).data.source("train")


@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_an_autoencoder_is_not_trained_or_measured_on_latents(folder, tmp_path, stage):
    data = CachedLatents(tiny_data(), folder)
    net = partial(Autoencoder2d, channels=8, multipliers=[1, 2], groups=4, latent_channels=2)
    run = trainer(tmp_path, 1, limit_val_batches=1, limit_test_batches=1)
    with pytest.raises(InputError, match="trained on images, and CachedLatents holds latents"):
        getattr(run, stage)(Autoencoder(data.spec, net), data)


def test_a_data_set_without_test_images_is_refused_before_anything_is_written(tmp_path):
    class NoTest(type(tiny_data())):
        def source(self, split):
            found = super().source(split)
            return Tensors(found.samples[:0], found.labels[:0]) if split == "test" else found

    with pytest.raises(InputError, match="NoTest has no test images"):
        encode(tmp_path / "out", data=NoTest(), codec=Haar())
    assert not (tmp_path / "out").exists()


def test_mirrored_data_needs_mirrored_latents(tmp_path):
    main(["encode", f"--out={tmp_path / 'out'}", "--codec=Haar", *DIGITS])
    with pytest.raises(InputError, match=r"encode with --data\.flip true"):
        CachedLatents(tiny_data(flip=True), tmp_path / "out").source("train")


def test_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "train.safetensors").write_bytes(b"not latents")
    with pytest.raises(InputError, match="encode anew"):
        CachedLatents(tiny_data(), tmp_path).source("train")


def test_encode_needs_to_know_by_what(tmp_path, capsys):
    line = fail(capsys, "encode", f"--out={tmp_path / 'out'}", *DIGITS)
    assert "Give --ckpt AUTOENCODER or --codec CLASS" in line
