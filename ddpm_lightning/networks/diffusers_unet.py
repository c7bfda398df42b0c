"""The U-Net with the settings that diffusers' UNet2DModel has by default."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from typing_extensions import override

from ddpm_lightning.batch import DataSpec
from ddpm_lightning.errors import InputError
from ddpm_lightning.networks.checks import check_counts
from ddpm_lightning.networks.layers import Attention, ConditionEmbedding, Downsample
from ddpm_lightning.networks.unet import Down, UNet


class DiffusersUNet(UNet):
    """The U-Net as diffusers' tutorials and training scripts build it, for weights of theirs.

    Other than the paper's: attention heads are of one width, halving pads all sides, norms have
    epsilon 1e-5, and the frequencies of the noise level end before 1/10000. For a network of your
    own take UNet.

    Args:
        data: Images [C, H, W] with sides divisible by 2^(levels − 1).
        out_channels: Channels of the output.
        channels: Width of the network, even and a multiple of groups.
        multipliers: One per level: level i has channels × multipliers[i] features.
        blocks: Blocks per level on the way down; one more per level on the way up.
        attention_levels: Levels with self-attention.
        head_width: Features of an attention head; must divide those of all layers with attention.
        dropout: Probability of zeroing a feature in training.
        groups: Groups of every GroupNorm; must divide channels.
        mid_attention: Self-attention at the lowest resolution, between down and up.

    Raises:
        InputError: The settings do not fit each other or the data.
    """

    def __init__(
        self,
        data: DataSpec,
        out_channels: int,
        channels: int = 128,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4, 4),
        blocks: int = 2,
        attention_levels: Sequence[int] = (4,),
        head_width: int = 8,
        dropout: float = 0.0,
        groups: int = 32,
        mid_attention: bool = True,
    ):
        check_counts(self, head_width=head_width)
        super().__init__(
            data,
            out_channels,
            channels,
            multipliers,
            blocks,
            attention_levels,
            dropout=dropout,
            groups=groups,
            mid_attention=mid_attention,
        )
        for module in self.modules():
            if isinstance(module, nn.GroupNorm):
                module.eps = 1e-5
            elif isinstance(module, ConditionEmbedding):
                module.with_last = False
            elif isinstance(module, Attention):
                width = module.query.in_features
                if width % head_width:
                    raise InputError(
                        f"DiffusersUNet(head_width={head_width}) does not divide the {width} "
                        "features of a layer with attention"
                    )
                module.heads = width // head_width
            elif isinstance(module, Down) and module.resize is not None:
                module.resize = PaddedDownsample(module.resize.conv.in_channels)


class PaddedDownsample(Downsample):
    """Halve height and width: 3×3 convolution at stride 2, padded by one at every side."""

    def __init__(self, channels: int):
        super().__init__(channels)
        self.conv.padding = (1, 1)

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)
