"""DiT, the diffusion transformer (Peebles & Xie 2023).

An image is cut into patches, one token each; blocks of attention and an MLP mix them, and noise
level and label act through the norms alone (adaLN-Zero, section 3.2).
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from typing_extensions import override

from ddpm_lightning.batch import Condition, DataSpec
from ddpm_lightning.errors import InputError
from ddpm_lightning.networks.checks import (
    check_counts,
    check_image,
    check_tokens,
    largest_divisor,
)
from ddpm_lightning.networks.context import Context, ContextEmbedding, TokenAttention
from ddpm_lightning.networks.layers import ConditionEmbedding, Linear, position_embedding
from ddpm_lightning.networks.network import Network, through

FREQUENCIES = 256  # length of the noise level's sinusoidal embedding, as in the authors' code


class DiT(Network):
    """The diffusion transformer, for images of any size that the patch divides.

    Peebles & Xie 2023, section 3. The paper's sizes, with patch 2, 4 or 8 (table 1): S is width
    384, depth 12, heads 6, the default here; B 768, 12, 12; L 1024, 24, 16; XL 1152, 28, 16.

    Args:
        data: Images [C, H, W] with sides that the patch divides.
        out_channels: Channels of the output.
        patch: Height and width of a patch, which becomes one token. Halving it makes four times
            as many tokens and at least four times the work.
        width: Features of a token, a multiple of 4 and of heads.
        depth: Number of blocks.
        heads: Attention heads of each block.
        mlp_ratio: Hidden features of the MLP in a block, in multiples of width.
        cross_attention: Read the condition's tokens, of a text, by cross-attention between the
            attention and the MLP of every block (PixArt-α, Chen et al. 2023, section 2.3).
        context_depth: Transformer blocks that mix the tokens before.
        image_patch: Read the condition's image, too, by cross-attention, in patches of so many
            pixels a side, in place of stacking it onto x; 0 stacks it.
        activation_checkpointing: Compute the activations of each block once more in the backward
            pass, in place of keeping them: less memory, more time, the same gradients.

    Raises:
        InputError: The settings do not fit each other or the data; the message names some that do.
    """

    def __init__(
        self,
        data: DataSpec,
        out_channels: int,
        patch: int = 2,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        mlp_ratio: int = 4,
        cross_attention: bool = False,
        context_depth: int = 2,
        image_patch: int = 0,
        activation_checkpointing: bool = False,
    ):
        super().__init__()
        check_counts(self, patch=patch, width=width, depth=depth, heads=heads, mlp_ratio=mlp_ratio)
        step = math.lcm(4, heads)
        if width % step:
            raise InputError(
                f"DiT(width={width}, heads={heads}): width must be a multiple of 4, for the sines "
                "and cosines of row and column, and of heads; set width="
                f"{math.ceil(width / step) * step}"
            )
        check_tokens(self, data, image_patch, "cross_attention", cross_attention)
        self.data = data
        self.image_patch = image_patch
        self.patch = patch
        self.activation_checkpointing = activation_checkpointing
        self.check_shape(data.shape)
        self.embed = ConditionEmbedding(FREQUENCIES, width, data.num_classes)
        self.stem = Linear(self.in_channels * patch**2, width)
        self.context: ContextEmbedding | None = None
        if cross_attention:
            self.context = ContextEmbedding(data, width, context_depth, image_patch)
        self.blocks = nn.ModuleList(
            [DiTBlock(width, heads, mlp_ratio, cross_attention) for _ in range(depth)]
        )
        self.modulation = Linear(width, 2 * width, gain=0.0)
        self.norm = layer_norm(width)
        self.out = Linear(width, out_channels * patch**2, gain=0.0)

    @override
    def forward(self, x: Tensor, c_noise: Tensor, condition: Condition = Condition()) -> Tensor:
        x, p = self.stack_image(x, condition), self.patch
        rows, columns = x.shape[2] // p, x.shape[3] // p
        patches = rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p)
        # Tokens and their norms have the weights' dtype, float32 under autocast, too.
        dtype = self.stem.weight.dtype
        tokens = self.stem(patches.to(dtype)).to(dtype)  # [B, rows·columns, width]
        tokens = tokens + position_embedding(rows, columns, tokens)
        embedding, context = self.embed(c_noise, condition.label), None
        if self.context is not None:
            context = self.context(condition, len(x))
            embedding = embedding + context.mean()
        embedding = F.silu(embedding)  # [B, width]
        for block in self.blocks:
            tokens = through(
                block, tokens, embedding, context, recompute=self.activation_checkpointing
            )
        shift, scale = split(self.modulation(embedding), 2)
        patches = self.out(modulate(self.norm(tokens), shift, scale))
        return rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", h=rows, p=p, q=p)

    @property
    @override
    def takes_tokens(self) -> bool:
        return self.context is not None

    @override
    def check_shape(self, shape: tuple[int, ...]) -> None:
        patch = self.patch
        check_image(
            "DiT", shape, patch, lambda side: f"set patch to {largest_divisor(side, patch)}"
        )


class DiTBlock(nn.Module):
    """Attention among the tokens, then an MLP on each, both with adaLN-Zero.

    x + gate·f(LayerNorm(x)·(1 + scale) + shift) for f = attention, then MLP; gate, scale and shift
    are a linear map of the condition that starts at zero, so the block starts as the identity
    (Peebles & Xie 2023, section 3.2 and figure 3).
    """

    def __init__(self, width: int, heads: int, mlp_ratio: int, reads_context: bool = False):
        super().__init__()
        self.heads = heads
        self.modulation = Linear(width, 6 * width, gain=0.0)
        self.norm1 = layer_norm(width)
        self.qkv = Linear(width, 3 * width)
        self.attended = Linear(width, width)
        self.norm2 = layer_norm(width)
        self.expand = Linear(width, mlp_ratio * width)
        self.contract = Linear(mlp_ratio * width, width)
        self.cross = TokenAttention(width, width, heads, gain=0.0) if reads_context else None

    def forward(self, x: Tensor, condition: Tensor, context: Context | None = None) -> Tensor:
        """Map tokens x [B, N, width], under a condition [B, width], to the same shape."""
        shift1, scale1, gate1, shift2, scale2, gate2 = split(self.modulation(condition), 6)
        x = x + gate1 * self.attention(modulate(self.norm1(x), shift1, scale1))
        if self.cross is not None:
            x = x + self.cross(x, context)
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
    """Layer normalization without scale and shift, which the condition gives."""
    return nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x·(1 + scale) + shift, in x's dtype."""
    return x * (1 + scale.to(x.dtype)) + shift.to(x.dtype)


def split(modulation: Tensor, parts: int) -> tuple[Tensor, ...]:
    """Cut [B, parts·width] into as many [B, 1, width], which apply to every token."""
    return modulation[:, None].chunk(parts, dim=-1)
