"""Every image network, and the parts of those beside the DDPM U-Net against their formulas."""

import math
import re

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from scipy.special import erf, expit
from torch import nn

from ddpm_lightning.batch import Condition, DataSpec
from ddpm_lightning.errors import InputError
from ddpm_lightning.networks import (
    AnnotatedUNet,
    AnnotatedUNet2022,
    DiffusersUNet,
    DiT,
    DoubleConvUNet,
    Network,
    SimpleUNet,
    SmallUNet,
    UNet,
)
from ddpm_lightning.networks.blocks import (
    ConvNeXtBlock,
    WeightStandardizedBlock,
    WeightStandardizedConv,
)
from ddpm_lightning.networks.dit import DiTBlock, position_embedding
from ddpm_lightning.networks.layers import Attention, LinearAttention, ResidualBlock
from tests.small import image_spec, inputs, labels, randomized

LEVELS = {"channels": 16, "multipliers": [1, 2], "blocks": 1, "groups": 4, "dropout": 0.0}

ANNOTATED = {"channels": 8, "multipliers": [1, 2], "heads": 1}

NETWORKS: dict[str, tuple[type[Network], dict]] = {
    "annotated_unet": (AnnotatedUNet, ANNOTATED),
    "annotated_unet_2022": (AnnotatedUNet2022, ANNOTATED),
    "annotated_unet_2022 residual": (AnnotatedUNet2022, {**ANNOTATED, "block": "residual"}),
    "dit": (DiT, {"patch": 2, "width": 32, "depth": 2, "heads": 2}),
    "double_conv_unet": (DoubleConvUNet, {"channels": 8, "multipliers": [1, 2], "heads": 2}),
    "simple_unet": (SimpleUNet, {"channels": 8}),
    "small_unet": (SmallUNet, {"channels": 16}),
    "unet": (UNet, LEVELS),
    "diffusers unet": (DiffusersUNet, {**LEVELS, "attention_levels": [1], "head_width": 4}),
    "unet scale_shift": (UNet, {**LEVELS, "multipliers": [2, 1], "scale_shift": True}),
    "no attention": (UNet, {**LEVELS, "attention_levels": [], "mid_attention": False}),
    "convnext": (UNet, {**LEVELS, "block": "convnext"}),
    "convnext scale_shift": (UNet, {**LEVELS, "block": "convnext", "scale_shift": True}),
    "weight_standardized": (UNet, {**LEVELS, "block": "weight_standardized"}),
    "weight_standardized scale_shift": (
        UNet,
        {**LEVELS, "block": "weight_standardized", "scale_shift": True},
    ),
    "linear attention": (UNet, {**LEVELS, "linear_attention_levels": [0], "heads": 2}),
}


@pytest.fixture(params=NETWORKS)
def make(request):
    """Builds one of the networks from the channels of data and output, and facts of the data."""
    network, settings = NETWORKS[request.param]

    def build(channels: int = 1, out: int = 1, **facts: int) -> Network:
        return network(image_spec(channels, **facts), out, **settings)

    return build


# ---- What every network does ----------------------------------------------------------------


@torch.no_grad()
def test_output_has_the_size_of_the_input_and_the_channels_asked_for(make):
    output = randomized(make(3, 6))(*inputs(2, 3, 8, 12))
    assert output.shape == (2, 6, 8, 12)
    assert output.isfinite().all()


def test_untrained_network_predicts_zero(make):
    assert torch.all(make(3, 3, num_classes=10)(*inputs(2, 3, 8, 8)) == 0)


def test_gradients_reach_every_parameter(make):
    net = randomized(make(3, 3, num_classes=1))
    net(*inputs(2, 3, 8, 8), labels(0, -1)).square().sum().backward()
    dead = [name for name, p in net.named_parameters() if p.grad is None or p.grad.norm() < 1e-4]
    # The same number added to all scores of a query, or a feature of all keys, cancels.
    assert [name for name in dead if not name.endswith("key.bias")] == []


@torch.no_grad()
def test_rows_of_a_batch_do_not_see_each_other(make):
    net = randomized(make(num_classes=3, image_channels=1)).double()
    x, c_noise = inputs(3, 1, 8, 8, dtype=torch.float64)
    condition = Condition(torch.tensor([2, -1, 0]), image=x.flip(0))
    rows = [slice(i, i + 1) for i in range(3)]
    outputs = [net(x[row], c_noise[row], condition.rows(row)) for row in rows]
    torch.testing.assert_close(net(x, c_noise, condition), torch.cat(outputs))


@torch.no_grad()
def test_noise_level_and_label_change_the_output(make):
    net = randomized(make(num_classes=2))
    x = inputs(1, 1, 8, 8)[0].expand(4, -1, -1, -1)
    outputs = net(x, torch.tensor([10.0, 10.0, 10.0, 500.0]), labels(-1, 0, 1, 0))
    pairs = [(i, j) for i in range(4) for j in range(i)]
    assert all((outputs[i] - outputs[j]).abs().max() > 1e-3 for i, j in pairs)


def test_no_label_is_the_null_label_whose_row_learns_from_it_alone(make):
    net = randomized(make(num_classes=5))
    x, c_noise = inputs(2, 1, 8, 8)
    assert torch.equal(net(x, c_noise), net(x, c_noise, labels(-1, -1)))
    net(x, c_noise, labels(-1, 3)).square().sum().backward()
    learns = net.embed.label.weight.grad.abs().sum(dim=1) > 0
    assert learns.tolist() == [False, False, False, True, False, True]


@torch.no_grad()
def test_an_unconditional_network_ignores_labels(make):
    net = randomized(make())
    x, c_noise = inputs(2, 1, 8, 8)
    assert torch.equal(net(x, c_noise, labels(0, 7)), net(x, c_noise))


@torch.no_grad()
def test_an_image_is_stacked_below_x_as_it_is_in_the_dtype_of_x(make):
    net, stacked = make(3, 3, image_channels=2), make(5, 3)
    stacked.load_state_dict(randomized(net).state_dict())
    x, c_noise = inputs(2, 3, 8, 8)
    image = 300 * x[:, :2].double()
    condition = Condition(image=image)
    assert net.stack_image(x, condition).dtype == torch.float32
    expected = stacked(torch.cat([x, image.float()], dim=1), c_noise)
    assert torch.equal(net(x, c_noise, condition), expected)


@pytest.mark.parametrize(
    ("channels", "shape", "message"),
    [
        (2, None, r"image is None; UNet, .*image_channels=2, needs \(4, 2, 8, 8\) .*x of shape"),
        (2, (4, 3, 8, 8), r"image is \(4, 3, 8, 8\); .* needs \(4, 2, 8, 8\)"),
        (2, (1, 2, 8, 8), r"image is \(1, 2, 8, 8\); .* needs \(4, 2, 8, 8\)"),
        (2, (4, 2, 4, 4), r"image is \(4, 2, 4, 4\); .* needs \(4, 2, 8, 8\)"),
        (0, (4, 2, 8, 8), r"image is \(4, 2, 8, 8\); .* needs None"),
    ],
)
def test_a_missing_or_unfitting_image_is_refused(channels, shape, message):
    net = UNet(image_spec(image_channels=channels), 1, **LEVELS)
    with pytest.raises(InputError, match=message):
        net(*inputs(4, 1, 8, 8), Condition(image=None if shape is None else torch.zeros(shape)))


@pytest.mark.slow
@torch.no_grad()
def test_half_precision_stays_near_float32_and_double_computes_in_double(make):
    net = randomized(make(num_classes=3)).eval()
    x, c_noise = inputs(4, 1, 16, 16)
    exact = net(x, c_noise)
    double = net.double()(x.double(), c_noise.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(exact.double(), double, atol=1e-4, rtol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        rough = net.float()(x, c_noise)
    assert (rough - exact).std() < 0.03 * exact.std()
    net.to(torch.bfloat16)
    for dtype in (torch.float32, torch.bfloat16):
        rough = net(x.to(dtype), c_noise)
        assert rough.dtype == torch.bfloat16
        assert (rough - exact).std() < 0.05 * exact.std()


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(
    ("network", "settings"),
    [
        (DiT, {"width": 16, "depth": 1, "heads": 2}),
        (AnnotatedUNet, {**ANNOTATED, "self_conditioning": True}),
        (AnnotatedUNet2022, ANNOTATED),
        (SimpleUNet, {"channels": 8}),
        (SmallUNet, {"channels": 8}),
        (DoubleConvUNet, {"channels": 8, "multipliers": [1, 2], "heads": 2}),
        (UNet, {**LEVELS, "multipliers": [1], "attention_levels": [0]}),
        (UNet, {**LEVELS, "attention_levels": [0], "block": "convnext"}),
        (UNet, {**LEVELS, "attention_levels": [0], "block": "weight_standardized"}),
    ],
)
def test_compiles_as_one_graph(network, settings):
    net = randomized(network(image_spec(num_classes=3, image_channels=1), 1, **settings)).eval()
    x, c_noise = inputs(2, 1, 8, 8)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    condition = Condition(torch.tensor([0, -1]), image=x)
    torch.testing.assert_close(compiled(x, c_noise, condition), net(x, c_noise, condition))


def test_a_network_is_rebuilt_from_its_own_settings(make):
    net = make(3, 6, num_classes=10)
    settings = net.plain_arguments(skip=("data", "out_channels"))
    type(net)(net.data, 6, **settings).load_state_dict(net.state_dict())


# ---- What networks refuse -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "shape", "message"),
    [
        ("annotated_unet", (3, 32, 27), "multiples of 2, not 32×27.*at most 1 multiplier$"),
        ("annotated_unet_2022", (2,), r"AnnotatedUNet2022 takes images .*not data of shape \[2\]"),
        ("unet", (3, 32, 28), "multiples of 8, not 32×28.*of 32×24 or 32×32.*most 3 multipliers$"),
        ("unet", (3, 27, 32), "not 27×32.*at most 1 multiplier$"),
        ("unet", (3, 4, 4), "not 4×4; choose images of 8×8, or"),
        ("unet", (2,), r"UNet takes images .*not data of shape \[2\].*MLP"),
        ("dit", (3, 30, 32), "images of 28×32 or 32×32, or set patch to 2"),
        ("dit", (3, 27, 32), "not 27×32; .* 24×32 or 28×32, or set patch to 1"),
        ("dit", (2,), r"DiT takes images .*not data of shape \[2\]"),
        (
            "double_conv_unet",
            (3, 27, 32),
            "multiples of 2, not 27×32; .* 26×32 or 28×32, or take another network",
        ),
        ("double_conv_unet", (2,), r"DoubleConvUNet takes images .*not data of shape \[2\]"),
        ("simple_unet", (3, 30, 32), "multiples of 4, not 30×32; .* of 28×32 or 32×32$"),
        ("small_unet", (3, 30, 32), "multiples of 4, not 30×32; .* of 28×32 or 32×32$"),
        ("small_unet", (2,), r"SmallUNet takes images .*not data of shape \[2\]"),
    ],
    ids=str,
)
def test_a_shape_that_does_not_fit_is_refused_with_the_fix(network, shape, message):
    kind, settings = NETWORKS[network]
    coarse: dict[str, dict] = {"unet": {"multipliers": [1, 1, 1, 1]}, "dit": {"patch": 4}}
    settings = settings | coarse.get(network, {})
    with pytest.raises(InputError, match=message):
        kind(DataSpec(shape), 3, **settings)
    net = kind(image_spec(3, 32), 3, **settings)
    with pytest.raises(InputError, match=message):
        net(*inputs(2, *shape))


def test_other_channels_than_the_datas_are_refused(make):
    with pytest.raises(InputError, match="was built for 3 channels, not 1"):
        make(3, 3)(*inputs(2, 1, 8, 8))


@pytest.mark.parametrize(
    ("network", "settings", "message"),
    [
        (AnnotatedUNet, {"channels": 27}, "channels=27.*even.* set channels=28$"),
        (AnnotatedUNet, {"stem_kernel": 4}, "stem_kernel=4.* odd size, e.g. 7"),
        (AnnotatedUNet, {"groups": 8}, "groups=8.* 28 features .* set groups=7, or channels"),
        (AnnotatedUNet2022, {"groups": 4}, "18 features .* set groups=2, or channels and stem"),
        (AnnotatedUNet2022, {"multipliers": []}, "multipliers=0"),
        (DiT, {"width": 100, "heads": 6}, "width=100, heads=6.* set width=108"),
        (DoubleConvUNet, {"channels": 6}, "heads=4.* on 6 features .* set heads=1 or channels to"),
        (
            DoubleConvUNet,
            {"multipliers": [1]},
            "one multiplier leaves no stage.* --model.net.multipliers",
        ),
        (UNet, {"channels": 28}, "channels=28, groups=32.* set groups=28 or channels=32$"),
        (UNet, {"channels": 100}, "set groups=25 or channels=128$"),
        (UNet, {"channels": 27, "groups": 9}, "channels=27.* even.* set channels=36$"),
        (UNet, {"heads": 3}, "256 .* 3 equal heads; set heads=2 or channels to a multiple of 3"),
        (UNet, {"attention_levels": [1, 4]}, r"levels=\[1, 4\].*per multiplier, 0 to 3"),
        (UNet, {"attention_levels": [-1]}, r"attention_levels=\[-1\]"),
        (UNet, {"linear_attention_levels": [4]}, r"linear_attention_levels=\[4\].*0 to 3"),
        (UNet, {"linear_attention_levels": [0, 1]}, r"one kind of attention; take \[1\] out"),
        (UNet, {"linear_attention_levels": [0], "heads": 3}, "128 and 256 .* 3 equal heads"),
        (UNet, {"attention_levels": [0], "mid_attention": False, "heads": 3}, "on 128 features"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_are_refused_with_the_fix(network, settings, message):
    with torch.device("meta"), pytest.raises(InputError, match=message):
        network(image_spec(3, 32), 3, **settings)


# ---- Blocks of the U-Net, against numpy in float64 ------------------------------------------


def weights(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: p.detach().double().numpy() for name, p in module.named_parameters()}


def conv(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cross-correlation that keeps the size; with [C, 1, k, k] weights a channel at a time."""
    k = w.shape[-1]
    padded = np.pad(x, ((0, 0), (0, 0), (k // 2, k // 2), (k // 2, k // 2)))
    windows = sliding_window_view(padded, (k, k), axis=(2, 3))
    depthwise = w.shape[1] == 1
    formula = "bchwkl,ckl->bchw" if depthwise else "bchwkl,ockl->bohw"
    out = np.einsum(formula, windows, w[:, 0] if depthwise else w)
    return out + b[:, None, None]


def norm(x: np.ndarray, groups: int, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
    grouped = x.reshape(len(x), groups, -1)
    mean, variance = grouped.mean(2, keepdims=True), grouped.var(2, keepdims=True)
    normal = ((grouped - mean) / np.sqrt(variance + 1e-6)).reshape(x.shape)
    return normal * scale[:, None, None] + shift[:, None, None]


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + erf(x / math.sqrt(2))) / 2


def silu(x: np.ndarray) -> np.ndarray:
    return x * expit(x)


def standardize(w: np.ndarray) -> np.ndarray:
    flat = w.reshape(len(w), -1)
    flat = flat - flat.mean(1, keepdims=True)
    return (flat / np.sqrt((flat**2).mean(1, keepdims=True) + 1e-5)).reshape(w.shape)


@pytest.fixture(params=[False, True], ids=["added", "scale_shift"])
def scale_shift(request) -> bool:
    return request.param


def block_inputs() -> tuple[torch.Tensor, torch.Tensor]:
    return inputs(2, 4, 9, 8, dtype=torch.float64)[0], inputs(2, 10, dtype=torch.float64)[0]


@torch.no_grad()
def test_convnext_block_computes_the_published_formula(scale_shift):
    block = randomized(ConvNeXtBlock(4, 6, embedding=10, groups=2, scale_shift=scale_shift))
    x, embedding = block_inputs()
    w = weights(block)
    h = conv(x.numpy(), w["depthwise.weight"], w["depthwise.bias"])
    c = (gelu(embedding.numpy()) @ w["condition.weight"].T + w["condition.bias"])[:, :, None, None]
    if scale_shift:
        h = norm(h, 2, w["norm1.weight"], w["norm1.bias"]) * (1 + c[:, :4]) + c[:, 4:]
    else:
        h = norm(h + c, 2, w["norm1.weight"], w["norm1.bias"])
    h = gelu(conv(h, w["conv1.weight"], w["conv1.bias"]))
    h = norm(h, 2, w["norm2.weight"], w["norm2.bias"])
    h = conv(h, w["conv2.weight"], w["conv2.bias"])
    expected = h + np.einsum("oc,bchw->bohw", w["shortcut.weight"][:, :, 0, 0], x.numpy())
    expected = expected + w["shortcut.bias"][:, None, None]
    np.testing.assert_allclose(block.double()(x, embedding).numpy(), expected, atol=1e-10)


@torch.no_grad()
def test_weight_standardized_block_computes_the_published_formula(scale_shift):
    block = WeightStandardizedBlock(4, 4, embedding=10, groups=2, scale_shift=scale_shift)
    w = weights(randomized(block))
    x, embedding = block_inputs()
    h = conv(x.numpy(), standardize(w["conv1.weight"]), w["conv1.bias"])
    h = norm(h, 2, w["norm1.weight"], w["norm1.bias"])
    c = (silu(embedding.numpy()) @ w["condition.weight"].T + w["condition.bias"])[:, :, None, None]
    h = silu(h * (1 + c[:, :4]) + c[:, 4:] if scale_shift else h + c)
    h = conv(h, standardize(w["conv2.weight"]), w["conv2.bias"])
    expected = x.numpy() + silu(norm(h, 2, w["norm2.weight"], w["norm2.bias"]))
    np.testing.assert_allclose(block.double()(x, embedding).numpy(), expected, atol=1e-10)


def test_convnext_block_has_the_published_blocks_sizes():
    shapes = {name: list(w.shape) for name, w in weights(ConvNeXtBlock(28, 56, 112, 1)).items()}
    assert shapes["depthwise.weight"] == [28, 1, 7, 7]
    assert shapes["conv1.weight"] == [112, 28, 3, 3]
    assert shapes["conv2.weight"] == [56, 112, 3, 3]
    assert shapes["shortcut.weight"] == [56, 28, 1, 1]
    assert shapes["condition.weight"] == [28, 112]


@torch.no_grad()
@pytest.mark.parametrize("block", [ResidualBlock, ConvNeXtBlock, WeightStandardizedBlock])
def test_blocks_start_as_the_identity(block, scale_shift):
    x, embedding = (value.float() for value in block_inputs())
    output = block(4, 4, embedding=10, groups=2, scale_shift=scale_shift)(x, embedding)
    assert torch.equal(output, x)


@torch.no_grad()
@pytest.mark.parametrize(
    ("layer", "shapes"),
    [
        (lambda: Attention(16, groups=4), [(2, 16, 8, 8)]),
        (lambda: LinearAttention(16, groups=4), [(2, 16, 8, 8)]),
        (lambda: DiTBlock(16, heads=2, mlp_ratio=4), [(2, 5, 16), (2, 16)]),
    ],
)
def test_attention_starts_as_the_identity(layer, shapes):
    x, *condition = (inputs(*shape)[0] for shape in shapes)
    assert torch.equal(layer()(x, *condition), x)


@torch.no_grad()
def test_bfloat16_weights_are_standardized_in_float32():
    layer = WeightStandardizedConv(64, 2).to(torch.bfloat16)
    layer.weight.add_(1.0)  # in bfloat16, weights less their mean would keep no digit
    expected = standardize(layer.weight.double().numpy())
    np.testing.assert_allclose(layer.standardized().double().numpy(), expected, rtol=2**-8)


# ---- Linear attention -----------------------------------------------------------------------


@torch.no_grad()
def test_linear_attention_is_softmax_over_features_of_q_and_over_pixels_of_k():
    layer = randomized(LinearAttention(8, heads=2, groups=4))
    w = weights(layer)
    x = inputs(3, 8, 4, 5, dtype=torch.float64)[0]
    normal = norm(x.numpy(), 4, w["norm.weight"], w["norm.bias"]).reshape(3, 8, 20)

    def project(name: str) -> np.ndarray:  # [B, heads, d, N]
        out = np.einsum("oc,bcn->bon", w[f"{name}.weight"], normal)
        return (out + w[f"{name}.bias"][:, None]).reshape(3, 2, 4, 20)

    q, k = np.exp(project("query")), np.exp(project("key"))
    q, k = q / q.sum(axis=2, keepdims=True), k / k.sum(axis=3, keepdims=True)
    pairs = np.einsum("bhdn,bhdm->bhnm", q, k)  # what it never forms: weights of pixel m for n
    mixed = np.einsum("bhnm,bhdm->bhdn", pairs, project("value")).reshape(3, 8, 20)
    out = np.einsum("oc,bcn->bon", w["out.weight"], mixed) + w["out.bias"][:, None]
    expected = x.numpy() + out.reshape(3, 8, 4, 5)
    np.testing.assert_allclose(layer.double()(x).numpy(), expected, atol=1e-12)


# ---- DiT ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "depth", "heads", "millions"),
    [(384, 12, 6, 33), (768, 12, 12, 130), (1024, 24, 16, 458), (1152, 28, 16, 675)],
    ids=["S/2", "B/2", "L/2", "XL/2"],
)
def test_dit_has_the_papers_parameters(width, depth, heads, millions):
    with torch.device("meta"):  # ImageNet latents, with a learned variance
        data = image_spec(4, 32, num_classes=1000)
        net = DiT(data, 8, patch=2, width=width, depth=depth, heads=heads)
    assert round(sum(p.numel() for p in net.parameters()) / 1e6) == millions


def diffusers_weights(net: DiT) -> dict[str, torch.Tensor]:
    """The weights of ours under diffusers' names."""
    state = net.state_dict()
    names = {
        r"blocks\.(\d)\.modulation\.(.*)": r"transformer_blocks.\1.norm1.linear.\2",
        r"blocks\.(\d)\.attended\.(.*)": r"transformer_blocks.\1.attn1.to_out.0.\2",
        r"blocks\.(\d)\.expand\.(.*)": r"transformer_blocks.\1.ff.net.0.proj.\2",
        r"blocks\.(\d)\.contract\.(.*)": r"transformer_blocks.\1.ff.net.2.\2",
        r"modulation\.(.*)": r"proj_out_1.\1",
        r"out\.(.*)": r"proj_out_2.\1",
        r"stem\.(.*)": r"pos_embed.proj.\1",
    }
    theirs = {}
    for name, value in state.items():
        if ".qkv." in name:
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                i, kind = name.split(".")[1], name.split(".")[-1]
                theirs[f"transformer_blocks.{i}.attn1.to_{letter}.{kind}"] = part
        elif not name.startswith("embed."):
            pattern = next(pattern for pattern in names if re.fullmatch(pattern, name))
            theirs[re.sub(pattern, names[pattern], name)] = value
    theirs["pos_embed.proj.weight"] = state["stem.weight"].unflatten(1, (3, net.patch, net.patch))
    sines, cosines = state["embed.linear1.weight"].chunk(2, dim=1)
    for i in range(len(net.blocks)):  # every block has its own copy, with cosines first
        embed = f"transformer_blocks.{i}.norm1.emb"
        theirs[f"{embed}.timestep_embedder.linear_1.weight"] = torch.cat([cosines, sines], dim=1)
        theirs[f"{embed}.timestep_embedder.linear_1.bias"] = state["embed.linear1.bias"]
        theirs[f"{embed}.timestep_embedder.linear_2.weight"] = state["embed.linear2.weight"]
        theirs[f"{embed}.timestep_embedder.linear_2.bias"] = state["embed.linear2.bias"]
        theirs[f"{embed}.class_embedder.embedding_table.weight"] = state["embed.label.weight"]
    return theirs


@torch.no_grad()
@pytest.mark.parametrize("patch", [2, 4])
def test_dit_computes_what_diffusers_computes(patch):
    diffusers = pytest.importorskip("diffusers")
    data = image_spec(3, 16, num_classes=10)
    ours = randomized(DiT(data, 6, patch=patch, width=32, depth=2, heads=4)).eval()
    theirs = diffusers.DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=3,
        out_channels=6,
        num_layers=2,
        sample_size=16,
        patch_size=patch,
        num_embeds_ada_norm=10,
        norm_num_groups=1,
        norm_eps=1e-6,
    )
    missing, unexpected = theirs.load_state_dict(diffusers_weights(ours), strict=False)
    assert (missing, unexpected) == ([], [])
    x, _ = inputs(3, 3, 16, 16)
    c_noise = torch.tensor([0.0, 7.0, 30.0])  # at larger ones their float32 angles are rough
    output = ours(x, c_noise, labels(3, -1, 9))
    expected = theirs.eval()(x, c_noise, class_labels=torch.tensor([3, 10, 9])).sample
    assert expected.std() > 0.1
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)


def test_position_embedding_of_an_oblong_grid_tells_column_then_row():
    computed = position_embedding(2, 3, torch.empty(1, 6, 8, dtype=torch.float64)).numpy()
    for token, (row, column) in enumerate((r, c) for r in range(2) for c in range(3)):
        angles = [n * 10_000 ** -(i / 2) for n in (column, row) for i in (0, 1)]
        sines, cosines = [math.sin(a) for a in angles], [math.cos(a) for a in angles]
        expected = sines[:2] + cosines[:2] + sines[2:] + cosines[2:]
        np.testing.assert_allclose(computed[token], expected, atol=1e-15)


@torch.no_grad()
def test_dit_places_patches_in_an_oblong_image_where_they_came_from():
    # With an identity in place of blocks and condition, every token gives back its own patch.
    net = DiT(image_spec(), 1, patch=2, width=4, depth=1, heads=1)
    net.stem.weight.copy_(torch.eye(4))
    net.out.weight.copy_(torch.eye(4))
    net.norm = nn.Identity()
    x, c_noise = inputs(2, 1, 4, 6)
    positions = position_embedding(2, 3, torch.empty(1, 6, 4))
    image = positions.reshape(2, 3, 2, 2).transpose(1, 2).reshape(4, 6)
    torch.testing.assert_close(net(x, c_noise)[:, 0], x[:, 0] + image)


# ---- The small U-Net ------------------------------------------------------------------------


def test_the_small_unet_is_small():
    with torch.device("meta"):
        net = SmallUNet(image_spec(3, num_classes=10), 3)
    assert 100_000 < sum(p.numel() for p in net.parameters()) < 310_000
