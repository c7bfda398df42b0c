"""LeNet, Inception and Pixels: what they compute; weights that are missing or hostile."""

from __future__ import annotations

import hashlib
import io
import os
import urllib.error
import warnings
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from ddpm_lightning.configurable import build
from ddpm_lightning.errors import InputError
from ddpm_lightning.metrics import (
    Inception,
    LeNet,
    Pixels,
)
from ddpm_lightning.metrics.features import plain_float32
from ddpm_lightning.metrics.train_lenet import embedded_digits, train

NAME = "weights-inception-2015-12-05-6726825d.pth"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def digits():
    return embedded_digits()  # [1797, 1, 8, 8] uint8, and labels


# ---------------------------------------------------------------------- LeNet and Pixels


def test_lenet_reads_digits_it_has_never_seen_enlarged_and_padded(digits):
    images, labels = digits
    assert (LeNet().both(images).logits.argmax(dim=1) == labels).double().mean() > 0.90
    small = LeNet().both(images[:500]).logits.argmax(dim=1)
    large = F.interpolate(images[:500].float(), size=(28, 28), mode="bilinear").round()
    for other, least in ((large, 0.99), (F.pad(large, (2, 2, 2, 2)), 0.85)):
        agreement = LeNet().both(other.to(torch.uint8)).logits.argmax(dim=1) == small
        assert agreement.double().mean() > least


@pytest.mark.slow
def test_training_learns_and_writes_the_tensors_that_ship(digits):
    images, labels = digits
    torch.manual_seed(0)
    large = F.interpolate(images[:960].float(), size=(28, 28), mode="bilinear").to(torch.uint8)
    network = train(large, labels[:960], epochs=4)
    shipped = {k: v.shape for k, v in safetensors.torch.load_file(LeNet.weights).items()}
    assert {k: v.shape for k, v in network.state_dict().items()} == shipped
    with torch.no_grad():
        recognised = network.classifier(network(images[960:])).argmax(dim=1) == labels[960:]
    assert recognised.double().mean() > 0.5  # guessing: 0.1


@pytest.mark.parametrize("extractor", [LeNet(), Inception(weights="some/file.pth"), Pixels()])
def test_extractors_are_rebuilt_from_their_description(extractor):
    assert build(extractor.describe()).describe() == extractor.describe()


@pytest.mark.parametrize("shape", [(1, 5, 7), (3, 4, 4), (2, 1, 1)])
def test_pixels_are_the_image_in_zero_to_one(shape):
    images = torch.randint(256, (3, *shape), dtype=torch.uint8)
    both = Pixels().both(images)
    assert torch.equal(both.features, images.reshape(3, -1).float() / 255)
    assert both.logits is None


def test_features_know_no_tf32_and_leave_the_switches_alone():
    products = (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn)
    before = [one.fp32_precision for one in products]
    try:
        for one in products:
            one.fp32_precision = "tf32"
        with plain_float32(torch.device("cpu")):
            assert [one.fp32_precision for one in products] == ["ieee"] * 3
        assert [one.fp32_precision for one in products] == ["tf32"] * 3
    finally:
        for one, value in zip(products, before, strict=True):
            one.fp32_precision = value


# ---------------------------------------------------------------------------- Inception


@pytest.fixture(scope="module")
def inception(inception_file):
    extractor = Inception(weights=str(inception_file))
    with pytest.warns(UserWarning, match="not comparable with published FIDs"):
        extractor.check()
    return extractor


@pytest.mark.slow
def test_inceptions_features_and_logits_are_torch_fidelitys(inception, inception_file):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Network

    images = torch.randint(256, (2, 3, 32, 40), dtype=torch.uint8)
    outputs = ["2048", "logits_unbiased"]
    features, logits = Network("reference", outputs, str(inception_file)).eval()(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        both = inception.both(images)
    assert (both.features.shape, both.features.dtype) == ((2, 2048), torch.float32)
    assert features.std() > 0.01
    assert torch.equal(both.features, features)
    assert torch.equal(both.logits, logits)
    assert both.logits.shape == (2, inception.classes)
    fc = inception.network.fc
    assert torch.allclose(both.features @ fc.weight.T, both.logits, atol=1e-4)
    assert fc.bias.abs().max() > 0.01  # left out
    assert not any(p.requires_grad for p in inception.network.parameters())
    assert inception.digest == hashlib.sha256(inception_file.read_bytes()).hexdigest()


@pytest.mark.slow
def test_inception_repeats_grey_images_refuses_others_and_warns_once(inception):
    grey = torch.randint(256, (1, 1, 28, 28), dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(inception(grey), inception(grey.repeat(1, 3, 1, 1)))
    with pytest.raises(InputError, match=r"1 or 3 channel.*\[4, 28, 28\]"):
        inception(torch.zeros(1, 4, 28, 28, dtype=torch.uint8))


def test_inception_finds_the_file_in_torch_hubs_cache(monkeypatch, tmp_path, inception_file):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / NAME).symlink_to(inception_file)
    state, extractor = torch.get_rng_state(), Inception()
    with torch.inference_mode(), pytest.warns(UserWarning, match="not comparable"):
        extractor.check()
    assert torch.equal(state, torch.get_rng_state())
    assert not any(p.is_inference() for p in extractor.network.parameters())


@pytest.mark.parametrize("error", [urllib.error.URLError("no route"), RuntimeError("bad hash")])
def test_no_file_and_no_network_is_an_error_with_the_ways_on(monkeypatch, tmp_path, error):
    def fail(url, path, hash_prefix):
        assert hash_prefix == "6726825d"
        raise error

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(InputError) as caught:
        Inception().check()
    expected = str(tmp_path / "checkpoints" / NAME)
    for part in (expected, "https://github.com/toshas", "--extractor.weights PATH", "LeNet"):
        assert part in str(caught.value)
    with pytest.raises(InputError, match=r"elsewhere\.pth.*--extractor.weights PATH"):
        Inception(weights=str(tmp_path / "elsewhere.pth")).check()


class Attack:
    """A pickle that makes a folder as soon as it is loaded."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_a_pickle_with_code_is_refused_unrun(tmp_path):
    marker, path = tmp_path / "ran", tmp_path / "weights.pth"
    torch.save({"fc.weight": torch.zeros(2), "fc.bias": Attack(marker)}, path)
    with pytest.raises(InputError, match="does not hold the plain weights"):
        Inception(weights=str(path)).check()
    assert not marker.exists()
    torch.load(path, weights_only=False)  # what torch-fidelity does: the attack is a real one
    assert marker.exists()


def pickled(state: object) -> bytes:
    torch.save(state, file := io.BytesIO())
    return file.getvalue()


OTHERS = [{}, {"fc.bias": torch.zeros(3)}, [torch.zeros(3)], 7]


@pytest.mark.parametrize(
    ("content", "message"),
    [(content, "") for content in (b"", b"<html>404</html>", b"PK\x03\x04")]
    + [(pickled(state), " does not hold the plain weights of FID") for state in OTHERS],
)
def test_what_is_no_file_of_inceptions_weights_is_named(tmp_path, content, message):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"weights\.pth{message}"):
        Inception(weights=str(path)).check()
