"""The U-Net of double convolutions: parameter count, and parts against other implementations."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ddpm_lightning.networks import DoubleConvUNet
from ddpm_lightning.networks.double_conv_unet import DoubleConv, PixelTransformer, Stage
from tests.small import image_spec, inputs, labels, randomized


def double(a: int, b: int, hidden: int) -> int:
    """Two 3×3 convolutions without bias; each norm has scale and shift."""
    return 9 * a * hidden + 2 * hidden + 9 * hidden * b + 2 * b


def attention(c: int) -> int:
    """Four projections, two feed-forward layers, two norms."""
    return 4 * (c * c + c) + 2 * (c * c + c) + 2 * 2 * c


def stage(a: int, b: int, hidden: int) -> int:
    return double(a, a, a) + double(a, b, hidden) + (256 * b + b) + attention(b)


DOWN = stage(64, 128, 128) + stage(128, 256, 256) + stage(256, 256, 256)
UP = stage(512, 128, 256) + stage(256, 64, 128) + stage(128, 64, 64)
WIDE = double(256, 512, 512) + double(512, 512, 512) + double(512, 256, 256)
NARROW = 2 * double(256, 256, 256)


@pytest.mark.parametrize(("wide", "bottleneck"), [(True, WIDE), (False, NARROW)])
@pytest.mark.parametrize(("classes", "table"), [(None, 0), (10, 11 * 256)])
def test_the_published_network_has_its_layers_parameters(wide, bottleneck, classes, table):
    with torch.device("meta"):
        net = DoubleConvUNet(image_spec(3, 64, num_classes=classes), 3, wide_bottleneck=wide)
    expected = double(3, 64, 64) + DOWN + bottleneck + UP + (64 * 3 + 3) + table
    assert sum(p.numel() for p in net.parameters()) == expected


def test_features_have_the_published_sizes():
    with torch.device("meta"):
        net = DoubleConvUNet(image_spec(3, 64), 3)
        sizes: list[list[int]] = []
        for part in (net.stem, *net.down, *net.bottleneck, *net.up):
            part.register_forward_hook(lambda _, inputs, out: sizes.append(list(out.shape[1:])))
        net(torch.empty(1, 3, 64, 64), torch.empty(1))
    down = [[64, 64, 64], [128, 32, 32], [256, 16, 16], [256, 8, 8]]
    bottleneck = [[512, 8, 8], [512, 8, 8], [256, 8, 8]]
    assert sizes == [*down, *bottleneck, [128, 16, 16], [64, 32, 32], [64, 64, 64]]
    assert sum(isinstance(part, PixelTransformer) for part in net.modules()) == 6


@torch.no_grad()
@pytest.mark.parametrize("residual", [False, True])
def test_double_convolution_computes_its_formula(residual):
    x = inputs(2, 6, 5, 7)[0]
    block = randomized(DoubleConv(6, 6, hidden=4, residual=residual))
    w = block.state_dict()

    def normalize(h, name):  # over all features of a sample at once: one group
        flat = h.flatten(1)
        h = (
            (flat - flat.mean(1, True)) / (flat.var(1, False, keepdim=True) + 1e-5).sqrt()
        ).view_as(h)
        return h * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][:, None, None]

    h = F.gelu(normalize(F.conv2d(x, w["conv1.weight"], padding=1), "norm1"))
    h = normalize(F.conv2d(h, w["conv2.weight"], padding=1), "norm2")
    torch.testing.assert_close(block(x), F.gelu(x + h) if residual else h)


@torch.no_grad()
def test_attention_is_torchs_multi_head_attention_and_a_feed_forward_part():
    block = randomized(PixelTransformer(16, heads=4))
    theirs = nn.MultiheadAttention(16, 4, batch_first=True)
    theirs.in_proj_weight.copy_(block.qkv.weight)
    theirs.in_proj_bias.copy_(block.qkv.bias)
    theirs.out_proj.load_state_dict(block.attended.state_dict())
    x = inputs(3, 16, 4, 6)[0]
    tokens = x.flatten(2).mT
    normal = block.norm1(tokens)
    tokens = tokens + theirs(normal, normal, normal)[0]
    forward = nn.Sequential(block.norm2, block.expand, nn.GELU(), block.contract)
    expected = (tokens + forward(tokens)).mT.reshape(3, 16, 4, 6)
    torch.testing.assert_close(block(x), expected)


@torch.no_grad()
def test_sines_cosines_and_the_labels_row_reach_every_stage_through_silu_and_a_linear_layer():
    net = randomized(DoubleConvUNet(image_spec(num_classes=3), 1, 8, [1, 2, 2], heads=2))
    stages = [part for part in net.modules() if isinstance(part, Stage)]
    seen: list[torch.Tensor] = []
    for one in stages:
        one.condition.register_forward_hook(lambda _, given, out: seen.append(given[0]))
    x, _ = inputs(2, 1, 8, 8)
    c_noise = torch.tensor([3.0, 700.0])
    net(x, c_noise, labels(2, -1))
    angles = c_noise[:, None] / 10_000 ** (torch.arange(0, 256, 2) / 256)
    code = torch.cat([angles.sin(), angles.cos()], dim=1) + net.embed.label.weight[[2, 3]]
    assert len(seen) == len(stages) == 4
    for given in seen:
        torch.testing.assert_close(given, F.silu(code), atol=1e-4, rtol=1e-4)
