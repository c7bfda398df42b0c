import hashlib
import os
import urllib.error
import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import scipy.linalg
import sklearn.datasets
import torch
import torch.nn.functional as F
from torch import nn

from ddpm_lightning.configurable import build
from ddpm_lightning.errors import InputError
from ddpm_lightning.metrics import Inception, LeNet, Statistics, frechet_distance
from ddpm_lightning.metrics.lenet import WEIGHTS
from ddpm_lightning.metrics.train_lenet import train


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def gaussian(n, d, seed, scale=1.0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * scale


# Fréchet distance


def test_statistics_are_numpys_mean_and_covariance():
    features = gaussian(5000, 6, seed=0) + 100
    statistics = Statistics.of(features)
    x = features.double().numpy()
    assert statistics.n == 5000
    assert statistics.mean.dtype == statistics.cov.dtype == torch.float64
    np.testing.assert_allclose(statistics.mean, x.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(statistics.cov, np.cov(x.T), rtol=1e-9, atol=1e-12)


def test_frechet_distance_of_diagonal_gaussians_is_the_closed_form():
    mean_a, mean_b = torch.tensor([0.0, 1.0, -2.0]), torch.tensor([3.0, 1.0, 2.0])
    std_a, std_b = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([4.0, 2.0, 0.0])
    a = Statistics(mean_a.double(), std_a.square().diag().double(), 10)
    b = Statistics(mean_b.double(), std_b.square().diag().double(), 10)
    expected = 3**2 + 4**2 + 3**2 + 0.5**2  # squared differences of the means and of the stds
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_is_the_formula_with_scipys_matrix_root():
    a = gaussian(200, 12, seed=1) @ gaussian(12, 12, seed=2)
    b = gaussian(300, 12, seed=3) @ gaussian(12, 12, seed=4) + 0.5
    x, y = a.double().numpy(), b.double().numpy()
    cov_x, cov_y = np.cov(x.T), np.cov(y.T)
    root = scipy.linalg.sqrtm(cov_x @ cov_y).real
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(cov_x + cov_y - 2 * root)
    distance = frechet_distance(Statistics.of(a), Statistics.of(b))
    assert distance == pytest.approx(expected, rel=1e-9)
    assert distance == pytest.approx(frechet_distance(Statistics.of(b), Statistics.of(a)))


@pytest.mark.parametrize("n", [2, 10, 1000])
def test_frechet_distance_of_equals_is_zero_and_a_shift_adds_its_square(n):
    features = gaussian(n, 64, seed=5)
    statistics = Statistics.of(features)
    shifted = Statistics(statistics.mean + 2.0, statistics.cov, n)
    assert 0 <= frechet_distance(statistics, statistics) < 1e-10
    assert frechet_distance(statistics, shifted) == pytest.approx(64 * 2.0**2, abs=1e-10)


def test_singular_covariances_give_a_finite_distance():
    few = Statistics.of(gaussian(5, 128, seed=6))
    constant = Statistics.of(torch.ones(5, 128))
    assert np.isfinite(frechet_distance(few, Statistics.of(gaussian(7, 128, seed=7))))
    expected = (few.mean - 1).square().sum() + few.cov.trace()
    assert frechet_distance(few, constant) == pytest.approx(expected.item())


def test_floor_between_samples_of_one_distribution_falls_like_one_over_n():
    floors = [
        frechet_distance(Statistics.of(gaussian(n, 16, 8)), Statistics.of(gaussian(n, 16, 9)))
        for n in (100, 400, 1600)
    ]
    assert floors[0] > 2.5 * floors[1] > 2.5**2 * floors[2]


def test_too_few_mismatched_and_broken_features_are_named():
    with pytest.raises(InputError, match=r"n ≥ 2"):
        Statistics.of(torch.zeros(1, 4))
    with pytest.raises(InputError, match="not finite"):
        Statistics.of(torch.tensor([[1.0], [float("nan")]]))
    with pytest.raises(InputError, match="same extractor"):
        frechet_distance(Statistics.of(torch.zeros(3, 4)), Statistics.of(torch.zeros(3, 5)))


# LeNet


def digits():
    data = sklearn.datasets.load_digits()
    images = torch.from_numpy(data.images).mul(255 / 16).round().to(torch.uint8)
    return images[:, None], torch.from_numpy(data.target)  # [1797, 1, 8, 8]


@pytest.fixture(scope="module")
def lenet():
    return LeNet()


def test_lenet_ships_less_than_a_megabyte_of_safetensors(lenet):
    assert WEIGHTS.stat().st_size < 400_000
    assert all(v.dtype == torch.float32 for v in safetensors.torch.load_file(WEIGHTS).values())
    assert lenet.digest == hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()


def test_lenet_reads_digits_it_has_never_seen(lenet):
    images, labels = digits()
    recognised = lenet.classify(images).argmax(dim=1) == labels
    assert recognised.double().mean() > 0.90


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (32, 32), (9, 40)])
def test_lenet_reads_any_size_from_eight_pixels_on(lenet, size):
    images = torch.randint(256, (3, 1, *size), dtype=torch.uint8)
    features = lenet(images)
    assert (features.shape, features.dtype) == ((3, lenet.dim), torch.float32)
    assert lenet.classify(images).shape == (3, 10)


def test_enlarging_and_padding_keep_the_digit(lenet):
    images, _ = digits()
    images = images[:500]
    small = lenet.classify(images).argmax(dim=1)
    large = F.interpolate(images.float(), size=(28, 28), mode="bilinear").round()
    padded = F.pad(large, (2, 2, 2, 2))
    for other, least in ((large, 0.99), (padded, 0.85)):
        agreement = lenet.classify(other.to(torch.uint8)).argmax(dim=1) == small
        assert agreement.double().mean() > least


def test_lenet_distance_grows_with_corruption(lenet):
    images, _ = digits()
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    a, b = images[::2], images[1::2]
    reference = Statistics.of(lenet(a))
    distances = [
        frechet_distance(
            Statistics.of(
                lenet((b + scale * noise[1::2]).round().clamp(0, 255).to(torch.uint8)),
            ),
            reference,
        )
        for scale in (0, 16, 64)
    ]
    assert distances == sorted(distances)
    assert distances[2] > 2 * distances[0]


def test_features_depend_on_nothing_but_the_image(lenet):
    images, _ = digits()
    images = images[:64]
    features = lenet(images)
    assert torch.equal(features, LeNet()(images))
    torch.testing.assert_close(features[:1], lenet(images[:1]))
    assert lenet(images[:0]).shape == (0, lenet.dim)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(features, lenet(images))
        assert lenet.classify(images).dtype == torch.float32


def test_extractor_is_frozen_and_registers_nowhere(lenet):
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.extractor = lenet

    lenet.check()
    assert not list(Holder().parameters())
    assert not Holder().state_dict()
    assert not lenet.network.training
    assert not any(p.requires_grad for p in lenet.network.parameters())
    assert not lenet(torch.zeros(1, 1, 8, 8, dtype=torch.uint8)).requires_grad


def test_loading_draws_nothing_and_survives_inference_mode():
    state = torch.get_rng_state()
    extractor = LeNet()
    with torch.inference_mode():
        extractor.check()
    assert torch.equal(state, torch.get_rng_state())
    assert not any(p.is_inference() for p in extractor.network.parameters())


def test_lenet_refuses_what_it_cannot_read(lenet):
    with pytest.raises(InputError, match=r"8-bit.*to_uint8"):
        lenet(torch.zeros(1, 1, 28, 28))
    with pytest.raises(InputError, match=r"1 channel.*\[1, 3, 28, 28\].*Inception"):
        lenet(torch.zeros(1, 3, 28, 28, dtype=torch.uint8))
    with pytest.raises(InputError, match="8×8"):
        lenet(torch.zeros(1, 1, 7, 8, dtype=torch.uint8))


def test_missing_and_damaged_lenet_weights_are_named(monkeypatch, tmp_path):
    path = tmp_path / "lenet.safetensors"
    monkeypatch.setattr("ddpm_lightning.metrics.lenet.WEIGHTS", path)
    with pytest.raises(InputError, match="train_lenet"):
        LeNet().check()
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(InputError, match="train_lenet"):
        LeNet().check()


def test_training_learns_and_writes_the_tensors_that_ship(tmp_path):
    images, labels = digits()
    torch.manual_seed(0)
    large = F.interpolate(images[:960].float(), size=(28, 28), mode="bilinear").to(torch.uint8)
    network = train(large, labels[:960], epochs=4)
    shipped = safetensors.torch.load_file(WEIGHTS)
    assert {k: v.shape for k, v in network.state_dict().items()} == {
        k: v.shape for k, v in shipped.items()
    }
    with torch.no_grad():
        recognised = network.classifier(network(images[960:])).argmax(dim=1) == labels[960:]
    assert recognised.double().mean() > 0.5  # guessing: 0.1


@pytest.mark.parametrize("extractor", [LeNet(), Inception(), Inception(weights="some/file.pth")])
def test_extractors_are_rebuilt_from_their_description(extractor):
    assert build(extractor.describe()).describe() == extractor.describe()


# Inception


@pytest.fixture(scope="module")
def inception(inception_file):
    extractor = Inception(weights=str(inception_file))
    with pytest.warns(UserWarning, match="not comparable with published FIDs"):
        extractor.check()
    return extractor


def test_inception_features_are_torch_fidelitys(inception, inception_file):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Network

    images = torch.randint(256, (2, 3, 32, 40), dtype=torch.uint8)
    (expected,) = Network("reference", ["2048"], str(inception_file))(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = inception(images)
    assert (features.shape, features.dtype) == ((2, 2048), torch.float32)
    assert expected.std() > 0.01
    assert torch.equal(features, expected)
    assert not any(p.requires_grad for p in inception.network.parameters())
    assert inception.digest == hashlib.sha256(inception_file.read_bytes()).hexdigest()


def test_inception_repeats_grey_images_and_refuses_others(inception):
    grey = torch.randint(256, (1, 1, 28, 28), dtype=torch.uint8)
    assert torch.equal(inception(grey), inception(grey.repeat(1, 3, 1, 1)))
    with pytest.raises(InputError, match=r"1 or 3 channel.*\[1, 4, 28, 28\]"):
        inception(torch.zeros(1, 4, 28, 28, dtype=torch.uint8))
    with pytest.raises(InputError, match="8-bit"):
        inception(torch.zeros(1, 3, 28, 28))


def test_digest_warning_comes_once(inception):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inception.check()
        inception(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


def test_inception_finds_the_file_in_torch_hubs_cache(monkeypatch, tmp_path, inception_file):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    name = "weights-inception-2015-12-05-6726825d.pth"
    (tmp_path / "checkpoints" / name).symlink_to(inception_file)
    state = torch.get_rng_state()
    extractor = Inception()
    with torch.inference_mode(), pytest.warns(UserWarning, match="not comparable"):
        extractor.check()
    assert torch.equal(state, torch.get_rng_state())
    assert not any(p.is_inference() for p in extractor.network.parameters())


@pytest.mark.parametrize(
    "error", [urllib.error.URLError("no route"), RuntimeError("invalid hash")]
)
def test_no_file_and_no_network_is_an_error_with_the_ways_on(monkeypatch, tmp_path, error):
    def fail(url, path, hash_prefix):
        assert hash_prefix == "6726825d"
        raise error

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(InputError) as caught:
        Inception().check()
    expected = tmp_path / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    for part in (str(expected), "https://github.com/toshas", "weights: PATH", "LeNet"):
        assert part in str(caught.value)
    with pytest.raises(InputError, match=r"elsewhere\.pth.*weights: PATH"):
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
    with pytest.raises(InputError, match="not a file of plain weights"):
        Inception(weights=str(path)).check()
    assert not marker.exists()
    torch.load(path, weights_only=False)  # what torch-fidelity does: the attack is a real one
    assert marker.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>404</html>", b"PK\x03\x04"],
    ids=["empty", "a web page", "cut off"],
)
def test_what_is_no_weights_file_is_named(tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"weights\.pth"):
        Inception(weights=str(path)).check()


@pytest.mark.parametrize("state", [{}, {"fc.bias": torch.zeros(3)}, [torch.zeros(3)], 7])
def test_weights_of_another_network_are_named(tmp_path, state):
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    with pytest.raises(InputError, match=r"weights\.pth does not hold FID"):
        Inception(weights=str(path)).check()
