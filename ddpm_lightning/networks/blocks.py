"""Blocks that a U-Net can be made of instead of the residual block: ``UNet(block=...)``.

All take the arguments of :class:`ResidualBlock`, keep the size of the image and start as the
identity.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from ddpm_lightning.networks.layers import Conv, Linear, group_norm, modulate, shortcut


class ConvNeXtBlock(nn.Module):
    """x + conv2(dropout(norm2(GELU(conv1(norm1(depthwise(x) + condition)))))).

    ConvNeXt (Liu et al. 2022, section 2) as diffusion code has it (ConvNextBlock of "The annotated
    diffusion model", Rogge & Rasul 2022): a 7×7 depthwise convolution, then two 3×3 convolutions,
    where the paper has 1×1, through twice the channels, where it has four times. That code
    normalizes in one group: UNet(groups=1). With scale_shift the condition scales and shifts
    norm1(depthwise(x)) instead.
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
        h = modulate(self.depthwise(x), self.condition(F.gelu(embedding)), self.norm1)
        h = self.norm2(F.gelu(self.conv1(h)))  # [B, 2·out_channels, H, W]
        return self.shortcut(x) + self.conv2(self.dropout(h))


class WeightStandardizedBlock(nn.Module):
    """x + SiLU(norm2(conv2(dropout(SiLU(norm1(conv1(x)) + condition))))).

    Its convolutions standardize their weights, which removes their scale, so each is followed by
    its norm (Qiao et al. 2019, section 3). With scale_shift the condition scales and shifts
    norm1(conv1(x)) instead.
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
        self.conv1 = WeightStandardizedConv(in_channels, out_channels)
        self.norm1 = group_norm(out_channels, groups)
        self.condition = Linear(embedding, out_channels * (2 if scale_shift else 1))
        self.dropout = nn.Dropout(dropout)
        self.conv2 = WeightStandardizedConv(out_channels, out_channels)
        self.norm2 = group_norm(out_channels, groups)
        nn.init.zeros_(self.norm2.weight)  # because SiLU(0) = 0: the block starts as the identity
        self.shortcut = shortcut(in_channels, out_channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map x [B, in_channels, H, W], under a condition [B, embedding], to out_channels."""
        h = self.norm1(self.conv1(x))  # [B, out_channels, H, W]
        h = F.silu(modulate(h, self.condition(F.silu(embedding))))
        return self.shortcut(x) + F.silu(self.norm2(self.conv2(self.dropout(h))))


class WeightStandardizedConv(Conv):
    """Convolution with (w − mean)/sqrt(variance + 1e-5), over each output channel's weights.

    Mean and (population) variance run over input channels, height and width of the kernel (Qiao
    et al. 2019, section 3).
    """

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.standardized(), self.bias)

    def standardized(self) -> Tensor:
        """Standardize the weights in at least float32; the result has their dtype."""
        weight = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        variance, mean = torch.var_mean(weight, dim=(1, 2, 3), correction=0, keepdim=True)
        return ((weight - mean) * (variance + 1e-5).rsqrt()).to(self.weight.dtype)
