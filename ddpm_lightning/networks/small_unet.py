"""A U-Net small enough to be read at a glance and trained in minutes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ddpm_lightning.errors import InputError
from ddpm_lightning.networks.checks import check_counts, check_image, sizes_that_fit
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
    """A convolutional U-Net of three levels, as in many notebooks: no attention, 0.3 M parameters.

    Args:
        in_channels: Channels of the noisy image.
        out_channels: Channels of the output.
        num_classes: Number of classes; None ignores labels.
        channels: Features at full resolution, a multiple of 8; twice as many further down.

    Raises:
        InputError: channels does not fit; the message names a number that does.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_classes: int | None = None,
        channels: int = 32,
    ):
        super().__init__()
        classes = 1 if num_classes is None else num_classes
        counts = {"in_channels": in_channels, "out_channels": out_channels, "channels": channels}
        check_counts("SmallUNet", **counts, num_classes=classes)
        if channels % GROUPS:
            fitting = (channels // GROUPS + 1) * GROUPS
            raise InputError(
                f"SmallUNet(channels={channels}): give a multiple of 8, e.g. {fitting}"
            )
        self.in_channels = in_channels
        fine, coarse = channels, 2 * channels
        self.embed = ConditionEmbedding(channels, coarse, num_classes)
        self.down0 = Stage(in_channels, fine, coarse)
        self.halve0 = Downsample(fine)
        self.down1 = Stage(fine, coarse, coarse)
        self.halve1 = Downsample(coarse)
        self.bottom = Stage(coarse, coarse, coarse)
        self.double1 = Upsample(coarse)
        self.up1 = Stage(coarse + coarse, coarse, coarse)
        self.double0 = Upsample(coarse)
        self.up0 = Stage(coarse + fine, fine, coarse)
        self.out = Conv(fine, out_channels, gain=0.0)

    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None) -> Tensor:
        """Map x [B, in_channels, H, W] to [B, out_channels, H, W]; see :class:`Network`."""
        self.check_shape(tuple(x.shape[1:]))
        condition = self.embed(c_noise, y)  # [B, 2·channels]
        fine = self.down0(x.to(self.out.weight.dtype), condition)  # [B, channels, H, W]
        middle = self.down1(self.halve0(fine), condition)  # [B, 2·channels, H/2, W/2]
        h = self.bottom(self.halve1(middle), condition)  # [B, 2·channels, H/4, W/4]
        h = self.up1(torch.cat([self.double1(h), middle], dim=1), condition)
        h = self.up0(torch.cat([self.double0(h), fine], dim=1), condition)
        return self.out(h)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise InputError, with the fix, if images of this shape [C, H, W] do not fit."""
        check_image("SmallUNet", shape, self.in_channels)
        height, width = shape[1:]
        if height % 4 or width % 4:
            raise InputError(
                f"SmallUNet halves images twice: height and width must be multiples of 4, not "
                f"{height}×{width}; set the data's image_size to "
                f"{sizes_that_fit(height, width, 4)}"
            )


class Stage(nn.Module):
    """SiLU(norm(conv(x)) + condition): one convolution that knows noise level and label."""

    def __init__(self, in_channels: int, out_channels: int, embedding: int):
        super().__init__()
        self.conv = Conv(in_channels, out_channels)
        self.norm = group_norm(out_channels, GROUPS)
        self.condition = Linear(embedding, out_channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map x [B, in_channels, H, W], under a condition [B, embedding], to out_channels."""
        condition = rearrange(self.condition(F.silu(embedding)), "b c -> b c 1 1")
        return F.silu(self.norm(self.conv(x)) + condition)
