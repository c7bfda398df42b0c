"""UNet on patches, and shown its own estimate."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ddpm_lightning.batch import Condition, DataSpec
from ddpm_lightning.errors import InputError
from ddpm_lightning.interchange.unet2d import UNet2D
from ddpm_lightning.networks import UNet

SMALL = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "groups": 4, "dropout": 0.0}


def filled(net: UNet) -> UNet:
    """The network with all weights drawn, since its last layer starts at zero."""
    torch.manual_seed(0)
    for weight in net.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    return net


@pytest.mark.core
def test_patches_are_the_network_of_the_unshuffled_image():
    on_patches = filled(UNet(DataSpec((1, 8, 8)), 1, patch=2, **SMALL))
    on_pixels = UNet(DataSpec((4, 4, 4)), 4, **SMALL)
    on_pixels.load_state_dict(on_patches.state_dict())
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3.0, 70.0])
    expected = F.pixel_shuffle(on_pixels(F.pixel_unshuffle(x, 2), t), 2)
    torch.testing.assert_close(on_patches(x, t), expected)


@pytest.mark.core
@pytest.mark.parametrize(
    ("patch", "side", "fix"), [(3, 28, "set patch to 2"), (2, 12, "at most 2 multipliers")]
)
def test_patches_that_do_not_fit_are_refused_with_what_does(patch, side, fix):
    settings = SMALL | {"multipliers": (1, 2, 2)}
    with pytest.raises(InputError, match=fix):
        UNet(DataSpec((1, side, side)), 1, patch=patch, **settings)


@pytest.mark.core
def test_self_conditioning_reads_the_estimate_and_takes_none_for_zeros():
    net = filled(UNet(DataSpec((1, 8, 8)), 1, patch=2, self_conditioning=True, **SMALL))
    x, t, estimate = torch.randn(2, 1, 8, 8), torch.tensor([3.0, 70.0]), torch.ones(2, 1, 8, 8)
    without = net(x, t)
    torch.testing.assert_close(net(x, t, Condition(estimate=torch.zeros_like(x))), without)
    assert not torch.allclose(net(x, t, Condition(estimate=estimate)), without)


@pytest.mark.parametrize("setting", [{"patch": 2}, {"self_conditioning": True}])
def test_what_diffusers_lacks_is_not_exported(setting):
    with pytest.raises(InputError, match="neither patches nor self-conditioning"):
        UNet2D().config(UNet(DataSpec((1, 8, 8)), 1, **setting, **SMALL))
