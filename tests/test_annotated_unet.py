"""The U-Nets of the annotated diffusion model: their parameters, and their layers one by one."""

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from ddpm_lightning.networks import AnnotatedUNet, AnnotatedUNet2022
from ddpm_lightning.networks.annotated_unet import PixelAttention
from ddpm_lightning.networks.blocks import PostNormBlock
from tests.small import image_spec, inputs, labels, randomized


def conv(a: int, b: int, kernel: int) -> int:
    return kernel**2 * a * b + b


def attention(c: int, linear: bool = True) -> int:
    """A norm, queries, keys and values of 4 × 32 without bias, the way out, perhaps a norm."""
    return 2 * c + 3 * 128 * c + conv(128, c, 1) + (2 * c if linear else 0)


def level_embedding(c: int) -> int:
    return (c * 4 * c + 4 * c) + (4 * c * 4 * c + 4 * c)


def convnext(a: int, b: int, told: bool = True) -> int:
    """7×7 depthwise, norm, 3×3 to 2b, norm, 3×3 to b; a 1×1 convolution where widths differ."""
    layers = 49 * a + a + 2 * a + conv(a, 2 * b, 3) + 2 * 2 * b + conv(2 * b, b, 3)
    return layers + (112 * a + a if told else 0) + (conv(a, b, 1) if a != b else 0)


def residual(a: int, b: int, told: int = 1) -> int:
    """Twice 3×3 and norm; ``told`` numbers a feature from the level's embedding of 112."""
    layers = conv(a, b, 3) + conv(b, b, 3) + 2 * 2 * b
    return layers + told * (112 * b + b) + (conv(a, b, 1) if a != b else 0)


def first_form(block) -> int:
    down = sum(
        block(a, b) + block(b, b) + attention(b) for a, b in [(18, 28), (28, 56), (56, 112)]
    )
    mid = 2 * block(112, 112) + attention(112, linear=False)
    up = sum(block(2 * b, a) + block(a, a) + attention(a) for a, b in [(28, 56), (56, 112)])
    sizes = conv(28, 28, 4) + conv(56, 56, 4) + conv(56, 56, 4) + conv(28, 28, 4)
    return conv(1, 18, 7) + level_embedding(28) + down + mid + up + sizes


def later_form(stem: int, kernel: int, shown: int) -> int:
    def block(a: int, b: int) -> int:
        return residual(a, b, told=2)

    levels = [(stem, 28), (28, 56), (56, 112)]
    down = sum(2 * block(a, a) + attention(a) for a, _ in levels)
    smaller = conv(4 * stem, 28, 1) + conv(4 * 28, 56, 1) + conv(56, 112, 3)
    mid = 2 * block(112, 112) + attention(112, linear=False)
    up = sum(2 * block(a + b, b) + attention(b) for a, b in levels)
    larger = conv(112, 56, 3) + conv(56, 28, 3) + conv(28, stem, 3)
    last = block(2 * stem, 28) + conv(28, 1, 1)
    first = conv(shown, stem, kernel) + level_embedding(28)
    return first + down + smaller + mid + up + larger + last


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, first_form(convnext) + convnext(28, 28, told=False) + conv(28, 1, 1)),
        (
            {"block": "residual", "groups": 4},
            first_form(residual) + residual(28, 28, told=0) + conv(28, 1, 1),
        ),
    ],
    ids=str,
)
def test_the_first_form_has_its_layers_parameters(settings, expected):
    with torch.device("meta"):
        assert count(AnnotatedUNet2022(image_spec(1, 28), 1, **settings)) == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, later_form(28, 1, 1)),
        ({"stem_kernel": 7, "stem_channels": 20}, later_form(20, 7, 1)),
        ({"self_conditioning": True}, later_form(28, 1, 2)),
    ],
    ids=str,
)
def test_the_later_form_has_its_layers_parameters(settings, expected):
    with torch.device("meta"):
        assert count(AnnotatedUNet(image_spec(1, 28), 1, **settings)) == expected


@torch.no_grad()
def test_full_attention_is_torchs_multi_head_attention_in_heads_of_32():
    ours = randomized(PixelAttention(8, heads=2, linear=False))
    x = inputs(3, 8, 4, 6)[0]
    tokens = ours.norm(x).flatten(2).mT
    # torch's has as many features inside as outside, so both are widened by zeros to 64.
    theirs = nn.MultiheadAttention(64, 2, batch_first=True)
    theirs.in_proj_weight.zero_()[:, :8] = ours.qkv.weight[:, :, 0, 0]
    theirs.in_proj_bias.zero_()
    theirs.out_proj.weight.zero_()[:8] = ours.out.weight[:, :, 0, 0]
    theirs.out_proj.bias.zero_()[:8] = ours.out.bias
    wide = F.pad(tokens, (0, 56))
    expected = theirs(wide, wide, wide)[0][..., :8].mT.reshape(x.shape)
    torch.testing.assert_close(ours(x), x + expected)


@torch.no_grad()
def test_linear_attention_averages_values_by_the_softmax_over_pixels_and_normalizes():
    net = randomized(PixelAttention(8, heads=2, linear=True))
    x = inputs(2, 8, 4, 6)[0]
    qkv = F.conv2d(F.group_norm(x, 1, net.norm.weight, net.norm.bias, 1e-6), net.qkv.weight)
    q, k, v = qkv.reshape(2, 3, 2, 32, 24).unbind(1)  # [B, heads, features, pixels]
    # The map from pixel m to pixel n, written out: what linear attention never builds.
    weights = torch.einsum("bhdn,bhdm->bhnm", q.softmax(2), k.softmax(3))
    mixed = torch.einsum("bhnm,bhdm->bhdn", weights, v).reshape(2, 64, 4, 6)
    out = F.conv2d(mixed, net.out.weight, net.out.bias)
    expected = x + F.group_norm(out, 1, net.end.weight, net.end.bias, 1e-6)
    torch.testing.assert_close(net(x), expected)


@torch.no_grad()
def test_the_first_forms_residual_block_adds_the_level_after_the_activation():
    block = randomized(PostNormBlock(4, 6, embedding=5, groups=2))
    w = block.state_dict()
    x, e = inputs(2, 4, 5, 7)[0], inputs(2, 5)[0]

    def convolved(h, n):
        h = F.conv2d(h, w[f"conv{n}.weight"], w[f"conv{n}.bias"], padding=1)
        return F.silu(F.group_norm(h, 2, w[f"norm{n}.weight"], w[f"norm{n}.bias"], 1e-6))

    told = F.silu(e) @ w["condition.weight"].T + w["condition.bias"]
    kept = F.conv2d(x, w["shortcut.weight"], w["shortcut.bias"])
    expected = kept + convolved(convolved(x, 1) + told[:, :, None, None], 2)
    torch.testing.assert_close(block(x, e), expected)


def embedded(net, t, label=None):
    """MLP with GELU of sines and cosines at frequencies from 1 to 1/10000, and the label's row."""
    half = net.embed.channels // 2
    angles = t[:, None] / 10_000 ** (torch.arange(half) / (half - 1))
    code = torch.cat([angles.sin(), angles.cos()], dim=1)
    e = net.embed.linear2(F.gelu(net.embed.linear1(code)))
    return e if label is None else e + net.embed.label.weight[label]


@torch.no_grad()
def test_the_first_form_computes_its_layers_in_order():
    net = randomized(AnnotatedUNet2022(image_spec(2, 8, num_classes=3), 2, 8, [1, 2, 4], heads=1))
    x, _ = inputs(2, 2, 8, 12)
    t = torch.tensor([3.0, 170.0])
    e = embedded(net, t, [1, 3])
    w = net.state_dict()

    def strided(h, level):
        name = f"down.{level}.resize"
        return F.conv2d(h, w[f"{name}.weight"], w[f"{name}.bias"], stride=2, padding=1)

    def doubled(h, level):
        name = f"up.{level}.resize"
        return F.conv_transpose2d(h, w[f"{name}.weight"], w[f"{name}.bias"], 2, padding=1)

    def level(part, h):
        return part.attention(part.blocks[1](part.blocks[0](h, e), e))

    fine = level(net.down[0], F.conv2d(x, w["stem.weight"], w["stem.bias"], padding=3))
    half = level(net.down[1], strided(fine, 0))
    quarter = level(net.down[2], strided(half, 1))
    h = net.mid.after(net.mid.attention(net.mid.before(quarter, e)), e)
    h = doubled(level(net.up[0], torch.cat([h, quarter], dim=1)), 0)
    h = doubled(level(net.up[1], torch.cat([h, half], dim=1)), 1)
    expected = F.conv2d(net.last_block(h), w["out.weight"], w["out.bias"])
    torch.testing.assert_close(net(x, t, labels(1, -1)), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_later_form_computes_its_layers_in_order():
    net = randomized(AnnotatedUNet(image_spec(2, 8), 2, 8, [1, 2], stem_kernel=7, heads=1))
    x, _ = inputs(2, 2, 8, 12)
    t = torch.tensor([3.0, 170.0])
    e = embedded(net, t)
    w = net.state_dict()

    def convolved(h, name, padding=1):
        return F.conv2d(h, w[f"{name}.weight"], w[f"{name}.bias"], padding=padding)

    stem = convolved(x, "stem", 3)
    fine = net.down[0].blocks[0](stem, e)
    fine2 = net.down[0].attention(net.down[0].blocks[1](fine, e))
    pixels = rearrange(fine2, "b c (h i) (w j) -> b (c i j) h w", i=2, j=2)
    h = convolved(pixels, "down.0.resize.1", 0)
    half = net.down[1].blocks[0](h, e)
    half2 = net.down[1].attention(net.down[1].blocks[1](half, e))
    h = convolved(half2, "down.1.resize")
    h = net.mid.after(net.mid.attention(net.mid.before(h, e)), e)
    h = net.up[0].blocks[0](torch.cat([h, half2], dim=1), e)
    h = net.up[0].attention(net.up[0].blocks[1](torch.cat([h, half], dim=1), e))
    larger = h.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    h = convolved(larger, "up.0.resize.conv")
    h = net.up[1].blocks[0](torch.cat([h, fine2], dim=1), e)
    h = net.up[1].attention(net.up[1].blocks[1](torch.cat([h, fine], dim=1), e))
    h = convolved(h, "up.1.resize")
    expected = convolved(net.last_block(torch.cat([h, stem], dim=1), e), "out", 0)
    torch.testing.assert_close(net(x, t), expected, atol=1e-4, rtol=1e-4)
