"""Blocks that a U-Net can be made of instead of the residual block: ``UNet(block=...)``.

All take the arguments of :class:`ResidualBlock`, keep the size of the image and start as the
identity.
"""

from __future__ import annotations

from typing import ClassVar

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
    norm1(depthwise(x)) instead; with embedding None there is no condition.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding: int | None,
        groups: int = 32,
        dropout: float = 0.0,
        scale_shift: bool = False,
    ):
        super().__init__()
        hidden = 2 * out_channels
        self.depthwise = Conv(in_channels, in_channels, kernel=7, padding=3, groups=in_channels)
        self.condition = condition_layer(embedding, in_channels, scale_shift)
        self.norm1 = group_norm(in_channels, groups)
        self.conv1 = Conv(in_channels, hidden)
        self.norm2 = group_norm(hidden, groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = Conv(hidden, out_channels, gain=0.0)
        self.shortcut = shortcut(in_channels, out_channels)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Map x [B, in_channels, H, W], under a condition [B, embedding], to out_channels."""
        h = self.depthwise(x)
        if self.condition is None:
            h = self.norm1(h)
        else:
            assert embedding is not None
            h = modulate(h, self.condition(F.gelu(embedding)), self.norm1)
        h = self.norm2(F.gelu(self.conv1(h)))  # [B, 2·out_channels, H, W]
        return self.shortcut(x) + self.conv2(self.dropout(h))


class PostNormBlock(nn.Module):
    """x + SiLU(norm2(conv2(dropout(SiLU(norm1(conv1(x))) + condition)))).

    A norm after each convolution, and the condition after the first activation (ResnetBlock of
    "The annotated diffusion model", Rogge & Rasul 2022). With scale_shift the condition scales and
    shifts that activation instead; with embedding None there is no condition.
    """

    conv: ClassVar[type[Conv]] = Conv

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding: int | None,
        groups: int = 32,
        dropout: float = 0.0,
        scale_shift: bool = False,
    ):
        super().__init__()
        self.conv1 = self.conv(in_channels, out_channels)
        self.norm1 = group_norm(out_channels, groups)
        self.condition = condition_layer(embedding, out_channels, scale_shift)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = self.conv(out_channels, out_channels)
        self.norm2 = group_norm(out_channels, groups)
        nn.init.zeros_(self.norm2.weight)  # because SiLU(0) = 0: the block starts as the identity
        self.shortcut = shortcut(in_channels, out_channels)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Map x [B, in_channels, H, W], under a condition [B, embedding], to out_channels."""
        condition = None
        if self.condition is not None:
            assert embedding is not None
            condition = self.condition(F.silu(embedding))
        h = self.activate(self.norm1(self.conv1(x)), condition)  # [B, out_channels, H, W]
        return self.shortcut(x) + F.silu(self.norm2(self.conv2(self.dropout(h))))

    def activate(self, h: Tensor, condition: Tensor | None) -> Tensor:
        """Apply activation and condition to features [B, out_channels, H, W]."""
        h = F.silu(h)
        return h if condition is None else modulate(h, condition)


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


class WeightStandardizedBlock(PostNormBlock):
    """x + SiLU(norm2(conv2(dropout(SiLU(norm1(conv1(x)) + condition))))).

    Its convolutions standardize their weights, which removes their scale, so each is followed by
    its norm (Qiao et al. 2019, section 3). With scale_shift the condition scales and shifts
    norm1(conv1(x)) instead.
    """

    conv = WeightStandardizedConv

    @override
    def activate(self, h: Tensor, condition: Tensor | None) -> Tensor:
        return F.silu(h if condition is None else modulate(h, condition))


def condition_layer(embedding: int | None, channels: int, scale_shift: bool) -> Linear | None:
    """The layer that reads a block's condition off the embedding; None: without an embedding."""
    if embedding is None:
        return None
    return Linear(embedding, channels * (2 if scale_shift else 1))
