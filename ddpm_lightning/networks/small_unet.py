"""A U-Net small enough to be read at a glance and trained in minutes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from typing_extensions import override

from ddpm_lightning.batch import Condition, DataSpec
from ddpm_lightning.errors import InputError
from ddpm_lightning.networks.checks import check_counts, check_image
from ddpm_lightning.networks.layers import (
    ConditionEmbedding,
    Conv,
    Downsample,
    Linear,
    Upsample,
    group_norm,
)
from ddpm_lightning.networks.network import Network

GROUPS = 8


class SmallUNet(Network):
    """Convolutional U-Net of three levels, as in many notebooks: no attention, 0.3 M parameters.

    Args:
        data: Images [C, H, W] with sides divisible by 4.
        out_channels: Channels of the output.
        channels: Features at full resolution, a multiple of 8; twice as many further down.

    Raises:
        InputError: channels or the shape of the data does not fit.
    """

    def __init__(self, data: DataSpec, out_channels: int, channels: int = 32):
        super().__init__()
        check_counts(self, channels=channels)
        if channels % GROUPS:
            raise InputError(f"SmallUNet(channels={channels}): give a multiple of {GROUPS}")
        self.data = data
        self.check_shape(data.shape)
        fine, coarse = channels, 2 * channels
        self.embed = ConditionEmbedding(channels, coarse, data.num_classes)
        self.down0 = Stage(self.in_channels, fine, coarse)
        self.halve0 = Downsample(fine)
        self.down1 = Stage(fine, coarse, coarse)
        self.halve1 = Downsample(coarse)
        self.bottom = Stage(coarse, coarse, coarse)
        self.double1 = Upsample(coarse)
        self.up1 = Stage(coarse + coarse, coarse, coarse)
        self.double0 = Upsample(coarse)
        self.up0 = Stage(coarse + fine, fine, coarse)
        self.out = Conv(fine, out_channels, gain=0.0)

    @override
    def forward(self, x: Tensor, c_noise: Tensor, condition: Condition = Condition()) -> Tensor:
        x = self.stack_image(x, condition)
        embedding = self.embed(c_noise, condition.label)  # [B, 2·channels]
        fine = self.down0(x.to(self.out.weight.dtype), embedding)  # [B, channels, H, W]
        middle = self.down1(self.halve0(fine), embedding)  # [B, 2·channels, H/2, W/2]
        h = self.bottom(self.halve1(middle), embedding)  # [B, 2·channels, H/4, W/4]
        h = self.up1(torch.cat([self.double1(h), middle], dim=1), embedding)
        h = self.up0(torch.cat([self.double0(h), fine], dim=1), embedding)
        return self.out(h)

    @override
    def check_shape(self, shape: tuple[int, ...]) -> None:
        check_image("SmallUNet", shape, factor=4)


class Stage(nn.Module):
    """SiLU(norm(conv(x)) + condition): a convolution conditioned on noise level and label."""

    def __init__(self, in_channels: int, out_channels: int, embedding: int):
        super().__init__()
        self.conv = Conv(in_channels, out_channels)
        self.norm = group_norm(out_channels, GROUPS)
        self.condition = Linear(embedding, out_channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map x [B, in_channels, H, W], under a condition [B, embedding], to out_channels."""
        condition = rearrange(self.condition(F.silu(embedding)), "b c -> b c 1 1")
        return F.silu(self.norm(self.conv(x)) + condition)
