"""The U-Nets of "The annotated diffusion model" (Rogge & Rasul 2022), in the two forms it has had.

Down: two blocks and linear attention at every size; mid: block, attention, block; up: the same in
reverse, fed with the skips; a last block and a 1×1 convolution. Layers and widths are those of the
text's code (annotated-diffusion.md of huggingface/blog); initial weights are as in all networks
here, so every block and attention starts as the identity, and the network at zero.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from typing_extensions import override

from ddpm_lightning.batch import Condition, DataSpec
from ddpm_lightning.errors import InputError
from ddpm_lightning.networks.blocks import ConvNeXtBlock, PostNormBlock, WeightStandardizedBlock
from ddpm_lightning.networks.checks import (
    check_counts,
    check_image,
    fewer_multipliers,
    largest_divisor,
)
from ddpm_lightning.networks.layers import (
    ConditionEmbedding,
    Conv,
    Upsample,
    group_norm,
    linear_attention,
)
from ddpm_lightning.networks.network import Network

HEAD = 32  # features of an attention head, however many the pixels have

BLOCKS: dict[str, type[ConvNeXtBlock | PostNormBlock]] = {
    "convnext": ConvNeXtBlock,
    "residual": PostNormBlock,
}


class _Annotated(Network):
    """What both forms share: the order of their parts, and which images fit."""

    embed: ConditionEmbedding
    stem: Conv
    down: nn.ModuleList
    mid: Middle
    up: nn.ModuleList
    out: Conv

    @abstractmethod
    def last(self, h: Tensor, stem: Tensor, embedding: Tensor) -> Tensor:
        """Map the features of the way up, beside those of the stem, to what ``out`` reads."""

    @override
    def forward(self, x: Tensor, c_noise: Tensor, condition: Condition = Condition()) -> Tensor:
        x = self.stack_image(x, condition).to(self.out.weight.dtype)
        embedding = self.embed(c_noise, condition.label)  # [B, 4·channels]
        stem = h = self.stem(x)
        skips: list[Tensor] = []  # finest first
        for level in self.down:
            h = level(h, embedding, skips)
        h = self.mid(h, embedding)  # [B, C, H/2^bottom, W/2^bottom]
        for level in self.up:
            h = level(h, embedding, skips)
        return self.out(self.last(h, stem, embedding))

    @override
    def check_shape(self, shape: tuple[int, ...]) -> None:
        check_image(type(self).__name__, shape, 2 ** (len(self.down) - 1), fewer_multipliers)


class AnnotatedUNet(_Annotated):
    """The U-Net of the text's later form, for images of any size that its levels can halve.

    Residual blocks with weight standardization, which noise level and label scale and shift;
    halving by pixel-unshuffle and a 1×1 convolution, doubling by repeated pixels and a 3×3
    convolution; a skip from every block, and a long one from the stem to the last block.

    Args:
        data: Images [C, H, W] with sides divisible by 2^(levels − 1).
        out_channels: Channels of the output.
        channels: Width of the network, even; the text's is the size of the image.
        multipliers: One per level: the way down leaves level i, of size / 2^i, with channels ×
            multipliers[i] features.
        stem_channels: Features of the stem; null: as many as channels.
        stem_kernel: Size of the stem's convolution, odd: the text's 1, or the 7 of its first form.
        heads: Attention heads, of 32 features each.
        groups: Groups of the blocks' norms; must divide the features of stem and levels.
        self_conditioning: Show it an earlier estimate of x0 (Chen et al. 2022): in training its
            own at half of the steps, in sampling that of the step before.

    Raises:
        InputError: The settings do not fit each other or the data; the message names some that do.
    """

    def __init__(
        self,
        data: DataSpec,
        out_channels: int,
        channels: int = 28,
        multipliers: Sequence[int] = (1, 2, 4),
        stem_channels: int | None = None,
        stem_kernel: int = 1,
        heads: int = 4,
        groups: int = 4,
        self_conditioning: bool = False,
    ):
        super().__init__()
        stem = channels if stem_channels is None else stem_channels
        check_counts(self, heads=heads, groups=groups, stem_kernel=stem_kernel)
        if stem_kernel % 2 == 0:
            raise InputError(f"AnnotatedUNet(stem_kernel={stem_kernel}): give an odd size, e.g. 7")
        widths = _widths(self, channels, multipliers, stem)
        _check_groups(self, widths, groups)
        embedding = 4 * channels

        def make(width: int, out: int) -> nn.Module:
            return WeightStandardizedBlock(width, out, embedding, groups, scale_shift=True)

        self.data = data
        self.self_conditioning = self_conditioning
        self.embed = _Embedding(channels, embedding, data.num_classes)
        self.stem = Conv(self.in_channels, stem, stem_kernel, padding=stem_kernel // 2)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, (fine, coarse) in enumerate(pairwise(widths)):
            is_last = level == len(widths) - 2
            smaller = Conv(fine, coarse) if is_last else _unshuffled(fine, coarse)
            blocks = [make(fine, fine), make(fine, fine)]
            self.down.append(Down(blocks, PixelAttention(fine, heads, linear=True), smaller))
            larger = Upsample(coarse, fine) if level else Conv(coarse, fine)
            blocks = [make(coarse + fine, coarse), make(coarse + fine, coarse)]
            self.up.insert(0, Up(blocks, PixelAttention(coarse, heads, linear=True), larger))
        bottom = widths[-1]
        attention = PixelAttention(bottom, heads, linear=False)
        self.mid = Middle(make(bottom, bottom), attention, make(bottom, bottom))
        self.last_block = make(2 * stem, channels)
        self.out = Conv(channels, out_channels, kernel=1, padding=0, gain=0.0)
        self.check_shape(data.shape)

    @override
    def last(self, h: Tensor, stem: Tensor, embedding: Tensor) -> Tensor:
        return self.last_block(torch.cat([h, stem], dim=1), embedding)


class AnnotatedUNet2022(_Annotated):
    """The U-Net of the text's first form (June 2022): ConvNeXt blocks, or residual ones.

    Halving and doubling by strided and transposed 4×4 convolutions; one skip a level, of which the
    way up leaves the finest, as the text does; the last block is not told the noise level.

    Args:
        data: Images [C, H, W] with sides divisible by 2^(levels − 1).
        out_channels: Channels of the output.
        channels: Width of the network, even; the text's is the size of the image.
        multipliers: One per level, at least two: level i, of size / 2^i, has channels ×
            multipliers[i] features.
        stem_channels: Features of the 7×7 stem; null: two thirds of channels, channels // 3 · 2.
        block: ConvNeXt blocks, or residual ones that the noise level is added to.
        heads: Attention heads, of 32 features each.
        groups: Groups of the blocks' norms; must divide the features of the levels, and of the
            stem before ConvNeXt blocks. The text's is 1 for those, and 8 for residual blocks,
            into which 28 channels do not split.

    Raises:
        InputError: The settings do not fit each other or the data; the message names some that do.
    """

    def __init__(
        self,
        data: DataSpec,
        out_channels: int,
        channels: int = 28,
        multipliers: Sequence[int] = (1, 2, 4),
        stem_channels: int | None = None,
        block: Literal["convnext", "residual"] = "convnext",
        heads: int = 4,
        groups: int = 1,
    ):
        super().__init__()
        stem = channels // 3 * 2 if stem_channels is None else stem_channels
        check_counts(self, heads=heads, groups=groups)
        widths = _widths(self, channels, multipliers, stem)
        # A residual block has its norms behind its convolutions, so the stem is not normalized.
        _check_groups(self, widths if block == "convnext" else widths[1:], groups)
        embedding = 4 * channels

        def make(width: int, out: int) -> nn.Module:
            return BLOCKS[block](width, out, embedding, groups)

        self.data = data
        self.embed = _Embedding(channels, embedding, data.num_classes)
        self.stem = Conv(self.in_channels, stem, 7, padding=3)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, (before, width) in enumerate(pairwise(widths)):
            is_last = level == len(widths) - 2
            smaller = nn.Identity() if is_last else Conv(width, width, 4, stride=2, padding=1)
            blocks = [make(before, width), make(width, width)]
            attention = PixelAttention(width, heads, linear=True)
            self.down.append(Down(blocks, attention, smaller, skips=1))
            if level:
                larger = nn.ConvTranspose2d(before, before, 4, stride=2, padding=1)
                blocks = [make(2 * width, before), make(before, before)]
                attention = PixelAttention(before, heads, linear=True)
                self.up.insert(0, Up(blocks, attention, larger, skips=1))
        bottom = widths[-1]
        attention = PixelAttention(bottom, heads, linear=False)
        self.mid = Middle(make(bottom, bottom), attention, make(bottom, bottom))
        self.last_block = BLOCKS[block](widths[1], channels, None, groups)
        self.out = Conv(channels, out_channels, kernel=1, padding=0, gain=0.0)
        self.check_shape(data.shape)

    @override
    def last(self, h: Tensor, stem: Tensor, embedding: Tensor) -> Tensor:
        return self.last_block(h)


class _Stage(nn.Module):
    """Two blocks, attention, then another size: what a level has on both ways.

    Args:
        blocks: The two blocks.
        attention: Attention among the pixels.
        resize: Halves or doubles height and width, or not.
        skips: 2: each block leaves a skip, or is fed with one; 1: only the second leaves one, and
            only the first is fed.
    """

    def __init__(
        self, blocks: list[nn.Module], attention: nn.Module, resize: nn.Module, skips: int = 2
    ):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.attention = attention
        self.resize = resize
        self.skips = skips


class Down(_Stage):
    """Two blocks, attention, then a smaller size: a level on the way down.

    Of two skips the second is left after attention; a single one, too.
    """

    def forward(self, h: Tensor, embedding: Tensor, skips: list[Tensor]) -> Tensor:
        """Map features [B, C, H, W] to the next level's; appends to the skips."""
        first, second = self.blocks
        h = first(h, embedding)
        if self.skips == 2:
            skips.append(h)
        h = self.attention(second(h, embedding))
        skips.append(h)
        return self.resize(h)


class Up(_Stage):
    """Two blocks, attention, then a larger size: a level on the way up."""

    def forward(self, h: Tensor, embedding: Tensor, skips: list[Tensor]) -> Tensor:
        """Map features [B, C, H, W] to the next level's; takes skips from the end of the list."""
        first, second = self.blocks
        h = first(torch.cat([h, skips.pop()], dim=1), embedding)
        if self.skips == 2:
            h = torch.cat([h, skips.pop()], dim=1)
        return self.resize(self.attention(second(h, embedding)))


class Middle(nn.Module):
    """Block, attention, block, at the lowest resolution."""

    def __init__(self, before: nn.Module, attention: nn.Module, after: nn.Module):
        super().__init__()
        self.before = before
        self.attention = attention
        self.after = after

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        """Map [B, C, H, W] to the same shape."""
        return self.after(self.attention(self.before(h, embedding)), embedding)


class PixelAttention(nn.Module):
    """x + self-attention among all pixels of norm(x), in heads of 32 features whatever x has.

    Queries, keys and values have no bias; the norms have one group.

    Args:
        channels: Channels of x.
        heads: Number of heads.
        linear: Linear attention (Shen et al. 2018), whose result is normalized before it is added.
    """

    def __init__(self, channels: int, heads: int, linear: bool):
        super().__init__()
        self.heads = heads
        self.mix = linear_attention if linear else F.scaled_dot_product_attention
        self.norm = group_norm(channels, 1)
        self.qkv = nn.Conv2d(channels, 3 * heads * HEAD, 1, bias=False)
        gain = 1.0 if linear else 0.0
        self.out = Conv(heads * HEAD, channels, kernel=1, padding=0, gain=gain)
        self.end = group_norm(channels, 1) if linear else nn.Identity()
        if linear:
            nn.init.zeros_(self.end.weight)  # type: ignore[arg-type]  # starts as the identity

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, channels, H, W] to the same shape."""
        qkv = rearrange(
            self.qkv(self.norm(x)),
            "b (three heads d) h w -> three b heads (h w) d",
            three=3,
            heads=self.heads,
        )
        mixed = rearrange(self.mix(*qkv), "b heads (h w) d -> b (heads d) h w", h=x.shape[2])
        return x + self.end(self.out(mixed))


class _Embedding(ConditionEmbedding):
    """ConditionEmbedding whose MLP has GELU."""

    activation = staticmethod(F.gelu)


def _unshuffled(channels: int, out_channels: int) -> nn.Sequential:
    """Halve height and width: the four pixels' features side by side, then a 1×1 convolution."""
    return nn.Sequential(
        nn.PixelUnshuffle(2), Conv(4 * channels, out_channels, kernel=1, padding=0)
    )


def _widths(network: Network, channels: int, multipliers: Sequence[int], stem: int) -> list[int]:
    """Give the features of stem and levels; raise InputError if they are none that work."""
    check_counts(network, channels=channels, stem_channels=stem)
    check_counts(network, multipliers=min(multipliers, default=0))
    if channels % 2:
        raise InputError(
            f"{type(network).__name__}(channels={channels}): must be even, for the sines and "
            f"cosines of the noise level; set channels={channels + 1}"
        )
    return [stem, *(channels * multiplier for multiplier in multipliers)]


def _check_groups(network: Network, widths: list[int], groups: int) -> None:
    if odd := [width for width in widths if width % groups]:
        fitting = largest_divisor(math.gcd(*widths), groups)
        raise InputError(
            f"{type(network).__name__}(groups={groups}): {odd[0]} features do not split into "
            f"{groups} groups; set groups={fitting}, or channels and stem_channels to multiples "
            f"of {groups}"
        )
