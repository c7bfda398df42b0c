"""The plain convolutional U-Net of introductory notebooks: no norm, no attention, two skips."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from typing_extensions import override

from ddpm_lightning.batch import Condition, DataSpec
from ddpm_lightning.networks.checks import check_counts, check_image
from ddpm_lightning.networks.layers import ConditionEmbedding, Conv, Linear
from ddpm_lightning.networks.network import Network

EMBEDDING = 100  # length of the noise level's embedding, and of a label's row


class SimpleUNet(Network):
    """Convolutional U-Net that is told noise level and label once, in the middle.

    Seven convolutions, 2.4 M parameters by default: 64 → 128 → 256 features, halved by strides
    and doubled by transposed convolutions, with SiLU between (the class SimpleUNet of the notebook
    Architectures/diffusion.ipynb in gnoejh/ict1022).

    Args:
        data: Images [C, H, W] with sides divisible by 4.
        out_channels: Channels of the output.
        channels: Features at full resolution; twice and four times as many further down.
    """

    def __init__(self, data: DataSpec, out_channels: int, channels: int = 64):
        super().__init__()
        check_counts(self, channels=channels)
        self.data = data
        self.check_shape(data.shape)
        fine, middle, coarse = channels, 2 * channels, 4 * channels
        self.embed = TimeEmbedding(1, EMBEDDING, data.num_classes)
        self.down0 = Conv(self.in_channels, fine)
        self.down1 = Conv(fine, middle, stride=2)
        self.down2 = Conv(middle, coarse, stride=2)
        self.condition = Linear(EMBEDDING, coarse)
        self.mid1 = Conv(coarse, coarse)
        self.mid2 = Conv(coarse, coarse)
        self.up1 = nn.ConvTranspose2d(coarse, middle, 4, stride=2, padding=1)
        self.up0 = nn.ConvTranspose2d(middle + middle, fine, 4, stride=2, padding=1)
        self.out = Conv(fine + fine, out_channels, gain=0.0)

    @override
    def forward(self, x: Tensor, c_noise: Tensor, condition: Condition = Condition()) -> Tensor:
        x = self.stack_image(x, condition).to(self.out.weight.dtype)
        embedding = self.condition(self.embed(c_noise, condition.label))  # [B, 4·channels]
        fine = F.silu(self.down0(x))  # [B, channels, H, W]
        middle = F.silu(self.down1(fine))  # [B, 2·channels, H/2, W/2]
        h = F.silu(self.down2(middle)) + rearrange(embedding, "b c -> b c 1 1")
        h = F.silu(self.mid2(F.silu(self.mid1(h))))  # [B, 4·channels, H/4, W/4]
        h = torch.cat([F.silu(self.up1(h)), middle], dim=1)
        h = torch.cat([F.silu(self.up0(h)), fine], dim=1)
        return self.out(h)

    @override
    def check_shape(self, shape: tuple[int, ...]) -> None:
        check_image("SimpleUNet", shape, factor=4)


class TimeEmbedding(ConditionEmbedding):
    """MLP(c_noise / 1000) + a row of the label table: the level as one number, without sines.

    The notebook gives the MLP 0 to 999, to which its first layer answers a thousand times more
    strongly than to its own bias.
    """

    @override
    def code(self, c_noise: Tensor) -> Tensor:
        return c_noise[:, None] / 1000
