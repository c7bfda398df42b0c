"""A residual multilayer perceptron, for data that are points."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_lightning.errors import InputError
from ddpm_lightning.networks.layers import ConditionEmbedding, Linear
from ddpm_lightning.networks.network import Network


class MLP(Network):
    """A residual multilayer perceptron for points, such as the 2-D toys.

    Noise level and label scale and shift the features of every block. Nothing is normalized: of
    a few coordinates a norm would keep little more than their direction.

    Args:
        in_channels: Coordinates of the noisy point.
        out_channels: Coordinates of the output.
        num_classes: Number of classes; None ignores labels.
        width: Features, even.
        depth: Residual blocks, of two layers each.
        dropout: Probability of zeroing a feature in training.

    Raises:
        InputError: A setting is out of range.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_classes: int | None = None,
        width: int = 128,
        depth: int = 3,
        dropout: float = 0.0,
    ):
        super().__init__()
        if width < 4 or width % 2 or depth < 1 or not 0 <= dropout < 1:
            raise InputError(
                f"MLP(width={width}, depth={depth}, dropout={dropout}): width is even and at "
                "least 4, depth at least 1, dropout in [0, 1)"
            )
        self.in_channels = in_channels
        self.embed = ConditionEmbedding(width, width, num_classes)
        self.stem = Linear(in_channels, width)
        self.blocks = nn.ModuleList([ResidualLayers(width, dropout) for _ in range(depth)])
        self.out = Linear(width, out_channels, gain=0.0)

    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None) -> Tensor:
        """Evaluate the network in the dtype of its weights.

        Args:
            x: [B, in_channels] scaled noisy points.
            c_noise: [B] float noise coordinate; t − 1 for the discrete-time parameterizations.
            y: [B] int64 labels in 0…num_classes − 1, or −1 for the null label; None means the
                null label for every row. Ignored without num_classes.

        Returns:
            [B, out_channels]

        Raises:
            InputError: x is not made of points of in_channels coordinates.
        """
        self.check_shape(tuple(x.shape[1:]))
        embedding = F.silu(self.embed(c_noise, y))  # [B, width]
        h = self.stem(x.to(self.stem.weight.dtype))  # [B, width]
        for block in self.blocks:
            h = block(h, embedding)
        return self.out(h)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise InputError, with the fix, if points of this shape [C] do not fit."""
        if len(shape) != 1:
            raise InputError(
                f"MLP takes points [coordinates], not data of shape {list(shape)}; choose another "
                "network, e.g. UNet for images (--model.net UNet)"
            )
        if shape[0] != self.in_channels:
            raise InputError(
                f"MLP was built for {self.in_channels} coordinates, the data has {shape[0]}; "
                f"build it with in_channels={shape[0]} or change the data"
            )


class ResidualLayers(nn.Module):
    """h + linear2(dropout(SiLU(linear1(h)·(1 + scale) + shift))), conditioned.

    Args:
        width: Features of h and of the condition, which gives scale and shift.
        dropout: Probability of zeroing a feature in training.
    """

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
