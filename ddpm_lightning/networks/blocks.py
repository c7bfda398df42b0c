"""Blocks that a U-Net can be made of instead of the residual block: ``UNet(block=...)``.

All take the same arguments, keep the size of the image and start as the identity.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ddpm_lightning.networks.layers import Conv, Linear, group_norm, shortcut


class ConvNeXtBlock(nn.Module):
    """x + conv2(dropout(norm2(GELU(conv1(norm1(depthwise(x) + condition)))))).

    ConvNeXt (Liu et al. 2022, section 2) as diffusion code has it (ConvNextBlock of "The annotated
    diffusion model", Rogge & Rasul 2022): a 7×7 depthwise convolution, then two 3×3 convolutions,
    where the paper has 1×1, through twice the channels, where it has four times. That code
    normalizes in one group: UNet(groups=1).

    Args:
        in_channels: Channels of x.
        out_channels: Channels of the result; where they differ, a 1×1 convolution carries x over.
        embedding: Length of the condition vector.
        groups: Groups of the normalization.
        dropout: Probability of zeroing a feature in training.
        scale_shift: The condition scales and shifts the first norm's output, h·(1 + scale) +
            shift, instead of being added before it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding: int,
        groups: int = 32,
        dropout: float = 0.0,
        scale_shift: bool = False,
    ):
        super().__init__()
        self.scale_shift = scale_shift
        hidden = 2 * out_channels
        self.depthwise = Conv(in_channels, in_channels, kernel=7, padding=3, groups=in_channels)
        self.condition = Linear(embedding, in_channels * (2 if scale_shift else 1))
        self.norm1 = group_norm(in_channels, groups)
        self.conv1 = Conv(in_channels, hidden)
        self.norm2 = group_norm(hidden, groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = Conv(hidden, out_channels, gain=0.0)
        self.shortcut = shortcut(in_channels, out_channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map x [B, in_channels, H, W], under a condition [B, embedding], to out_channels."""
        condition = rearrange(self.condition(F.gelu(embedding)), "b c -> b c 1 1")
        h = self.depthwise(x)  # [B, in_channels, H, W]
        if self.scale_shift:
            scale, shift = condition.chunk(2, dim=1)
            h = self.norm1(h) * (1 + scale) + shift
        else:
            h = self.norm1(h + condition)
        h = self.norm2(F.gelu(self.conv1(h)))  # [B, 2·out_channels, H, W]
        return self.shortcut(x) + self.conv2(self.dropout(h))


class WeightStandardizedBlock(nn.Module):
    """x + SiLU(norm2(conv2(dropout(SiLU(norm1(conv1(x)) + condition))))).

    Its convolutions standardize their weights, so each is followed by its norm: the scale of such
    a convolution says nothing until then (Qiao et al. 2019, section 3).

    Args:
        in_channels: Channels of x.
        out_channels: Channels of the result; where they differ, a 1×1 convolution carries x over.
        embedding: Length of the condition vector.
        groups: Groups of the normalization.
        dropout: Probability of zeroing a feature in training.
        scale_shift: The condition scales and shifts the first norm's output, h·(1 + scale) +
            shift, instead of being added to it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding: int,
        groups: int = 32,
        dropout: float = 0.0,
        scale_shift: bool = False,
    ):
        super().__init__()
        self.scale_shift = scale_shift
        self.conv1 = WeightStandardizedConv(in_channels, out_channels)
        self.norm1 = group_norm(out_channels, groups)
        self.condition = Linear(embedding, out_channels * (2 if scale_shift else 1))
        self.dropout = nn.Dropout(dropout)
        self.conv2 = WeightStandardizedConv(out_channels, out_channels)
        self.norm2 = group_norm(out_channels, groups)
        nn.init.zeros_(self.norm2.weight)  # SiLU(0) = 0: the branch adds nothing at first
        self.shortcut = shortcut(in_channels, out_channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map x [B, in_channels, H, W], under a condition [B, embedding], to out_channels."""
        condition = rearrange(self.condition(F.silu(embedding)), "b c -> b c 1 1")
        h = self.norm1(self.conv1(x))  # [B, out_channels, H, W]
        if self.scale_shift:
            scale, shift = condition.chunk(2, dim=1)
            h = h * (1 + scale) + shift
        else:
            h = h + condition
        h = self.norm2(self.conv2(self.dropout(F.silu(h))))
        return self.shortcut(x) + F.silu(h)


class WeightStandardizedConv(Conv):
    """Convolution by (w − mean)/sqrt(variance + 1e-5), over each output channel's weights.

    Mean and variance (of the population) run over input channels, height and width of the kernel.
    (Qiao et al. 2019, section 3.)
    """

    eps = 1e-5

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, in_channels, H, W] to [B, out_channels, H, W]."""
        return self._conv_forward(x, self.standardized(), self.bias)

    def standardized(self) -> Tensor:
        """The weights in use: computed in at least float32, in the dtype of the parameters."""
        weight = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        variance, mean = torch.var_mean(weight, dim=(1, 2, 3), correction=0, keepdim=True)
        return ((weight - mean) * (variance + self.eps).rsqrt()).to(self.weight.dtype)
