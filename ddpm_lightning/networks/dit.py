"""DiT, the diffusion transformer (Peebles & Xie 2023).

An image is cut into patches, one token each; blocks of attention and an MLP mix them, and noise
level and label act through the norms alone (adaLN-Zero, section 3.2).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ddpm_lightning.errors import InputError
from ddpm_lightning.networks.checks import (
    check_counts,
    check_image,
    largest_divisor,
    sizes_that_fit,
)
from ddpm_lightning.networks.layers import ConditionEmbedding, Linear
from ddpm_lightning.networks.network import Network

FREQUENCIES = 256  # length of the noise level's sinusoidal embedding, as in the authors' code


class DiT(Network):
    """The diffusion transformer, for images of any size that the patch divides.

    Peebles & Xie 2023, section 3. The paper's sizes, with patch 2, 4 or 8 (table 1): S is width
    384, depth 12, heads 6, the default here; B 768, 12, 12; L 1024, 24, 16; XL 1152, 28, 16.

    Args:
        in_channels: Channels of the noisy image.
        out_channels: Channels of the output.
        num_classes: Number of classes; None ignores labels.
        patch: Height and width of a patch, which becomes one token. Halving it makes four times
            as many tokens and at least four times the work.
        width: Features of a token, a multiple of 4 and of heads.
        depth: Number of blocks.
        heads: Attention heads of each block.
        mlp_ratio: Hidden features of the MLP in a block, in multiples of width.

    Raises:
        InputError: The settings do not fit each other; the message names some that do.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_classes: int | None = None,
        patch: int = 2,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        mlp_ratio: int = 4,
    ):
        super().__init__()
        check_counts(
            "DiT",
            in_channels=in_channels,
            out_channels=out_channels,
            num_classes=1 if num_classes is None else num_classes,
            patch=patch,
            width=width,
            depth=depth,
            heads=heads,
            mlp_ratio=mlp_ratio,
        )
        _check_width(width, heads)
        self.in_channels = in_channels
        self.patch = patch
        self.embed = ConditionEmbedding(FREQUENCIES, width, num_classes)
        self.stem = Linear(in_channels * patch**2, width)
        self.blocks = nn.ModuleList([DiTBlock(width, heads, mlp_ratio) for _ in range(depth)])
        self.modulation = Linear(width, 2 * width, gain=0.0)
        self.norm = layer_norm(width)
        self.out = Linear(width, out_channels * patch**2, gain=0.0)

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
            InputError: The patch does not divide H and W; the message names sizes that fit.
        """
        self.check_shape(tuple(x.shape[1:]))
        p = self.patch
        rows, columns = x.shape[2] // p, x.shape[3] // p
        patches = rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p)
        tokens = self.stem(patches.to(self.stem.weight.dtype))  # [B, rows·columns, width]
        tokens = tokens + position_embedding(rows, columns, tokens)
        condition = F.silu(self.embed(c_noise, y))  # [B, width]
        for block in self.blocks:
            tokens = block(tokens, condition)
        shift, scale = split(self.modulation(condition), 2)
        patches = self.out(modulate(self.norm(tokens), shift, scale))
        return rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", h=rows, p=p, q=p)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise InputError, with the fix, if images of this shape [C, H, W] do not fit."""
        check_image("DiT", shape, self.in_channels)
        height, width = shape[1:]
        if height % self.patch or width % self.patch:
            sizes = sizes_that_fit(height, width, self.patch)
            patch = largest_divisor(math.gcd(height, width), self.patch)
            raise InputError(
                f"DiT(patch={self.patch}): height and width must be multiples of the patch, not "
                f"{height}×{width}; set patch={patch} or the data's image_size to {sizes}"
            )


class DiTBlock(nn.Module):
    """Attention among the tokens, then an MLP on each, both with adaLN-Zero.

    x + gate·f(LayerNorm(x)·(1 + scale) + shift) for f = attention, then MLP; gate, scale and shift
    are a linear map of the condition that starts at zero, so the block starts as the identity.
    (Peebles & Xie 2023, section 3.2 and figure 3.)

    Args:
        width: Features of a token.
        heads: Attention heads, each of width/heads features.
        mlp_ratio: Hidden features of the MLP, in multiples of width.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: int):
        super().__init__()
        self.heads = heads
        self.modulation = Linear(width, 6 * width, gain=0.0)
        self.norm1 = layer_norm(width)
        self.qkv = Linear(width, 3 * width)
        self.attended = Linear(width, width)
        self.norm2 = layer_norm(width)
        self.expand = Linear(width, mlp_ratio * width)
        self.contract = Linear(mlp_ratio * width, width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Map tokens x [B, N, width], under a condition [B, width], to the same shape."""
        shift1, scale1, gate1, shift2, scale2, gate2 = split(self.modulation(condition), 6)
        x = x + gate1 * self.attention(modulate(self.norm1(x), shift1, scale1))
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))

    def attention(self, x: Tensor) -> Tensor:
        """Mix the tokens [B, N, width] by multi-head self-attention."""
        qkv = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        mixed = F.scaled_dot_product_attention(*qkv)  # [B, heads, N, width/heads]
        return self.attended(rearrange(mixed, "b h n d -> b n (h d)"))

    def mlp(self, x: Tensor) -> Tensor:
        """Map each token [B, N, width] by two layers with a GELU between."""
        return self.contract(F.gelu(self.expand(x), approximate="tanh"))


def layer_norm(width: int) -> nn.LayerNorm:
    """Layer normalization without parameters of its own: the condition gives them."""
    return nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x·(1 + scale) + shift."""
    return x * (1 + scale) + shift


def split(modulation: Tensor, parts: int) -> tuple[Tensor, ...]:
    """Cut [B, parts·width] into as many [B, 1, width], which apply to every token."""
    return modulation[:, None].chunk(parts, dim=-1)


def position_embedding(rows: int, columns: int, like: Tensor) -> Tensor:
    """Embed every position of a grid: half of the features tell its column, half its row.

    Each half is sines, then cosines, of the index at frequencies 10000^(−i/n), i = 0…n − 1, n a
    quarter of the features (the authors' code, after Vaswani et al. 2017, section 3.5).

    Args:
        rows: Height of the grid.
        columns: Width of the grid.
        like: [B, rows·columns, width] tokens; gives the result its width, dtype and device.

    Returns:
        [rows·columns, width], row by row.
    """
    quarter = like.shape[-1] // 4
    dtype = torch.promote_types(like.dtype, torch.float32)

    def along(length: int) -> Tensor:  # [length, width/2]
        index = torch.arange(length, dtype=dtype, device=like.device)
        power = torch.arange(quarter, dtype=dtype, device=like.device) / quarter
        angles = index[:, None] * 10_000.0**-power
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    column = along(columns).repeat(rows, 1)
    row = along(rows).repeat_interleave(columns, dim=0)
    return torch.cat([column, row], dim=1).to(like.dtype)


def _check_width(width: int, heads: int) -> None:
    step = math.lcm(4, heads)
    if width % step:
        fitting = math.ceil(width / step) * step
        raise InputError(
            f"DiT(width={width}, heads={heads}): width must be a multiple of 4, for the sines and "
            f"cosines of row and column, and of heads; set width={fitting}"
        )
