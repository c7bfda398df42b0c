"""The U-Net of DDPM against diffusers' implementation, and its parts against formulas."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from ddpm_lightning.errors import InputError
from ddpm_lightning.interchange.unet2d import their_name
from ddpm_lightning.networks import UNet
from ddpm_lightning.networks.layers import Attention, Conv, Linear, LinearAttention, sinusoidal
from tests.small import image_spec, inputs, labels, randomized

SMALL = {"channels": 16, "multipliers": [1, 2], "blocks": 1, "groups": 4, "dropout": 0.0}
RGB = image_spec(3, 32)


# ---- The published network ------------------------------------------------------------------


def test_default_network_has_the_papers_35_746_307_parameters():
    with torch.device("meta"):
        net = UNet(RGB, 3)
    assert sum(p.numel() for p in net.parameters()) == 35_746_307


def diffusers_unet(net: UNet, **options: object) -> nn.Module:
    """The diffusers network with the settings of ours, in the layout of google/ddpm-cifar10-32."""
    diffusers = pytest.importorskip("diffusers")
    settings = net.plain_arguments(skip=("data", "out_channels"))
    attended = [i in settings["attention_levels"] for i in range(len(settings["multipliers"]))]
    with torch.device("meta"):
        theirs = diffusers.UNet2DModel(
            in_channels=net.in_channels,
            out_channels=net.out.out_channels,
            layers_per_block=settings["blocks"],
            block_out_channels=[settings["channels"] * m for m in settings["multipliers"]],
            down_block_types=["AttnDownBlock2D" if a else "DownBlock2D" for a in attended],
            up_block_types=["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attended)],
            add_attention=settings["mid_attention"],
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
    state = {name: weights.pop(their_name(name)) for name in ours.state_dict()}
    assert not weights, f"diffusers has more than ours: {list(weights)}"
    ours.load_state_dict(state)
    return ours.eval()


@pytest.mark.slow
@torch.no_grad()
def test_published_network_computes_what_diffusers_computes():
    with torch.device("meta"):
        ours = UNet(RGB, 3)
    theirs = diffusers_unet(ours).double()  # float32 rounds by processor; embeddings stay float32
    x, c_noise = (one.double() for one in inputs(2, 3, 32, 32))
    expected = theirs(x, c_noise).sample
    assert expected.std() > 0.1
    output = with_weights_of(theirs, ours.double().to_empty(device="cpu"))(x, c_noise)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)


REDUCED = {"channels": 32, "multipliers": [1, 2], "groups": 32}


@torch.no_grad()
@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({}, {}),
        ({"multipliers": [1, 3, 2], "attention_levels": [0, 2], "blocks": 3}, {}),
        ({"attention_levels": []}, {}),
        ({"attention_levels": [], "mid_attention": False}, {}),
        ({"heads": 4}, {"attention_head_dim": 16}),
        (
            {"scale_shift": True},
            {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 32},
        ),
    ],
    ids=["paper", "several levels", "mid attention", "no attention", "heads", "scale_shift"],
)
def test_reduced_network_computes_what_diffusers_computes(settings, options):
    ours = UNet(RGB, 6, **{**REDUCED, **settings})
    theirs = diffusers_unet(ours, **options)
    x, c_noise = inputs(3, 3, 16, 16)
    output = with_weights_of(theirs, ours)(x, c_noise)
    torch.testing.assert_close(output, theirs(x, c_noise).sample, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_labels_act_as_in_diffusers():
    ours = UNet(image_spec(num_classes=10), 1, **REDUCED)
    theirs = diffusers_unet(ours, num_class_embeds=11)
    x, c_noise = inputs(3, 1, 8, 8)
    output = with_weights_of(theirs, ours)(x, c_noise, labels(3, -1, 9))
    expected = theirs(x, c_noise, class_labels=torch.tensor([3, 10, 9])).sample
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)


# ---- Settings -------------------------------------------------------------------------------


def attentions(net: nn.Module) -> list[type]:
    return [type(module) for module in net.modules() if isinstance(module, Attention)]


def test_attention_levels_and_mid_attention_say_where_attention_is():
    settings = {**SMALL, "multipliers": [1, 1, 1]}
    net = UNet(image_spec(), 1, attention_levels=[2], linear_attention_levels=[0], **settings)
    down, up = [LinearAttention], [LinearAttention] * 2
    kinds = [attentions(part) for part in (*net.down, net.mid, *net.up)]
    full = [Attention]
    assert kinds == [down, [], full, full, full * 2, [], up]
    assert attentions(UNet(image_spec(), 1, attention_levels=[], **settings)) == full
    # heads=3 does not divide 16 features, and is unused without attention
    none = UNet(image_spec(), 1, attention_levels=[], mid_attention=False, heads=3, **settings)
    assert attentions(none) == []


def test_groups_of_a_single_number_are_refused():
    settings = {"channels": 32, "multipliers": [1, 1, 1, 1], "groups": 32}
    with pytest.raises(InputError, match="fewer multipliers, fewer groups"):
        UNet(image_spec(), 1, **settings)
    UNet(image_spec(size=16), 1, **settings).check_shape((1, 16, 8))


@torch.no_grad()
@pytest.mark.parametrize("block", ["residual", "convnext", "weight_standardized"])
def test_dropout_acts_in_training_only(block):
    net = randomized(UNet(image_spec(), 1, block=block, **{**SMALL, "dropout": 0.5}))
    x, c_noise = inputs(2, 1, 8, 8)
    assert not torch.equal(net(x, c_noise), net(x, c_noise))
    net.eval()
    assert torch.equal(net(x, c_noise), net(x, c_noise))


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


@torch.no_grad()
def test_the_embedding_tells_neighbouring_noise_levels_apart_in_every_precision():
    embed = randomized(UNet(image_spec(), 1, **SMALL)).embed
    c_noise = torch.tensor([997.0, 998.0, 999.0])  # all 1000 or 996 in bfloat16
    exact = embed(c_noise)
    rough = embed.to(torch.bfloat16)(c_noise).float()
    assert (rough - exact).std() < 0.05 * exact.std()
    c_noise, embed = c_noise.double(), embed.double()  # float32 cannot tell 1e-9 more apart
    assert 0 < (embed(c_noise + 1e-9) - embed(c_noise)).abs().max() < 1e-7
