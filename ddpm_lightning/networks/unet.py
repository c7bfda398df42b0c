"""The U-Net of DDPM (Ho et al. 2020, section 4 and appendix B).

Down: residual blocks at every resolution, halving in between; mid: block, attention, block; up:
the same in reverse, every block fed with the matching skip. The default settings give the paper's
CIFAR-10 network of 35.7 M parameters, layer by layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from ddpm_lightning.batch import Condition, DataSpec
from ddpm_lightning.errors import InputError
from ddpm_lightning.networks.blocks import ConvNeXtBlock, WeightStandardizedBlock
from ddpm_lightning.networks.checks import (
    check_counts,
    check_dropout,
    check_image,
    check_tokens,
    fewer_multipliers,
    largest_divisor,
)
from ddpm_lightning.networks.context import Context, ContextEmbedding, CrossAttention
from ddpm_lightning.networks.layers import (
    Attention,
    ConditionEmbedding,
    Conv,
    Downsample,
    LinearAttention,
    ResidualBlock,
    Upsample,
    group_norm,
)
from ddpm_lightning.networks.network import Network, through

BLOCKS: dict[str, type[ResidualBlock | ConvNeXtBlock | WeightStandardizedBlock]] = {
    "residual": ResidualBlock,
    "convnext": ConvNeXtBlock,
    "weight_standardized": WeightStandardizedBlock,
}


class UNet(Network):
    """The U-Net of DDPM, for images of any size that its levels can halve.

    Ho et al. 2020, appendix B. Level 0 is the full resolution, level i works at size / 2^i; there
    are as many levels as multipliers.

    Args:
        data: Images [C, H, W] with sides divisible by 2^(levels − 1).
        out_channels: Channels of the output.
        channels: Width of the network, even and a multiple of groups.
        multipliers: One per level: level i has channels × multipliers[i] features.
        blocks: Blocks per level on the way down; one more per level on the way up.
        attention_levels: Levels with self-attention. Level 1 of 32×32 images is the paper's 16×16.
        heads: Attention heads; must divide the features of all layers with attention.
        dropout: Probability of zeroing a feature in training. 0.1 is the paper's for CIFAR-10,
            0 its choice elsewhere.
        groups: Groups of every GroupNorm; must divide channels.
        scale_shift: Let noise level and label scale and shift the normalized features, as in
            Improved DDPM, instead of adding them.
        block: The kind of block: the paper's residual block, a ConvNeXt block (Liu et
            al. 2022), or a residual block with weight standardization (Qiao et al. 2019).
        linear_attention_levels: Further levels with attention, whose cost grows with the number
            of pixels instead of its square (Shen et al. 2018).
        mid_attention: Self-attention at the lowest resolution, between down and up. false, with
            attention_levels: [], leaves no attention.
        cross_attention_levels: Levels that read the condition's tokens, of a text, by
            cross-attention (Rombach et al. 2022); the mean token is added to the embedding of
            the noise level. Level len(multipliers) − 1 includes the middle.
        context_depth: Transformer blocks that mix the tokens before.
        image_patch: Read the condition's image, too, by cross-attention, in patches of so many
            pixels a side, in place of stacking it onto x; 0 stacks it.
        cross_attention_position: Let pixels that read the tokens know their row and column, of
            which convolutions know little: a text may say what is left of what.
        patch: Work on patches of so many pixels a side, whose pixels are stacked as channels
            (pixel-unshuffle, Shi et al. 2016): level 0 is then at size / patch, which saves most
            of the work on small images. 1: on pixels.
        self_conditioning: Show the network its earlier estimate of x0, stacked onto x (Chen et
            al. 2022, section 3.2).
        activation_checkpointing: Compute the activations of each block once more in the backward
            pass, in place of keeping them: less memory, more time, the same gradients.

    Raises:
        InputError: The settings do not fit each other or the data; the message names some that do.
    """

    context: ContextEmbedding | None

    def __init__(
        self,
        data: DataSpec,
        out_channels: int,
        channels: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 2,
        attention_levels: Sequence[int] = (1,),
        heads: int = 1,
        dropout: float = 0.1,
        groups: int = 32,
        scale_shift: bool = False,
        block: Literal["residual", "convnext", "weight_standardized"] = "residual",
        linear_attention_levels: Sequence[int] = (),
        mid_attention: bool = True,
        cross_attention_levels: Sequence[int] = (),
        context_depth: int = 2,
        image_patch: int = 0,
        cross_attention_position: bool = False,
        patch: int = 1,
        self_conditioning: bool = False,
        activation_checkpointing: bool = False,
    ):
        super().__init__()
        check_counts(self, channels=channels, blocks=blocks, heads=heads, groups=groups)
        check_counts(self, multipliers=min(multipliers, default=0), patch=patch)
        check_dropout(dropout)
        bottom = len(multipliers) - 1
        widths = [channels * multiplier for multiplier in multipliers]
        attention = _kinds_of_attention(attention_levels, linear_attention_levels)
        _check_channels(channels, groups)
        _check_levels(bottom, attention_levels, linear_attention_levels, cross_attention_levels)
        attended = [*attention, *cross_attention_levels, *([bottom] if mid_attention else ())]
        _check_heads([widths[level] for level in attended], heads)
        check_tokens(self, data, image_patch, "cross_attention_levels", cross_attention_levels)

        self.data, self.multipliers = data, list(multipliers)
        self.image_patch, self.patch = image_patch, patch
        self.self_conditioning = self_conditioning
        self.features_per_group = min([channels, *widths][-2:]) // groups  # at the bottom
        self.check_shape(data.shape)

        embedding = 4 * channels
        self.embed = ConditionEmbedding(channels, embedding, data.num_classes)
        self.context = None
        if cross_attention_levels:
            self.context = ContextEmbedding(data, embedding, context_depth, image_patch)

        def make(width: int, out: int, level: int, kind: type[Attention] | None = None) -> Block:
            residual = BLOCKS[block](width, out, embedding, groups, dropout, scale_shift)
            reads = level in cross_attention_levels
            given = (out, embedding, heads, groups, cross_attention_position)
            cross = CrossAttention(*given) if reads else None
            mixed = kind(out, heads, groups) if kind else None
            return Block(residual, mixed, cross, activation_checkpointing)

        self.stem = Conv(self.in_channels * patch**2, channels)
        width, skips = channels, [channels]
        self.down = nn.ModuleList()
        for level, out in enumerate(widths):
            row = []
            for _ in range(blocks):
                row.append(make(width, out, level, attention.get(level)))
                width = out
                skips.append(out)
            if level < bottom:
                skips.append(out)
            self.down.append(Down(row, Downsample(out) if level < bottom else None))

        middle = make(width, width, bottom, Attention if mid_attention else None)
        self.mid = nn.ModuleList([middle, make(width, width, -1)])

        self.up = nn.ModuleList()
        for level, out in reversed(list(enumerate(widths))):
            row = []
            for _ in range(blocks + 1):
                row.append(make(width + skips.pop(), out, level, attention.get(level)))
                width = out
            self.up.append(Up(row, Upsample(out) if level > 0 else None))

        self.norm = group_norm(width, groups)
        self.out = Conv(width, out_channels * patch**2, gain=0.0)

    @override
    def forward(self, x: Tensor, c_noise: Tensor, condition: Condition = Condition()) -> Tensor:
        x = F.pixel_unshuffle(self.stack_image(x, condition), self.patch)
        embedding = self.embed(c_noise, condition.label)  # [B, 4·channels]
        context = None
        if self.context is not None:
            context = self.context(condition, len(x))
            embedding = embedding + context.mean()
        features = [self.stem(x.to(self.stem.weight.dtype))]  # skips, finest first
        for level in self.down:
            features += level(features[-1], embedding, context)
        h = features[-1]  # [B, C, H/(patch·2^bottom), W/(patch·2^bottom)]
        for block in self.mid:
            h = block(h, embedding, context)
        for level in self.up:
            h = level(h, features, embedding, context)
        return F.pixel_shuffle(self.out(F.silu(self.norm(h))), self.patch)

    @property
    @override
    def takes_tokens(self) -> bool:
        return self.context is not None

    @override
    def check_shape(self, shape: tuple[int, ...]) -> None:
        factor = self.patch * 2 ** (len(self.multipliers) - 1)
        check_image("UNet", shape, factor, self._fewer)
        height, width = shape[1:]
        if height * width * self.features_per_group == factor**2:
            raise InputError(
                f"UNet(multipliers={self.multipliers}) shrinks {height}×{width} images to 1×1, "
                "where every group of GroupNorm is a single number and vanishes; give fewer "
                "multipliers, fewer groups or larger images"
            )

    def _fewer(self, side: int) -> str:
        if side % self.patch:
            return f"set patch to {largest_divisor(side, self.patch)}"
        return fewer_multipliers(side // self.patch)


class Block(nn.Module):
    """A residual block of any kind, then attention and cross-attention, each or neither.

    With recompute its activations are computed once more in the backward pass.
    """

    def __init__(
        self,
        residual: nn.Module,
        attention: Attention | None = None,
        cross: CrossAttention | None = None,
        recompute: bool = False,
    ):
        super().__init__()
        self.residual = residual
        self.attention = attention or nn.Identity()
        self.cross = cross
        self.recompute = recompute

    def forward(
        self,
        h: Tensor,
        embedding: Tensor,
        context: Context | None = None,
        skip: Tensor | None = None,
    ) -> Tensor:
        """Map [B, in_channels, H, W], of h and the skip together, to [B, out_channels, H, W]."""
        return through(self.compute, h, embedding, context, skip, recompute=self.recompute)

    def compute(
        self, h: Tensor, embedding: Tensor, context: Context | None, skip: Tensor | None
    ) -> Tensor:
        """Map h and the skip; arguments as for a call."""
        if skip is not None:
            h = torch.cat([h, skip], dim=1)
        h = self.attention(self.residual(h, embedding))
        return h if self.cross is None else self.cross(h, context)


class Down(nn.Module):
    """One level on the way down: its blocks, then the halving (None at the bottom)."""

    def __init__(self, blocks: list[Block], resize: Downsample | None):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.resize = resize

    def forward(
        self, h: Tensor, embedding: Tensor, context: Context | None = None
    ) -> list[Tensor]:
        """Return the output of every layer; the up path takes them as skips."""
        features = []
        for block in self.blocks:
            h = block(h, embedding, context)
            features.append(h)
        if self.resize is not None:
            features.append(self.resize(h))  # [B, C, H/2, W/2]
        return features


class Up(nn.Module):
    """One level on the way up: its blocks, then the doubling (None at full resolution)."""

    def __init__(self, blocks: list[Block], resize: Upsample | None):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.resize = resize

    def forward(
        self,
        h: Tensor,
        skips: list[Tensor],
        embedding: Tensor,
        context: Context | None = None,
    ) -> Tensor:
        """Consume one skip per block, from the end of the list."""
        for block in self.blocks:
            h = block(h, embedding, context, skips.pop())
        return h if self.resize is None else self.resize(h)  # [B, C, 2H, 2W]


def _kinds_of_attention(full: Sequence[int], linear: Sequence[int]) -> dict[int, type[Attention]]:
    return dict.fromkeys(linear, LinearAttention) | dict.fromkeys(full, Attention)


def _check_channels(channels: int, groups: int) -> None:
    step = math.lcm(2, groups)
    if channels % step:
        fewer = "" if channels % 2 else f"groups={largest_divisor(channels, groups)} or "
        raise InputError(
            f"UNet(channels={channels}, groups={groups}): channels must be even, for the sines "
            "and cosines of the noise level, and a multiple of groups; set "
            f"{fewer}channels={math.ceil(channels / step) * step}"
        )


def _check_levels(
    bottom: int, full: Sequence[int], linear: Sequence[int], cross: Sequence[int]
) -> None:
    kinds = {"attention": full, "linear_attention": linear, "cross_attention": cross}
    for kind, levels in kinds.items():
        if any(level not in range(bottom + 1) for level in levels):
            raise InputError(
                f"UNet({kind}_levels={list(levels)}): there is one level per multiplier, 0 to "
                f"{bottom}"
            )
    if both := sorted(set(full) & set(linear)):
        raise InputError(
            f"UNet(attention_levels={list(full)}, linear_attention_levels={list(linear)}): a "
            f"level has one kind of attention; take {both} out of one of them"
        )


def _check_heads(widths: list[int], heads: int) -> None:
    common = math.gcd(*widths)
    if common % heads:
        sizes = " and ".join(map(str, sorted(set(widths))))
        raise InputError(
            f"UNet(heads={heads}): attention on {sizes} features does not split into {heads} "
            f"equal heads; set heads={largest_divisor(common, heads)} or channels to a multiple "
            f"of {heads}"
        )
