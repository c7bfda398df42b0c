"""The perceptual distance against its formula, from a file in torchvision's format."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torchvision.models.vgg import cfgs, make_layers

from ddpm_lightning import Autoencoder
from ddpm_lightning.errors import InputError
from ddpm_lightning.perceptual import VGG
from tests.small import tiny_data
from tests.test_autoencoder import train

LAST = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Random weights under the names of the published file, with one of the classifier's."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    tensors = {f"features.{k}": v for k, v in make_layers(cfgs["D"]).state_dict().items()}
    torch.save(tensors | {"classifier.6.bias": torch.zeros(1000)}, path)
    return path


def features(file, x):
    """The last ReLU of each block, counted as the paper does: a block ends at each pooling."""
    tensors, found, number = torch.load(file, weights_only=True), [], 0
    for width in cfgs["D"]:
        if width == "M":
            found.append(x)
            x, number = F.max_pool2d(x, 2, ceil_mode=True), number + 1
        else:
            weight, bias = (tensors[f"features.{number}.{name}"] for name in ("weight", "bias"))
            x, number = F.relu(F.conv2d(x, weight.to(x), bias.to(x), padding=1)), number + 2
    assert len(found) == len(LAST)
    return found


@pytest.mark.parametrize("channels", [1, 3])
def test_the_distance_is_that_of_unit_features_of_five_blocks(file, channels):
    torch.manual_seed(1)
    x, y = torch.rand(2, 2, channels, 16, 16) * 2 - 1
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1).double()
    deviation = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1).double()
    shown = [((one.double().expand(2, 3, 16, 16) + 1) / 2 - mean) / deviation for one in (x, y)]
    expected = torch.zeros(2).double()
    for a, b in zip(*(features(file, one) for one in shown), strict=True):
        a, b = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
        expected += (a - b).pow(2).sum(1).mean((1, 2))
    torch.testing.assert_close(VGG(str(file))(x, y).double(), expected, rtol=1e-4, atol=0)


def test_its_gradient_reaches_the_images_and_no_weight(file):
    distance = VGG(str(file))
    x = torch.rand(1, 3, 16, 16, requires_grad=True)
    distance(x, torch.rand(1, 3, 16, 16)).sum().backward()
    assert x.grad is not None
    assert float(x.grad.abs().sum()) > 0
    assert not any(p.requires_grad for block in distance._blocks for p in block.parameters())


@pytest.mark.slow
def test_it_is_trained_with_and_its_weights_are_in_no_checkpoint(file, tmp_path):
    flags = ["--model.perceptual=VGG", f"--model.perceptual.path={file}"]
    saved = train(tmp_path / "run", 1, "--data.image_size=16", *flags)
    assert saved.stat().st_size < 5_000_000
    moved = file.rename(file.with_name("moved.pth"))
    try:
        assert Autoencoder.load_from_checkpoint(saved).perceptual.path == str(file)
    finally:
        moved.rename(file)


def test_a_missing_file_is_told_with_where_it_is_published(tmp_path):
    with pytest.raises(
        InputError, match=r"there is no file .*; download https://.*vgg16-397923af"
    ):
        VGG(str(tmp_path / "vgg.pth")).prepare((3, 32, 32))


@pytest.mark.parametrize("content", [b"no weights", {"features.0.weight": torch.zeros(3)}])
def test_a_file_of_something_else_is_refused_before_training(content, tmp_path):
    path = tmp_path / "vgg.pth"
    if isinstance(content, dict):
        torch.save(content, path)
    else:
        path.write_bytes(content)
    with pytest.raises(
        InputError, match="does not hold the plain weights of torchvision's VGG-16"
    ):
        VGG(str(path)).prepare((3, 32, 32))


def test_images_that_five_blocks_do_not_fit_are_refused(file):
    with pytest.raises(InputError, match="16×16 pixels or more"):
        VGG(str(file)).prepare(tiny_data().spec.shape)
