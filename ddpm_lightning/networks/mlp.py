"""A residual multilayer perceptron, for data that are points."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from ddpm_lightning.batch import Condition, DataSpec
from ddpm_lightning.errors import InputError
from ddpm_lightning.networks.checks import check_counts, check_dropout
from ddpm_lightning.networks.layers import ConditionEmbedding, Linear
from ddpm_lightning.networks.network import Network


class MLP(Network):
    """Residual multilayer perceptron for points, such as the 2-D toys.

    Noise level and label scale and shift the features of every block. Nothing is normalized,
    because a norm of a few coordinates keeps little more than their direction.

    Args:
        data: Points [C], with or without classes.
        out_channels: Coordinates of the output.
        width: Features, even.
        depth: Residual blocks, of two layers each.
        dropout: Probability of zeroing a feature in training.

    Raises:
        InputError: A setting is out of range, or the data are no points.
    """

    def __init__(
        self,
        data: DataSpec,
        out_channels: int,
        width: int = 128,
        depth: int = 3,
        dropout: float = 0.0,
    ):
        super().__init__()
        if width < 4 or width % 2:
            raise InputError(f"MLP(width={width}): width is even and at least 4")
        check_counts(self, width=width, depth=depth)
        check_dropout(dropout)
        self.data = data
        self.check_shape(data.shape)
        self.embed = ConditionEmbedding(width, width, data.num_classes)
        self.stem = Linear(self.in_channels, width)
        self.blocks = nn.ModuleList([ResidualLayers(width, dropout) for _ in range(depth)])
        self.out = Linear(width, out_channels, gain=0.0)

    @override
    def forward(self, x: Tensor, c_noise: Tensor, condition: Condition = Condition()) -> Tensor:
        x = self.stack_image(x, condition)
        embedding = F.silu(self.embed(c_noise, condition.label))  # [B, width]
        h = self.stem(x.to(self.stem.weight.dtype))  # [B, width]
        for block in self.blocks:
            h = block(h, embedding)
        return self.out(h)

    @override
    def check_shape(self, shape: tuple[int, ...]) -> None:
        if len(shape) != 1:
            raise InputError(
                f"MLP takes points [coordinates], not data of shape {list(shape)}; choose another "
                "network, e.g. UNet for images (--model.net UNet)"
            )


class ResidualLayers(nn.Module):
    """h + linear2(dropout(SiLU(linear1(h)·(1 + scale) + shift))), both of the condition."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.linear1 = Linear(width, width)
        self.condition = Linear(width, 2 * width)
        self.dropout = nn.Dropout(dropout)
        self.linear2 = Linear(width, width, gain=0.0)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        """Map h [B, width], under a condition [B, width], to the same shape."""
        scale, shift = self.condition(embedding).chunk(2, dim=1)
        inner = self.linear1(h) * (1 + scale) + shift
        return h + self.linear2(self.dropout(F.silu(inner)))
