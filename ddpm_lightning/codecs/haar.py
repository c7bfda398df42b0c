"""The Haar wavelet transform as a codec."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor
from typing_extensions import override

from ddpm_lightning.batch import Moments
from ddpm_lightning.codecs.codec import Codec
from ddpm_lightning.errors import at_least
from ddpm_lightning.networks.checks import check_image


class Haar(Codec):
    """Orthonormal 2-D Haar transform: [C, H, W] to [4^levels·C, H/2^levels, W/2^levels].

    An exact linear map, so nothing is lost and likelihoods are those of the images. Of each 2×2
    block (a b; c d) the four channels are ½(a + b + c + d), ½(a − b + c − d), ½(a + b − c − d) and
    ½(a − b − c + d) (Haar 1910); more levels transform all channels again.

    Args:
        levels: How often; height and width must be multiples of 2^levels.
    """

    def __init__(self, levels: int = 1) -> None:
        super().__init__()
        at_least(1, self, levels=levels)
        self.levels = levels

    @override
    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        factor = 2**self.levels
        check_image("Haar", shape, factor)
        return shape[0] * factor**2, shape[1] // factor, shape[2] // factor

    @override
    def moments(self, x: Tensor) -> Moments:
        for _ in range(self.levels):
            blocks = rearrange(x, "n c (h i) (w j) -> n c (i j) h w", i=2, j=2)
            x = torch.einsum("kp,ncphw->nckhw", _matrix(x), blocks).flatten(1, 2)
        return Moments(x)

    @override
    def decoded(self, e: Tensor) -> Tensor:
        for _ in range(self.levels):
            channels = rearrange(e, "n (c k) h w -> n c k h w", k=4)
            blocks = torch.einsum("kp,nckhw->ncphw", _matrix(e), channels)
            e = rearrange(blocks, "n c (i j) h w -> n c (h i) (w j)", i=2, j=2)
        return e

    @override
    def raw_log_det(self) -> float:
        return 0.0  # orthogonal


def _matrix(like: Tensor) -> Tensor:
    """The orthogonal matrix [4, 4] from the values of a block to channels."""
    signs = [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]
    return 0.5 * torch.tensor(signs, dtype=like.dtype, device=like.device)
