import copy
import math
import re

import numpy as np
import pytest
import torch
from torch import nn

from ddpm_lightning.configurable import build
from ddpm_lightning.errors import InputError
from ddpm_lightning.networks import Network, UNet
from ddpm_lightning.networks.layers import Attention, Conv, Linear, ResidualBlock, sinusoidal
from tests.small import inputs, randomized

SMALL = {"channels": 16, "multipliers": [1, 2], "blocks": 1, "groups": 4, "dropout": 0.0}


# ---- The published network ------------------------------------------------------------------


def test_default_network_has_the_papers_35_746_307_parameters():
    with torch.device("meta"):
        net = UNet(3, 3)
    assert sum(p.numel() for p in net.parameters()) == 35_746_307


MODULES = {
    r"stem": "conv_in",
    r"embed\.linear1": "time_embedding.linear_1",
    r"embed\.linear2": "time_embedding.linear_2",
    r"embed\.label": "class_embedding",
    r"(down|up)\.(\d)\.blocks\.(\d)\.residual\.(.*)": r"\1_blocks.\2.resnets.\3.\4",
    r"(down|up)\.(\d)\.blocks\.(\d)\.attention\.(.*)": r"\1_blocks.\2.attentions.\3.\4",
    r"(down|up)\.(\d)\.resize\.conv": r"\1_blocks.\2.\1samplers.0.conv",
    r"mid\.(\d)\.residual\.(.*)": r"mid_block.resnets.\1.\2",
    r"mid\.0\.attention\.(.*)": r"mid_block.attentions.0.\1",
    r"norm": "conv_norm_out",
    r"out": "conv_out",
}
RESIDUAL = {"condition": "time_emb_proj", "shortcut": "conv_shortcut"}
ATTENTION = {
    "norm": "group_norm",
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "out": "to_out.0",
}


def diffusers_name(name: str) -> str:
    """Where diffusers keeps the parameter that we call ``name``."""
    module, _, kind = name.rpartition(".")  # kind: weight or bias
    pattern = next(pattern for pattern in MODULES if re.fullmatch(pattern, module))
    parent, _, leaf = re.sub(pattern, MODULES[pattern], module).rpartition(".")
    if ".residual." in module:
        leaf = RESIDUAL.get(leaf, leaf)
    if ".attention." in module:
        leaf = ATTENTION[leaf]
    return ".".join(filter(None, [parent, leaf, kind]))


def diffusers_unet(net: UNet, **options: object) -> nn.Module:
    """The diffusers network with the settings of ours, in the layout of google/ddpm-cifar10-32."""
    diffusers = pytest.importorskip("diffusers")
    settings = net.describe()["init_args"]
    attended = [i in settings["attention_levels"] for i in range(len(settings["multipliers"]))]
    with torch.device("meta"):
        theirs = diffusers.UNet2DModel(
            in_channels=settings["in_channels"],
            out_channels=settings["out_channels"],
            layers_per_block=settings["blocks"],
            block_out_channels=[settings["channels"] * m for m in settings["multipliers"]],
            down_block_types=["AttnDownBlock2D" if a else "DownBlock2D" for a in attended],
            up_block_types=["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attended)],
            downsample_padding=0,
            flip_sin_to_cos=False,
            freq_shift=1,
            act_fn="silu",
            norm_eps=1e-6,
            norm_num_groups=settings["groups"],
            **{"attention_head_dim": None, **options},
        )
    return randomized(theirs.to_empty(device="cpu").requires_grad_(False)).eval()


def with_weights_of(theirs: nn.Module, ours: UNet) -> UNet:
    """Ours with their weights; load_state_dict is strict about names and shapes."""
    weights = theirs.state_dict()
    state = {name: weights.pop(diffusers_name(name)) for name in ours.state_dict()}
    assert not weights, f"diffusers has more than ours: {list(weights)}"
    ours.load_state_dict(state)
    return ours.eval()


@pytest.fixture(scope="module")
def published() -> tuple[UNet, nn.Module]:
    with torch.device("meta"):
        ours = UNet(3, 3)
    theirs = diffusers_unet(ours)
    return with_weights_of(theirs, ours.to_empty(device="cpu")), theirs


def test_published_network_corresponds_to_diffusers_shape_by_shape(published):
    ours, theirs = published
    expected = {name: p.shape for name, p in theirs.named_parameters()}
    assert {diffusers_name(name): p.shape for name, p in ours.named_parameters()} == expected


@torch.no_grad()
def test_published_network_computes_what_diffusers_computes(published):
    ours, theirs = published
    x, c_noise = inputs(2, 3, 32, 32)
    expected = theirs(x, c_noise).sample
    assert expected.std() > 0.1
    torch.testing.assert_close(ours(x, c_noise), expected, atol=1e-5, rtol=1e-5)


REDUCED = {"channels": 32, "multipliers": [1, 2], "groups": 32}


@torch.no_grad()
@pytest.mark.parametrize(
    ("settings", "options"),
    [
        (REDUCED, {}),
        ({**REDUCED, "multipliers": [1, 2, 3], "attention_levels": [0, 2], "blocks": 3}, {}),
        ({**REDUCED, "attention_levels": []}, {}),
        ({**REDUCED, "heads": 4}, {"attention_head_dim": 16}),
        (
            {**REDUCED, "scale_shift": True},
            {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 32},
        ),
    ],
    ids=[
        "paper",
        "attention at several levels",
        "attention in the middle",
        "heads",
        "scale_shift",
    ],
)
def test_reduced_network_computes_what_diffusers_computes(settings, options):
    ours = UNet(3, 6, **settings)
    theirs = diffusers_unet(ours, **options)
    x, c_noise = inputs(3, 3, 16, 16)
    output = with_weights_of(theirs, ours)(x, c_noise)
    torch.testing.assert_close(output, theirs(x, c_noise).sample, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_labels_act_as_in_diffusers():
    ours = UNet(1, 1, num_classes=10, **REDUCED)
    theirs = diffusers_unet(ours, num_class_embeds=11)
    x, c_noise = inputs(3, 1, 8, 8)
    output = with_weights_of(theirs, ours)(x, c_noise, torch.tensor([3, -1, 9]))
    expected = theirs(x, c_noise, class_labels=torch.tensor([3, 10, 9])).sample
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)


# ---- Parts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-4)])
def test_sinusoidal_embedding_is_sines_then_cosines_from_1_to_one_ten_thousandth(dtype, tolerance):
    c_noise = np.array([0.0, 1.0, 17.5, 999.0, -1.25])
    frequencies = np.exp(-np.log(10_000.0) * np.arange(64) / 63)
    angles = c_noise[:, None] * frequencies[None, :]
    expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    computed = sinusoidal(torch.from_numpy(c_noise).to(dtype), 128)
    assert computed.dtype == dtype
    np.testing.assert_allclose(computed.double().numpy(), expected, atol=tolerance, rtol=0)


def test_untrained_network_predicts_zero():
    net = UNet(3, 3, num_classes=10, **SMALL)
    assert torch.all(net(*inputs(2, 3, 16, 16)) == 0)


@pytest.mark.parametrize("layer", ["residual", "attention"])
def test_residual_branches_start_as_the_identity(layer):
    x = inputs(2, 16, 8, 8)[0]
    if layer == "residual":
        output = ResidualBlock(16, 16, embedding=8, groups=4)(x, torch.randn(2, 8))
    else:
        output = Attention(16, groups=4)(x)
    assert torch.equal(output, x)


@pytest.mark.parametrize(
    ("layer", "fan_in", "fan_out"),
    [
        (lambda: Conv(64, 128), 64 * 9, 128 * 9),
        (lambda: Conv(128, 256, kernel=1, padding=0), 128, 256),
        (lambda: Linear(128, 512), 128, 512),
    ],
)
def test_weights_start_uniform_by_the_average_fan_with_zero_bias(layer, fan_in, fan_out):
    torch.manual_seed(0)
    layer = layer()
    bound = math.sqrt(6 / (fan_in + fan_out))
    assert layer.weight.abs().max() <= bound
    assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert torch.all(layer.bias == 0)


# ---- Shapes ---------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(
    "settings",
    [
        {"scale_shift": True},
        {"heads": 4},
        {"attention_levels": []},
        {"attention_levels": [0, 1]},
        {"multipliers": [2, 1]},
        {"blocks": 3},
        {"scale_shift": True, "heads": 2, "attention_levels": [0, 1], "num_classes": 3},
    ],
    ids=str,
)
def test_every_option_runs(settings):
    net = randomized(UNet(1, 1, **{**SMALL, **settings}))
    output = net(*inputs(2, 1, 8, 8))
    assert output.shape == (2, 1, 8, 8)
    assert output.isfinite().all()


SHAPE_ERRORS = [
    ((3, 28, 28), "multiples of 8, not 28×28.*image_size to 24×24 or 32×32.*at most 3 multipl"),
    ((3, 32, 28), "not 32×28.*image_size to 32×24 or 32×32.*at most 3 multipliers"),
    ((3, 27, 32), "not 27×32.*at most 1 multiplier$"),
    ((3, 4, 4), "not 4×4; set the data's image_size to 8×8, or"),
    ((1, 32, 32), "built for 3 image channels, the data has 1.*in_channels=1"),
    ((2,), r"not data of shape \[2\].*MLP"),
]
SHAPES = [str(shape) for shape, _ in SHAPE_ERRORS]


@pytest.mark.parametrize(("shape", "message"), SHAPE_ERRORS, ids=SHAPES)
def test_check_shape_names_what_would_fit(shape, message):
    net = UNet(3, 3, **{**SMALL, "multipliers": [1, 1, 1, 1]})
    with pytest.raises(InputError, match=message):
        net.check_shape(shape)


@pytest.mark.parametrize(("shape", "message"), SHAPE_ERRORS, ids=SHAPES)
def test_forward_refuses_what_check_shape_refuses(shape, message):
    net = UNet(3, 3, **{**SMALL, "multipliers": [1, 1, 1, 1]})
    with pytest.raises(InputError, match=message):
        net(*inputs(2, *shape))


def test_groups_of_a_single_number_are_refused():
    net = UNet(1, 1, channels=32, multipliers=[1, 1, 1, 1], groups=32)
    with pytest.raises(InputError, match="fewer multipliers, fewer groups"):
        net.check_shape((1, 8, 8))
    net.check_shape((1, 16, 8))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 28}, "28 channels .* 32 equal groups; set groups=28 or channels=32"),
        ({"channels": 100}, "set groups=25 or channels=128"),
        ({"channels": 27, "groups": 9}, "channels=27.* even.* set channels=36"),
        ({"heads": 3}, "128 and 256 .* 3 equal heads; set heads=2 or channels to a multiple of 3"),
        ({"attention_levels": [1, 4]}, r"per multiplier, 0 to 3; set .*levels=\[1\]"),
        ({"attention_levels": [-1]}, r"attention_levels=\[-1\]"),
        ({"multipliers": []}, "at least one level"),
        ({"multipliers": [1, 0]}, r"min\(multipliers\)=0.*at least 1"),
        ({"blocks": 0}, "blocks=0.*at least 1"),
        ({"groups": 0}, "groups=0.*at least 1"),
        ({"heads": 0}, "heads=0.*at least 1"),
        ({"num_classes": 0}, "num_classes=0.*at least 1"),
        ({"dropout": 1.0}, r"dropout=1.0.*\[0, 1\)"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_are_refused_with_the_fix(settings, message):
    with torch.device("meta"), pytest.raises(InputError, match=message):
        UNet(3, 3, **{"attention_levels": [0, 1], **settings})


# ---- Labels ---------------------------------------------------------------------------------


@torch.no_grad()
def test_no_label_is_the_null_label_for_every_row():
    net = randomized(UNet(1, 1, num_classes=5, **SMALL))
    x, c_noise = inputs(3, 1, 8, 8)
    assert torch.equal(net(x, c_noise), net(x, c_noise, torch.full((3,), -1)))


@torch.no_grad()
def test_each_label_and_the_null_label_give_another_output():
    net = randomized(UNet(1, 1, num_classes=2, **SMALL))
    x, _ = inputs(1, 1, 8, 8)
    outputs = net(x.expand(3, -1, -1, -1), torch.zeros(3), torch.tensor([-1, 0, 1]))
    assert all((outputs[i] - outputs[j]).abs().max() > 1e-2 for i, j in [(0, 1), (0, 2), (1, 2)])


def test_the_null_row_learns_from_null_labels_only():
    net = randomized(UNet(1, 1, num_classes=5, **SMALL))
    net(*inputs(2, 1, 8, 8), torch.tensor([-1, 3])).square().sum().backward()
    learns = net.embed.label.weight.grad.abs().sum(dim=1) > 0
    assert learns.tolist() == [False, False, False, True, False, True]


@torch.no_grad()
def test_an_unconditional_network_ignores_labels():
    net = randomized(UNet(1, 1, **SMALL))
    x, c_noise = inputs(2, 1, 8, 8)
    assert torch.equal(net(x, c_noise, torch.tensor([0, 7])), net(x, c_noise))


# ---- Training -------------------------------------------------------------------------------


@pytest.mark.parametrize("scale_shift", [False, True])
def test_gradients_reach_every_parameter(scale_shift):
    net = randomized(UNet(3, 3, num_classes=1, scale_shift=scale_shift, **SMALL))
    net(*inputs(2, 3, 8, 8), torch.tensor([0, -1])).square().sum().backward()
    dead = [name for name, p in net.named_parameters() if p.grad is None or p.grad.norm() < 1e-4]
    # The same number added to all scores of a query cancels in its softmax.
    assert [name for name in dead if not name.endswith("key.bias")] == []


@torch.no_grad()
def test_dropout_acts_in_training():
    net = randomized(UNet(1, 1, **{**SMALL, "dropout": 0.5})).train()
    x, c_noise = inputs(2, 1, 8, 8)
    assert not torch.equal(net(x, c_noise), net(x, c_noise))


@torch.no_grad()
def test_dropout_is_off_in_evaluation():
    net = randomized(UNet(1, 1, **{**SMALL, "dropout": 0.5})).eval()
    x, c_noise = inputs(2, 1, 8, 8)
    assert torch.equal(net(x, c_noise), net(x, c_noise))


@torch.no_grad()
def test_rows_of_a_batch_do_not_see_each_other():
    net = randomized(UNet(1, 1, num_classes=3, **SMALL)).double()
    x, c_noise = inputs(3, 1, 8, 8, dtype=torch.float64)
    y = torch.tensor([2, -1, 0])
    rows = [net(x[i : i + 1], c_noise[i : i + 1], y[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(net(x, c_noise, y), torch.cat(rows))


# ---- Precision and machinery ----------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("scale_shift", [False, True])
def test_autocast_to_bfloat16_stays_near_float32(scale_shift):
    net = randomized(UNet(1, 1, num_classes=3, scale_shift=scale_shift, **SMALL)).eval()
    x, c_noise = inputs(4, 1, 16, 16)
    exact = net(x, c_noise)
    with torch.autocast("cpu", torch.bfloat16):
        rough = net(x, c_noise)
    assert rough.dtype == torch.bfloat16
    assert (rough - exact).std() < 0.03 * exact.std()


@torch.no_grad()
@pytest.mark.parametrize("input_dtype", [torch.float32, torch.bfloat16])
def test_bfloat16_weights_stay_near_float32(input_dtype):
    net = randomized(UNet(1, 1, num_classes=3, **SMALL)).eval()
    x, c_noise = inputs(4, 1, 16, 16)
    exact = net(x, c_noise)
    rough = net.to(torch.bfloat16)(x.to(input_dtype), c_noise)
    assert rough.dtype == torch.bfloat16
    assert (rough - exact).std() < 0.05 * exact.std()


@torch.no_grad()
def test_bfloat16_weights_tell_neighbouring_noise_levels_apart():
    embed = randomized(UNet(1, 1, **SMALL)).embed
    c_noise = torch.tensor([997.0, 998.0, 999.0])  # all 1000 or 996 in bfloat16
    exact = embed(c_noise)
    rough = embed.to(torch.bfloat16)(c_noise).float()
    assert (rough - exact).std() < 0.05 * exact.std()


@torch.no_grad()
def test_float64_weights_compute_in_float64():
    net = randomized(UNet(1, 1, num_classes=3, **SMALL)).eval()
    x, c_noise = inputs(2, 1, 8, 8)
    single = net(x, c_noise)
    double = net.double()(x.double(), c_noise.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_float64_weights_see_noise_levels_that_float32_cannot_tell_apart():
    embed = randomized(UNet(1, 1, **SMALL)).double().embed
    c_noise = torch.tensor([999.0], dtype=torch.float64)
    assert 0 < (embed(c_noise + 1e-9) - embed(c_noise)).abs().max() < 1e-7


@torch.no_grad()
def test_compiles_as_one_graph():
    small = {**SMALL, "multipliers": [1], "attention_levels": [0]}
    net = randomized(UNet(1, 1, num_classes=3, **small)).eval()
    x, c_noise = inputs(2, 1, 8, 8)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, c_noise), net(x, c_noise))


def test_a_network_is_rebuilt_from_its_description():
    net = UNet(3, 6, num_classes=10, scale_shift=True, heads=2, **SMALL)
    twin = build(net.describe())
    assert isinstance(twin, UNet)
    assert isinstance(twin, Network)
    twin.load_state_dict(net.state_dict())


@torch.no_grad()
def test_a_copy_computes_the_same_and_shares_nothing():
    net = randomized(UNet(1, 1, **SMALL)).eval()
    twin = copy.deepcopy(net)
    x, c_noise = inputs(2, 1, 8, 8)
    assert torch.equal(twin(x, c_noise), net(x, c_noise))
    shared = {p.data_ptr() for p in net.parameters()} & {p.data_ptr() for p in twin.parameters()}
    assert not shared
