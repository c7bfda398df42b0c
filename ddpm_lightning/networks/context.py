"""Context: what a network reads of the condition's tokens, and attention to it."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ddpm_lightning.batch import Condition, DataSpec
from ddpm_lightning.errors import at_least
from ddpm_lightning.networks.layers import Linear, group_norm, position_embedding

HEADS = 4
"""Attention heads of a block that mixes tokens; every width here is a multiple of 4."""


class Context(NamedTuple):
    """Embedded tokens.

    Attributes:
        tokens: [B, M, width], the first of them the null token, which every row has.
        mask: bool [B, M], True where there is a token.
    """

    tokens: Tensor
    mask: Tensor

    def mean(self) -> Tensor:
        """The mean token of each row: [B, width]."""
        weight = self.mask.to(self.tokens.dtype)[..., None]
        return (self.tokens * weight).sum(1) / weight.sum(1)


class ContextEmbedding(nn.Module):
    """Map the condition's tokens to the context: a linear map and a small transformer.

    As in GLIDE (Nichol et al. 2021, section 3) the transformer is trained with the network. A
    learned null token stands before the others; rows without a caption have it alone. Patches of
    the condition's image may follow as further tokens, with the position embedding of DiT.

    Args:
        data: Specification of the data.
        width: Length of an embedded token.
        depth: Transformer blocks, of four heads; 0: none.
        image_patch: Side of the patches; 0: the image is not read here.
    """

    def __init__(self, data: DataSpec, width: int, depth: int, image_patch: int = 0):
        super().__init__()
        at_least(0, context_depth=depth)
        self.image_patch = image_patch
        if data.token_width:
            self.linear = Linear(data.token_width, width)
        if image_patch:
            self.image = Linear(data.image_channels * image_patch**2, width)
        self.null = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList([ContextBlock(width, HEADS) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)

    def forward(self, condition: Condition, rows: int) -> Context:
        """Embed the tokens of a condition of so many rows; without tokens, the null token."""
        dtype = self.null.dtype  # of the weights, under autocast, too
        tokens = self.null.expand(rows, -1, -1)
        mask = torch.ones(rows, 1, dtype=torch.bool, device=tokens.device)
        known = condition.with_mask()
        if known.tokens is not None and known.mask is not None:
            tokens = torch.cat([tokens, self.linear(known.tokens.to(dtype)).to(dtype)], dim=1)
            mask = torch.cat([mask, known.mask], dim=1)
        if self.image_patch and condition.image is not None:
            patches = self.patches(condition.image.to(dtype))
            tokens = torch.cat([tokens, patches], dim=1)
            mask = torch.cat([mask, mask.new_ones(patches.shape[:2])], dim=1)
        for block in self.blocks:
            tokens = block(tokens, mask)
        return Context(self.norm(tokens), mask)

    def patches(self, image: Tensor) -> Tensor:
        """Embed the patches of images [B, K, H, W]: [B, H·W/patch², width]."""
        p = self.image_patch
        cut = rearrange(image, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p)
        tokens = self.image(cut).to(self.null.dtype)
        return tokens + position_embedding(image.shape[2] // p, image.shape[3] // p, tokens)


class ContextBlock(nn.Module):
    """A transformer block on tokens, with its norms first (Vaswani et al. 2017)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = TokenAttention(width, width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.expand = Linear(width, 4 * width)
        self.contract = Linear(4 * width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map tokens [B, M, width] with a mask [B, M] to the same shape."""
        h = self.norm1(x)
        x = x + self.attention(h, Context(h, mask))
        return x + self.contract(F.gelu(self.expand(self.norm2(x))))


class TokenAttention(nn.Module):
    """Attention of queries to a context: softmax(q·kᵀ/sqrt(d))·v over the tokens that are there.

    Args:
        width: Features of the queries and of the result.
        context: Features of the context.
        heads: Number of heads, each of width/heads features.
        gain: Scales the initial weights of the last layer.
    """

    def __init__(self, width: int, context: int, heads: int, gain: float = 1.0):
        super().__init__()
        self.heads = heads
        self.query = Linear(width, width)
        self.key = Linear(context, width)
        self.value = Linear(context, width)
        self.out = Linear(width, width, gain)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Let x [B, N, width] read the context: [B, N, width]."""
        q, k, v = (
            rearrange(part, "b n (h d) -> b h n d", h=self.heads)
            for part in (self.query(x), self.key(context.tokens), self.value(context.tokens))
        )
        mask = context.mask[:, None, None, :]  # [B, 1, 1, M]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(rearrange(mixed, "b h n d -> b n (h d)"))


class CrossAttention(nn.Module):
    """x + attention of the pixels of norm(x) to the context (Rombach et al. 2022, section 3.3).

    It starts as the identity.

    Args:
        channels: Channels of x.
        context: Features of the context.
        heads: Number of heads, each of channels/heads features.
        groups: Groups of the normalization.
        position: Add the sines and cosines of row and column to the queries, which convolutions
            hardly know.
    """

    def __init__(
        self,
        channels: int,
        context: int,
        heads: int = 1,
        groups: int = 32,
        position: bool = False,
    ):
        super().__init__()
        self.position = position
        self.norm = group_norm(channels, groups)
        self.attention = TokenAttention(channels, context, heads, gain=0.0)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Map [B, channels, H, W] to the same shape."""
        pixels = rearrange(self.norm(x), "b c h w -> b (h w) c")
        if self.position:
            channels, rows, columns = x.shape[1:]
            place = position_embedding(rows, columns, pixels[..., : channels // 4 * 4])
            pixels = pixels + F.pad(place, (0, channels % 4))
        read = self.attention(pixels, context)
        return x + rearrange(read, "b (h w) c -> b c h w", h=x.shape[2])
