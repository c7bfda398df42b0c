"""Bottlenecks of autoencoders: what is kept of the encoder's output, and what it costs."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from typing_extensions import Self, override

from ddpm_lightning.batch import Moments
from ddpm_lightning.configurable import Configurable
from ddpm_lightning.errors import InputError, at_least

Noise = Callable[[tuple[int, ...]], Tensor]
"""Standard normal numbers [B, *shape] for the shape of one sample."""

LOG_VARIANCES = -30.0, 20.0
"""Range of the logarithm of the posterior's variance, beyond which its exponential overflows."""


class Bottleneck(Configurable, nn.Module, ABC):
    """The middle of an autoencoder, between encoder and decoder."""

    def built(self, channels: int) -> Self:
        """A copy with the weights, if it has any, for latents of so many channels."""
        return copy.deepcopy(self)

    @abstractmethod
    def width(self, channels: int) -> int:
        """Channels of the encoder's output for latents of so many channels."""

    @abstractmethod
    def moments(self, h: Tensor) -> Moments:
        """The posterior of the latents, from the encoder's output [B, width, h, w]."""

    @abstractmethod
    def forward(self, h: Tensor, noise: Noise | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Latents [B, c, h, w] for the decoder, and penalties [B] by name, summed and weighted."""

    def kept(self, z: Tensor) -> Tensor:
        """What the decoder is given of latents [B, c, h, w]."""
        return z


class KLBottleneck(Bottleneck):
    """Gaussian posterior N(mean, std²), pulled towards N(0, 1) (Kingma & Welling 2014).

    The penalty is weight·KL(q(e | x) ‖ N(0, 1)), summed over an image's latents.

    Args:
        weight: 1 makes a variational autoencoder with a Laplacian decoder of scale 1; latent
            diffusion needs latents that are merely not scattered, 1e-6 in Rombach et al. 2022.
    """

    def __init__(self, weight: float = 1e-6) -> None:
        super().__init__()
        if not weight >= 0:
            raise InputError(f"KLBottleneck(weight={weight}): give 0 or more")
        self.weight = weight

    @override
    def width(self, channels: int) -> int:
        return 2 * channels

    @override
    def moments(self, h: Tensor) -> Moments:
        h = h.to(torch.promote_types(h.dtype, torch.float32))
        mean, log_variance = h.chunk(2, dim=1)
        return Moments(mean, (0.5 * log_variance.clamp(*LOG_VARIANCES)).exp())

    @override
    def forward(self, h: Tensor, noise: Noise | None) -> tuple[Tensor, dict[str, Tensor]]:
        mean, std = self.moments(h)
        assert std is not None
        kl = 0.5 * (mean.square() + std.square() - 1) - std.log()
        z = mean if noise is None else mean + std * noise(tuple(mean.shape[1:])).to(mean)
        return z, {"kl": self.weight * kl.flatten(1).sum(1)}


class VQBottleneck(Bottleneck):
    """The nearest of a table of codes at every place (VQ-VAE, van den Oord et al. 2017).

    Gradients pass straight through to the encoder (eq. 2); codes move towards the encoder's
    output, and it towards them by ``commitment`` (eq. 3), mean over channels, sum over places.
    A diffusion model works on the latents before the nearest code is taken, which is then part of
    decoding (Rombach et al. 2022, section 3.1).

    Args:
        codes: Number of codes.
        commitment: Weight of the encoder's move, beta in the paper.
    """

    codebook: nn.Embedding

    def __init__(self, codes: int = 512, commitment: float = 0.25) -> None:
        super().__init__()
        at_least(2, self, codes=codes)
        at_least(0, self, commitment=commitment)
        self.codes = codes
        self.commitment = commitment

    @override
    def built(self, channels: int) -> Self:
        made = copy.deepcopy(self)
        made.codebook = nn.Embedding(self.codes, channels)
        nn.init.uniform_(made.codebook.weight, -1 / self.codes, 1 / self.codes)
        return made

    @override
    def width(self, channels: int) -> int:
        return channels

    @override
    def moments(self, h: Tensor) -> Moments:
        return Moments(h.to(torch.promote_types(h.dtype, torch.float32)))

    def indices(self, z: Tensor) -> Tensor:
        """The nearest code of each place of [B, c, h, w]: int64 [B, h, w]."""
        dtype = torch.promote_types(z.dtype, torch.float32)
        places = rearrange(z, "b c h w -> b (h w) c").to(dtype)
        distances = torch.cdist(places, self.codebook.weight.to(dtype)[None])
        return distances.argmin(-1).view(len(z), *z.shape[2:])

    @override
    def kept(self, z: Tensor) -> Tensor:
        return rearrange(self.codebook(self.indices(z)), "b h w c -> b c h w")

    @override
    def forward(self, h: Tensor, noise: Noise | None) -> tuple[Tensor, dict[str, Tensor]]:
        h = self.moments(h).mean
        code = self.kept(h).to(h)
        distances = {
            "codebook": F.mse_loss(code, h.detach(), reduction="none"),
            "commitment": self.commitment * F.mse_loss(h, code.detach(), reduction="none"),
        }
        z = h + (code - h).detach()
        return z, {name: one.mean(1).flatten(1).sum(1) for name, one in distances.items()}
