"""The U-Net of double convolutions, as in class-conditional tutorials of diffusion from scratch.

Down: halving by the largest of four pixels, two double convolutions, self-attention among the
pixels; up: the same after bilinear doubling, fed with the matching skip. Noise level and label are
added to the features after the convolutions of a stage. Layers and widths are those of the public
code dome272/Diffusion-Models-pytorch, modules.py (2022), which starts from torch's own initial
weights; only the last convolution starts at zero, as in all networks here.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from typing_extensions import override

from ddpm_lightning.batch import Condition, DataSpec
from ddpm_lightning.errors import InputError
from ddpm_lightning.networks.checks import check_counts, check_image
from ddpm_lightning.networks.layers import Conv, GroupNorm, LabelEmbedding, sinusoidal
from ddpm_lightning.networks.network import Network

EMBEDDING = 256  # length of the noise level's sinusoidal code, and of a label's row


class DoubleConvUNet(Network):
    """U-Net of double convolutions with self-attention at every size but on the way in.

    The default settings give six attention layers and, for three channels, 23.3 M parameters.

    Args:
        data: Images [C, H, W] with sides divisible by 2^(levels − 1).
        out_channels: Channels of the output.
        channels: Features at full resolution.
        multipliers: One per level, at least two: level i, of size / 2^i, has
            channels × multipliers[i] features.
        wide_bottleneck: Whether the lowest level is widened to twice its features in between, by
            three double convolutions; else two keep its width.
        heads: Attention heads; must divide the features of every level.

    Raises:
        InputError: The settings do not fit each other or the data; the message names some that do.
    """

    def __init__(
        self,
        data: DataSpec,
        out_channels: int,
        channels: int = 64,
        multipliers: Sequence[int] = (1, 2, 4, 4),
        wide_bottleneck: bool = True,
        heads: int = 4,
    ):
        super().__init__()
        check_counts(self, channels=channels, heads=heads)
        check_counts(self, multipliers=min(multipliers, default=0))
        widths = [channels * multiplier for multiplier in multipliers]
        _check_widths(widths, heads)
        self.data = data
        self.multipliers = list(multipliers)
        self.check_shape(data.shape)
        self.embed = CodeEmbedding(EMBEDDING, data.num_classes)
        self.stem = DoubleConv(self.in_channels, channels)
        self.down = nn.ModuleList(
            [Stage(fine, coarse, heads) for fine, coarse in pairwise(widths)]
        )
        bottom = widths[-1]
        middle = [bottom, 2 * bottom, 2 * bottom, bottom] if wide_bottleneck else [bottom] * 3
        self.bottleneck = nn.Sequential(*[DoubleConv(a, b) for a, b in pairwise(middle)])
        self.up = nn.ModuleList()
        width = bottom
        for level in reversed(range(len(widths) - 1)):
            stacked, out = width + widths[level], widths[max(level - 1, 0)]
            self.up.append(Stage(stacked, out, heads, hidden=stacked // 2))
            width = out
        self.out = Conv(width, out_channels, kernel=1, padding=0, gain=0.0)

    @override
    def forward(self, x: Tensor, c_noise: Tensor, condition: Condition = Condition()) -> Tensor:
        dtype = self.out.weight.dtype
        x = self.stack_image(x, condition).to(dtype)
        embedding = F.silu(self.embed(c_noise, condition.label, dtype))  # [B, 256]
        features = [self.stem(x)]  # skips, finest first
        for stage in self.down:
            features.append(stage(F.max_pool2d(features[-1], 2), embedding))
        h = self.bottleneck(features.pop())  # [B, C, H/2^bottom, W/2^bottom]
        for stage in self.up:
            h = F.interpolate(h, scale_factor=2.0, mode="bilinear", align_corners=True)
            h = stage(torch.cat([features.pop(), h], dim=1), embedding)
        return self.out(h)

    @override
    def check_shape(self, shape: tuple[int, ...]) -> None:
        check_image("DoubleConvUNet", shape, 2 ** (len(self.multipliers) - 1), _fewer_multipliers)


class CodeEmbedding(nn.Module):
    """sinusoidal(c_noise) + a row of the label table, without an MLP between.

    Args:
        dim: Length of the result, even.
        num_classes: Number of classes; None builds no table and ignores labels.
    """

    def __init__(self, dim: int, num_classes: int | None):
        super().__init__()
        self.dim = dim
        self.label = None if num_classes is None else LabelEmbedding(num_classes, dim)

    def forward(self, c_noise: Tensor, label: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Map c_noise [B] and labels [B] (−1 or None: the null label) to [B, dim] of a dtype."""
        # Because sines of large angles need float32 even where the weights are half precision.
        c_noise = c_noise.to(torch.promote_types(dtype, torch.float32))
        code = sinusoidal(c_noise, self.dim, with_last=False).to(dtype)
        return code if self.label is None else code + self.label.rows(label, c_noise)


class DoubleConv(nn.Module):
    """norm2(conv2(GELU(norm1(conv1(x))))), or GELU(x + that).

    3×3 convolutions without bias, each before a group normalization of one group.

    Args:
        in_channels: Channels of x.
        out_channels: Channels of the result.
        hidden: Channels between the convolutions; None: out_channels.
        residual: Whether x is added; it takes in_channels = out_channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden: int | None = None,
        residual: bool = False,
    ):
        super().__init__()
        hidden = hidden or out_channels
        self.residual = residual
        self.conv1 = nn.Conv2d(in_channels, hidden, 3, padding=1, bias=False)
        self.norm1 = GroupNorm(1, hidden)
        self.conv2 = nn.Conv2d(hidden, out_channels, 3, padding=1, bias=False)
        self.norm2 = GroupNorm(1, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, in_channels, H, W] to [B, out_channels, H, W]."""
        h = self.norm2(self.conv2(F.gelu(self.norm1(self.conv1(x)))))
        return F.gelu(x + h) if self.residual else h


class Stage(nn.Module):
    """attention(change(refine(x)) + condition): what a level does after its size was changed.

    Args:
        in_channels: Channels of x, kept by the first double convolution, which is residual.
        out_channels: Channels of the result, made by the second one.
        heads: Attention heads.
        hidden: Channels between the convolutions of the second one; None: out_channels.
    """

    def __init__(self, in_channels: int, out_channels: int, heads: int, hidden: int | None = None):
        super().__init__()
        self.refine = DoubleConv(in_channels, in_channels, residual=True)
        self.change = DoubleConv(in_channels, out_channels, hidden)
        self.condition = nn.Linear(EMBEDDING, out_channels)
        self.attention = PixelTransformer(out_channels, heads)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map x [B, in_channels, H, W], under a condition [B, 256], to out_channels."""
        condition = rearrange(self.condition(embedding), "b c -> b c 1 1")
        return self.attention(self.change(self.refine(x)) + condition)


class PixelTransformer(nn.Module):
    """A transformer block whose tokens are pixels, with its norms first (Vaswani et al. 2017).

    x + attention(norm1(x)), then x + contract(GELU(expand(norm2(x)))); the feed-forward part has
    as many hidden features as the tokens.

    Args:
        channels: Channels of x.
        heads: Number of heads, each of channels/heads features.
    """

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.attended = nn.Linear(channels, channels)
        self.norm2 = nn.LayerNorm(channels)
        self.expand = nn.Linear(channels, channels)
        self.contract = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, channels, H, W] to the same shape."""
        # Tokens and their norms have the weights' dtype, float32 under autocast, too.
        tokens = rearrange(x, "b c h w -> b (h w) c").to(self.norm1.weight.dtype)
        qkv = rearrange(
            self.qkv(self.norm1(tokens)), "b n (three h d) -> three b h n d", three=3, h=self.heads
        )
        mixed = F.scaled_dot_product_attention(*qkv)  # [B, heads, H·W, channels/heads]
        tokens = tokens + self.attended(rearrange(mixed, "b h n d -> b n (h d)"))
        tokens = tokens + self.contract(F.gelu(self.expand(self.norm2(tokens))))
        return rearrange(tokens, "b (h w) c -> b c h w", h=x.shape[2])


def _check_widths(widths: list[int], heads: int) -> None:
    if len(widths) < 2:
        raise InputError(
            "DoubleConvUNet: one multiplier leaves no stage, and noise level and label would have "
            "no effect; give two or more, e.g. --model.net.multipliers [1,2]"
        )
    if odd := [width for width in widths if width % heads]:
        raise InputError(
            f"DoubleConvUNet(heads={heads}): attention on {odd[0]} features does not split into "
            f"{heads} equal heads; set heads=1 or channels to a multiple of {heads}"
        )


def _fewer_multipliers(side: int) -> str:
    levels = (side & -side).bit_length()  # 1 + how often the side can be halved
    if levels < 2:
        return "take another network (--model.net DiT --model.net.patch 1)"
    return f"give at most {levels} multipliers"
