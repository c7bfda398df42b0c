"""The U-Net of DDPM (Ho et al. 2020, section 4 and appendix B).

Down: residual blocks at every resolution, halving in between; mid: block, attention, block; up:
the same in reverse, every block fed with the matching skip. The default settings give the paper's
CIFAR-10 network of 35.7 M parameters, layer by layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_lightning.errors import InputError
from ddpm_lightning.networks.layers import (
    Attention,
    ConditionEmbedding,
    Conv,
    Downsample,
    ResidualBlock,
    Upsample,
    group_norm,
)
from ddpm_lightning.networks.network import Network


class UNet(Network):
    """The U-Net of DDPM, for images of any size that its levels can halve.

    Ho et al. 2020, appendix B. Level 0 is the full resolution, level i works at size / 2^i; there
    are as many levels as multipliers. Attention also stands at the bottom, between down and up.

    Args:
        in_channels: Channels of the noisy image.
        out_channels: Channels of the output.
        num_classes: Number of classes; None ignores labels.
        channels: Width of the network, even and a multiple of groups.
        multipliers: One per level: level i has channels × multipliers[i] features. n levels take
            heights and widths divisible by 2^(n−1).
        blocks: Residual blocks per level on the way down; one more per level on the way up.
        attention_levels: Levels with self-attention. Level 1 of 32×32 images is the paper's 16×16.
        heads: Attention heads; must divide the features wherever there is attention.
        dropout: Probability of zeroing a feature in training. 0.1 is the paper's for CIFAR-10,
            0 its choice elsewhere.
        groups: Groups of every GroupNorm; must divide channels.
        scale_shift: Let noise level and label scale and shift the normalized features, as in
            Improved DDPM, instead of adding them.

    Raises:
        InputError: The settings do not fit each other; the message names some that do.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_classes: int | None = None,
        channels: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 2,
        attention_levels: Sequence[int] = (1,),
        heads: int = 1,
        dropout: float = 0.1,
        groups: int = 32,
        scale_shift: bool = False,
    ):
        super().__init__()
        if not multipliers:
            raise InputError("UNet(multipliers=[]): give at least one level, e.g. [1, 2, 2, 2]")
        bottom = len(multipliers) - 1
        widths = [channels * multiplier for multiplier in multipliers]
        attended = [widths[level] for level in range(bottom) if level in attention_levels]
        _check_counts(
            in_channels=in_channels,
            out_channels=out_channels,
            num_classes=1 if num_classes is None else num_classes,
            channels=channels,
            blocks=blocks,
            heads=heads,
            groups=groups,
            **{"min(multipliers)": min(multipliers)},
        )
        _check_channels(channels, groups)
        _check_attention([*attended, widths[bottom]], heads, attention_levels, bottom)
        if not 0 <= dropout < 1:
            raise InputError(f"UNet(dropout={dropout}): must be in [0, 1); 0 turns it off")

        self.in_channels = in_channels
        self.multipliers = list(multipliers)
        self.features_per_group = min([channels, *widths][-2:]) // groups  # at the bottom

        embedding = 4 * channels
        self.embed = ConditionEmbedding(channels, embedding, num_classes)
        block = partial(
            Block,
            embedding=embedding,
            groups=groups,
            dropout=dropout,
            scale_shift=scale_shift,
            heads=heads,
        )
        self.stem = Conv(in_channels, channels)
        width, skips = channels, [channels]

        self.down = nn.ModuleList()
        for level, out in enumerate(widths):
            row = []
            for _ in range(blocks):
                row.append(block(width, out, attention=level in attention_levels))
                width = out
                skips.append(out)
            if level < bottom:
                skips.append(out)
            self.down.append(Down(row, Downsample(out) if level < bottom else None))

        self.mid = nn.ModuleList([block(width, width, attention=True), block(width, width)])

        self.up = nn.ModuleList()
        for level, out in reversed(list(enumerate(widths))):
            row = []
            for _ in range(blocks + 1):
                row.append(block(width + skips.pop(), out, attention=level in attention_levels))
                width = out
            self.up.append(Up(row, Upsample(out) if level > 0 else None))

        self.norm = group_norm(width, groups)
        self.out = Conv(width, out_channels, gain=0.0)

    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None) -> Tensor:
        """Evaluate the network in the dtype of its weights.

        Args:
            x: [B, in_channels, H, W] scaled noisy images.
            c_noise: [B] float noise coordinate; t − 1 for the discrete-time parameterizations.
            y: [B] int64 labels in 0…num_classes − 1, or −1 for the null label; None means the
                null label for every row. Ignored without num_classes.

        Returns:
            [B, out_channels, H, W]

        Raises:
            InputError: The levels cannot halve H and W; the message names sizes that fit.
        """
        self.check_shape(tuple(x.shape[1:]))
        embedding = self.embed(c_noise, y)  # [B, 4·channels]
        features = [self.stem(x.to(self.stem.weight.dtype))]  # skips, finest first
        for level in self.down:
            features += level(features[-1], embedding)
        h = features[-1]  # [B, C, H/2^bottom, W/2^bottom]
        for block in self.mid:
            h = block(h, embedding)
        for level in self.up:
            h = level(h, features, embedding)
        return self.out(F.silu(self.norm(h)))

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise InputError, with the fix, if images of this shape [C, H, W] do not fit."""
        if len(shape) != 3:
            raise InputError(
                f"UNet takes images [channels, height, width], not data of shape {list(shape)}; "
                "choose another network, e.g. MLP for points (--model.net MLP)"
            )
        if shape[0] != self.in_channels:
            raise InputError(
                f"UNet was built for {self.in_channels} image channels, the data has {shape[0]}; "
                f"build it with in_channels={shape[0]} or change the data"
            )
        factor = 2 ** (len(self.multipliers) - 1)
        height, width = shape[1:]
        if height % factor or width % factor:
            raise InputError(_misfit(height, width, factor, self.multipliers))
        if height * width * self.features_per_group == factor**2:
            raise InputError(
                f"UNet(multipliers={self.multipliers}) shrinks {height}×{width} images to 1×1, "
                "where every group of GroupNorm is a single number and vanishes; give fewer "
                "multipliers, fewer groups or a larger image_size"
            )


class Block(nn.Module):
    """A residual block, then self-attention if asked for."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding: int,
        groups: int,
        dropout: float,
        scale_shift: bool,
        heads: int,
        attention: bool = False,
    ):
        super().__init__()
        self.residual = ResidualBlock(
            in_channels, out_channels, embedding, groups, dropout, scale_shift
        )
        self.attention = Attention(out_channels, heads, groups) if attention else nn.Identity()

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        """Map [B, in_channels, H, W] to [B, out_channels, H, W]."""
        return self.attention(self.residual(h, embedding))


class Down(nn.Module):
    """One level on the way down: its blocks, then the halving (None at the bottom)."""

    def __init__(self, blocks: list[Block], resize: Downsample | None):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.resize = resize

    def forward(self, h: Tensor, embedding: Tensor) -> list[Tensor]:
        """Return what every layer gives: all of them are skips, the last one goes on."""
        features = []
        for block in self.blocks:
            h = block(h, embedding)
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

    def forward(self, h: Tensor, skips: list[Tensor], embedding: Tensor) -> Tensor:
        """Consume one skip per block, from the end of the list."""
        for block in self.blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), embedding)
        return h if self.resize is None else self.resize(h)  # [B, C, 2H, 2W]


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise InputError(f"UNet({name}={count}): must be at least 1")


def _check_channels(channels: int, groups: int) -> None:
    fitting = math.ceil(channels / math.lcm(2, groups)) * math.lcm(2, groups)
    if channels % 2:
        raise InputError(
            f"UNet(channels={channels}): must be even, for as many sines as cosines of the noise "
            f"level; set channels={fitting}"
        )
    if channels % groups:
        raise InputError(
            f"UNet(channels={channels}, groups={groups}): {channels} channels do not split into "
            f"{groups} equal groups; set groups={_largest_divisor(channels, groups)} or "
            f"channels={fitting}"
        )


def _check_attention(widths: list[int], heads: int, levels: Sequence[int], bottom: int) -> None:
    existing = [level for level in levels if 0 <= level <= bottom]
    if len(existing) < len(levels):
        raise InputError(
            f"UNet(attention_levels={list(levels)}): there is one level per multiplier, 0 to "
            f"{bottom}; set attention_levels={existing} or add multipliers"
        )
    common = math.gcd(*widths)
    if common % heads:
        sizes = " and ".join(map(str, sorted(set(widths))))
        raise InputError(
            f"UNet(heads={heads}): attention on {sizes} features does not split into {heads} "
            f"equal heads; set heads={_largest_divisor(common, heads)} or channels to a multiple "
            f"of {heads}"
        )


def _largest_divisor(number: int, at_most: int) -> int:
    return max(divisor for divisor in range(1, at_most + 1) if number % divisor == 0)


def _misfit(height: int, width: int, factor: int, multipliers: list[int]) -> str:
    floors = (height // factor * factor, width // factor * factor)
    ceils = (math.ceil(height / factor) * factor, math.ceil(width / factor) * factor)
    sizes = " or ".join(f"{h}×{w}" for h, w in (floors, ceils) if h and w)
    side = math.gcd(height, width)
    levels = (side & -side).bit_length()  # 1 + how often both sides can be halved
    return (
        f"UNet(multipliers={multipliers}) halves images {len(multipliers) - 1} times: height and "
        f"width must be multiples of {factor}, not {height}×{width}; set the data's image_size to "
        f"{sizes}, or give at most {levels} multiplier{'s' if levels > 1 else ''}"
    )
