"""Autoencoders of images: encoder, bottleneck and decoder."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_lightning.batch import DataSpec
from ddpm_lightning.configurable import Configurable
from ddpm_lightning.errors import InputError
from ddpm_lightning.networks.bottlenecks import Bottleneck, KLBottleneck, Noise
from ddpm_lightning.networks.checks import check_counts, check_image, largest_divisor
from ddpm_lightning.networks.layers import (
    Attention,
    Conv,
    Downsample,
    Upsample,
    group_norm,
    shortcut,
)


class Autoencoder2d(Configurable, nn.Module):
    """Convolutional autoencoder of images (Rombach et al. 2022, appendix E; Esser et al. 2021).

    Residual blocks as in the DDPM paper's U-Net, without skips from encoder to decoder: each stage
    but the last halves height and width, and the decoder doubles them again. Around the bottleneck
    stand two 1×1 convolutions.

    Args:
        data: Specification of the images.
        bottleneck: What is kept of the encoder's output: a Gaussian (KLBottleneck) or the nearest
            codes (VQBottleneck).
        latent_channels: Channels of the latents.
        channels: Channels of the first stage.
        multipliers: Channels of each stage, as multiples; one more than how often the sides halve.
        blocks: Residual blocks a stage.
        attention: Self-attention at the smallest size.
        groups: Groups of the normalization.

    Raises:
        InputError: A setting is out of range, or the sides do not halve so often.
    """

    def __init__(
        self,
        data: DataSpec,
        bottleneck: Bottleneck = KLBottleneck(),
        latent_channels: int = 4,
        channels: int = 32,
        multipliers: list[int] = [1, 2, 2],  # noqa: B006 (never changed)
        blocks: int = 1,
        attention: bool = False,
        groups: int = 8,
    ) -> None:
        super().__init__()
        check_counts(
            self, latent_channels=latent_channels, channels=channels, blocks=blocks, groups=groups
        )
        check_counts(self, multipliers=min(multipliers, default=0))
        widths = [channels * m for m in multipliers]
        if odd := [width for width in widths if width % groups]:
            raise InputError(
                f"Autoencoder2d(groups={groups}): {odd[0]} features do not split into {groups} "
                f"groups; set groups={largest_divisor(math.gcd(*widths), groups)}, or channels to "
                f"a multiple of {groups}"
            )
        self.data = data
        self.factor = 2 ** (len(multipliers) - 1)
        self.latent_channels = latent_channels
        check_image(type(self).__name__, data.shape, self.factor, lambda _: "fewer multipliers")
        self.bottleneck = bottleneck.built(latent_channels)
        self.encoder = _encoder(data.shape[0], widths, blocks, attention, groups)
        self.quantized = Conv(widths[-1], bottleneck.width(latent_channels), kernel=1, padding=0)
        self.dequantized = Conv(latent_channels, widths[-1], kernel=1, padding=0)
        self.decoder = _decoder(data.shape[0], widths, blocks, attention, groups)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """[c, h, w] of one image's latents."""
        _, height, width = self.data.shape
        return self.latent_channels, height // self.factor, width // self.factor

    def encode(self, x: Tensor) -> Tensor:
        """Encode images [B, C, H, W] to what the bottleneck takes."""
        return self.quantized(self.encoder(x.to(self.quantized.weight.dtype)))

    def decode(self, z: Tensor) -> Tensor:
        """Decode latents [B, c, h, w] to images [B, C, H, W]."""
        return self._decoded(self.bottleneck.kept(z))

    def forward(self, x: Tensor, noise: Noise | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Reconstruct images [B, C, H, W].

        Args:
            x: The images.
            noise: Gives the draw of the latents, as a function of their shape; None: their mean.

        Returns:
            The reconstructions, and the bottleneck's penalties [B] by name, each weighted.
        """
        z, penalties = self.bottleneck(self.encode(x), noise)
        values = x[0].numel()
        return self._decoded(z), {k: p / values for k, p in penalties.items()}

    def _decoded(self, z: Tensor) -> Tensor:
        return self.decoder(self.dequantized(z.to(self.dequantized.weight.dtype)))


class _Block(nn.Module):
    """x + conv2(SiLU(norm2(conv1(SiLU(norm1(x)))))): a residual block without a condition."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels, groups)
        self.conv1 = Conv(in_channels, out_channels)
        self.norm2 = group_norm(out_channels, groups)
        self.conv2 = Conv(out_channels, out_channels, gain=0.0)
        self.shortcut = shortcut(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(h)))


def _middle(width: int, attention: bool, groups: int) -> list[nn.Module]:
    between = [Attention(width, 1, groups)] if attention else []
    return [_Block(width, width, groups), *between, _Block(width, width, groups)]


def _encoder(
    channels: int, widths: list[int], blocks: int, attention: bool, groups: int
) -> nn.Sequential:
    layers: list[nn.Module] = [Conv(channels, widths[0])]
    before = widths[0]
    for stage, width in enumerate(widths):
        for _ in range(blocks):
            layers.append(_Block(before, width, groups))
            before = width
        if stage < len(widths) - 1:
            layers.append(Downsample(width))
    layers += [*_middle(before, attention, groups), group_norm(before, groups), nn.SiLU()]
    return nn.Sequential(*layers)


def _decoder(
    channels: int, widths: list[int], blocks: int, attention: bool, groups: int
) -> nn.Sequential:
    before = widths[-1]
    layers = _middle(before, attention, groups)
    for stage, width in reversed(list(enumerate(widths))):
        for _ in range(blocks):
            layers.append(_Block(before, width, groups))
            before = width
        if stage:
            layers.append(Upsample(width))
    return nn.Sequential(*layers, group_norm(before, groups), nn.SiLU(), Conv(before, channels))
