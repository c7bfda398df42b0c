"""The notebooks' plain U-Net: its parameters, and its layers in another order of writing."""

import torch
import torch.nn.functional as F

from ddpm_lightning.networks import SimpleUNet
from tests.small import image_spec, inputs, labels, randomized


def test_the_notebooks_network_has_its_layers_parameters():
    with torch.device("meta"):
        net = SimpleUNet(image_spec(3, 32), 3)
    down = (9 * 3 * 64 + 64) + (9 * 64 * 128 + 128) + (9 * 128 * 256 + 256)
    time = (1 * 100 + 100) + (100 * 100 + 100) + (100 * 256 + 256)
    middle = 2 * (9 * 256 * 256 + 256)
    up = (16 * 256 * 128 + 128) + (16 * 256 * 64 + 64) + (9 * 128 * 3 + 3)
    assert sum(p.numel() for p in net.parameters()) == down + time + middle + up


@torch.no_grad()
def test_the_network_computes_the_notebooks_layers():
    net = randomized(SimpleUNet(image_spec(2, 8, num_classes=3), 2, channels=4))
    w = net.state_dict()
    x, _ = inputs(2, 2, 8, 12)
    t = torch.tensor([0.0, 999.0])

    def layer(name, h, stride=1):
        return F.conv2d(h, w[f"{name}.weight"], w[f"{name}.bias"], stride, padding=1)

    def doubled(name, h):
        return F.conv_transpose2d(h, w[f"{name}.weight"], w[f"{name}.bias"], 2, padding=1)

    def linear(name, h):
        return h @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    time = linear("embed.linear2", F.silu(linear("embed.linear1", t[:, None] / 1000)))
    time = linear("condition", time + w["embed.label.weight"][[1, 3]])
    one = F.silu(layer("down0", x))
    two = F.silu(layer("down1", one, 2))
    h = F.silu(layer("down2", two, 2)) + time[:, :, None, None]
    h = F.silu(layer("mid2", F.silu(layer("mid1", h))))
    h = F.silu(doubled("up1", h))
    h = F.silu(doubled("up0", torch.cat([h, two], dim=1)))
    expected = layer("out", torch.cat([h, one], dim=1))
    torch.testing.assert_close(net(x, t, labels(1, -1)), expected)
