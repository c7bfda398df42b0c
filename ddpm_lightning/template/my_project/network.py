"""The network."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_lightning.batch import Condition, DataSpec
from ddpm_lightning.networks import Network
from ddpm_lightning.networks.layers import ConditionEmbedding


class DilatedConvolutions(Network):
    """Residual convolutions at full resolution, which see further and further.

    Args:
        data: Images [C, H, W]; their shape and number of classes come from the data set.
        out_channels: Channels of the output.
        width: Features of every layer, a multiple of 8.
        depth: Residual blocks.
    """

    def __init__(self, data: DataSpec, out_channels: int, width: int = 48, depth: int = 6) -> None:
        super().__init__()
        self.data = data
        self.embed = ConditionEmbedding(width, width, data.num_classes)
        self.first = nn.Conv2d(self.in_channels, width, 3, padding=1)
        self.blocks = nn.ModuleList([Block(width, 2 ** (k % 3)) for k in range(depth)])
        self.last = nn.Conv2d(width, out_channels, 3, padding=1)

    def forward(self, x: Tensor, c_noise: Tensor, condition: Condition = Condition()) -> Tensor:
        """Map noisy images [B, C, H, W] at noise levels c_noise [B] to [B, out_channels, H, W]."""
        x = self.stack_image(x, condition)
        embedding = self.embed(c_noise, condition.label)  # [B, width]
        h = self.first(x.to(self.first.weight.dtype))
        for block in self.blocks:
            h = block(h, embedding)
        return self.last(F.silu(h))


class Block(nn.Module):
    """h + conv(SiLU(norm(h + condition))), with gaps of ``dilation`` in the convolution."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.condition = nn.Linear(width, width)
        self.norm = nn.GroupNorm(8, width)
        self.conv = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        """Map features h [B, width, H, W], under a condition [B, width], to the same shape."""
        condition = self.condition(F.silu(embedding))[:, :, None, None]
        return h + self.conv(F.silu(self.norm(h + condition)))
