"""The building blocks of image networks, as in the DDPM paper's code (Ho et al. 2020, appendix B).

Initialisation is the authors' too: Glorot-uniform weights (variance scaling, fan average) and zero
biases; the layer that ends a residual branch starts at zero, so every branch starts as identity.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from typing_extensions import override

from ddpm_lightning.batch import NULL_LABEL


class Conv(nn.Conv2d):
    """3×3 convolution that keeps height and width; ``gain`` scales its initial weights."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 3,
        stride: int = 1,
        padding: int = 1,
        gain: float = 1.0,
        groups: int = 1,
    ):
        self.gain = gain
        super().__init__(in_channels, out_channels, kernel, stride, padding, groups=groups)

    @override
    def reset_parameters(self) -> None:
        _glorot(self, self.gain)


class Linear(nn.Linear):
    """Affine map; ``gain`` scales its initial weights."""

    def __init__(self, in_features: int, out_features: int, gain: float = 1.0):
        self.gain = gain
        super().__init__(in_features, out_features)

    @override
    def reset_parameters(self) -> None:
        _glorot(self, self.gain)


class GroupNorm(nn.GroupNorm):
    """Group normalization in the dtype of its weights, which is float32 under autocast.

    Autocast itself casts group normalization to float32 on CUDA, but not on the CPU.
    """

    @override
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


def group_norm(channels: int, groups: int) -> GroupNorm:
    """Group normalization with the paper's epsilon, 1e-6."""
    return GroupNorm(groups, channels, eps=1e-6)


def shortcut(in_channels: int, out_channels: int) -> nn.Module:
    """The skip connection of a block: identity, or a 1×1 convolution where the channels change."""
    if in_channels == out_channels:
        return nn.Identity()
    return Conv(in_channels, out_channels, kernel=1, padding=0)


def modulate(h: Tensor, condition: Tensor, norm: nn.Module = nn.Identity()) -> Tensor:
    """Apply a condition to features and normalize them.

    Args:
        h: [B, C, H, W] features.
        condition: [B, C], added before the norm: norm(h + condition); or scale and shift [B, 2C],
            applied after it: norm(h)·(1 + scale) + shift (Nichol & Dhariwal 2021, appendix A).
        norm: The normalization.
    """
    condition = rearrange(condition, "b c -> b c 1 1")
    if condition.shape[1] == h.shape[1]:
        return norm(h + condition)
    h = norm(h)
    scale, shift = condition.to(h.dtype).chunk(2, dim=1)  # because 1 + scale loses digits in bf16
    return h * (1 + scale) + shift


def sinusoidal(c_noise: Tensor, dim: int, with_last: bool = True) -> Tensor:
    """Embed a number by its sines, then cosines, at dim/2 frequencies from 1 down to 1/10000.

    f_i = 10000^(−i / (dim/2 − 1)), i = 0…dim/2 − 1; embedding = [sin(c·f), cos(c·f)].
    Transformer position embedding (Vaswani et al. 2017, section 3.5), both end points included as
    in the DDPM code.

    Args:
        c_noise: [B] float noise coordinate; its dtype is the dtype of the computation.
        dim: Length of the embedding, even.
        with_last: Whether the last frequency is 1/10000, or f_i = 10000^(−i / (dim/2)).

    Returns:
        [B, dim]
    """
    steps = torch.linspace(0, 1, dim // 2, dtype=c_noise.dtype, device=c_noise.device)
    if not with_last:
        steps = torch.arange(dim // 2, dtype=c_noise.dtype, device=c_noise.device) / (dim // 2)
    angles = c_noise[:, None] * 10_000.0**-steps
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def position_embedding(rows: int, columns: int, like: Tensor) -> Tensor:
    """Embed every position of a grid like its tokens: [rows·columns, width], row by row.

    Half of the features tell the column, half the row: sines, then cosines, of the index at
    frequencies 10000^(−i/n), i = 0…n − 1, n a quarter of the features (the authors' code, after
    Vaswani et al. 2017, section 3.5).
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


class LabelEmbedding(nn.Embedding):
    """The label table: a row for every class, started as N(0, 1).

    A last row, ``num_classes``, is the null label's, learned like the others (classifier-free
    guidance, Ho & Salimans 2022, section 3.2).
    """

    def __init__(self, num_classes: int, dim: int):
        super().__init__(num_classes + 1, dim)

    def rows(self, label: Tensor | None, like: Tensor) -> Tensor:
        """Map labels [B] (−1 or None: the null label) to [B, dim]; ``like`` is any [B] beside."""
        if label is None:
            label = torch.full_like(like, NULL_LABEL, dtype=torch.int64)
        return self(torch.where(label == NULL_LABEL, self.num_embeddings - 1, label))


class ConditionEmbedding(nn.Module):
    """Embedding of noise level and label: MLP(sinusoidal(c_noise)) + a row of the label table.

    Args:
        channels: Length of the sinusoidal embedding.
        dim: Length of the result.
        num_classes: Number of classes; None builds no table and ignores labels.
    """

    activation: Callable[[Tensor], Tensor] = staticmethod(F.silu)

    def __init__(self, channels: int, dim: int, num_classes: int | None = None):
        super().__init__()
        self.channels = channels
        self.num_classes = num_classes
        self.with_last = True  # of the frequencies, see sinusoidal
        self.linear1 = Linear(channels, dim)
        self.linear2 = Linear(dim, dim)
        if num_classes is not None:
            self.label = LabelEmbedding(num_classes, dim)

    def forward(self, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """Map c_noise [B] and labels [B] (−1 or None: the null label) to [B, dim]."""
        dtype = self.linear1.weight.dtype
        # Because sines of large angles need float32 even where the weights are half precision.
        c_noise = c_noise.to(torch.promote_types(dtype, torch.float32))
        code = self.code(c_noise).to(dtype)  # [B, channels]
        embedding = self.linear2(self.activation(self.linear1(code)))  # [B, dim]
        if self.num_classes is not None:
            embedding = embedding + self.label.rows(label, c_noise)
        return embedding

    def code(self, c_noise: Tensor) -> Tensor:
        """Map c_noise [B] to what the MLP is given, [B, channels]."""
        return sinusoidal(c_noise, self.channels, self.with_last)


class ResidualBlock(nn.Module):
    """x + conv2(dropout(SiLU(norm2(conv1(SiLU(norm1(x))) + condition)))).

    Args:
        in_channels: Channels of x.
        out_channels: Channels of the result; where they differ, a 1×1 convolution carries x over.
        embedding: Length of the condition vector.
        groups: Groups of the normalization.
        dropout: Probability of zeroing a feature in training.
        scale_shift: The condition scales and shifts the second norm's output instead of being
            added before it (Nichol & Dhariwal 2021, appendix A).
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
        self.norm1 = group_norm(in_channels, groups)
        self.conv1 = Conv(in_channels, out_channels)
        self.condition = Linear(embedding, out_channels * (2 if scale_shift else 1))
        self.norm2 = group_norm(out_channels, groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = Conv(out_channels, out_channels, gain=0.0)
        self.shortcut = shortcut(in_channels, out_channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map x [B, in_channels, H, W], under a condition [B, embedding], to out_channels."""
        h = self.conv1(F.silu(self.norm1(x)))  # [B, out_channels, H, W]
        h = modulate(h, self.condition(F.silu(embedding)), self.norm2)
        return self.shortcut(x) + self.conv2(self.dropout(F.silu(h)))


class Attention(nn.Module):
    """x + self-attention among all pixels of norm(x) (Wang et al. 2018; Vaswani et al. 2017).

    Args:
        channels: Channels of x.
        heads: Number of heads, each of channels/heads features.
        groups: Groups of the normalization.
    """

    def __init__(self, channels: int, heads: int = 1, groups: int = 32):
        super().__init__()
        self.heads = heads
        self.norm = group_norm(channels, groups)
        self.query = Linear(channels, channels)
        self.key = Linear(channels, channels)
        self.value = Linear(channels, channels)
        self.out = Linear(channels, channels, gain=0.0)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, channels, H, W] to the same shape."""
        pixels = rearrange(self.norm(x), "b c h w -> b (h w) c")
        q, k, v = (
            rearrange(project(pixels), "b n (heads d) -> b heads n d", heads=self.heads)
            for project in (self.query, self.key, self.value)
        )
        mixed = self.mix(q, k, v)  # [B, heads, H·W, channels/heads]
        out = self.out(rearrange(mixed, "b heads n d -> b n (heads d)"))
        return x + rearrange(out, "b (h w) c -> b c h w", h=x.shape[2])

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """softmax(q·kᵀ/sqrt(d))·v, all [B, heads, N, d]: work and memory grow with N².

        In half precision torch's kernels keep products and softmax in float32.
        """
        return F.scaled_dot_product_attention(q, k, v)


class LinearAttention(Attention):
    """Attention whose work grows with the number of pixels, not its square.

    softmax(q)·(softmax(k)ᵀ·v), with the softmax of q over features and that of k over pixels, so
    that every pixel still gets an average of all values (Shen et al. 2018, section 3.2).
    """

    @override
    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return linear_attention(q, k, v)


def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q)·(softmax(k)ᵀ·v), all [B, heads, N, d], in the order that takes N·d² products.

    The softmax of q is over features, that of k over pixels; both in float32 at least.
    """
    dtype = torch.promote_types(v.dtype, torch.float32)
    keys = k.to(dtype).softmax(dim=-2).to(v.dtype)
    queries = q.to(dtype).softmax(dim=-1).to(v.dtype)
    return queries @ (keys.transpose(-2, -1) @ v)  # context [B, heads, d, d] in brackets


class Downsample(nn.Module):
    """Halve height and width: 3×3 convolution at stride 2, padded only at the right and bottom."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv(channels, channels, stride=2, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, channels, H, W] to [B, channels, H/2, W/2]."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double height and width: repeat every pixel, then a 3×3 convolution.

    Args:
        channels: Channels of x.
        out_channels: Channels of the result; None: the same.
    """

    def __init__(self, channels: int, out_channels: int | None = None):
        super().__init__()
        self.conv = Conv(channels, out_channels or channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, channels, H, W] to [B, out_channels, 2H, 2W]."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def _glorot(layer: nn.Conv2d | nn.Linear, gain: float) -> None:
    nn.init.xavier_uniform_(layer.weight, gain)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # all layers here have one
