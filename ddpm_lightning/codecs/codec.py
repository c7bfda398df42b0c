"""Codecs: frozen maps between data and the latents in which a diffusion model works."""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from ddpm_lightning.batch import DataSpec, Moments
from ddpm_lightning.configurable import Configurable
from ddpm_lightning.errors import InputError
from ddpm_lightning.integrity import bytes_of
from ddpm_lightning.randomness import Draw, IndexedNoise

SMALLEST_STD = 1e-6
"""Standard deviation up to which a channel counts as constant, and is not divided by it."""


class Codec(Configurable, nn.Module, ABC):
    """A frozen pair of maps, data to latents and back, scaled to mean 0 and variance 1 a channel.

        z = (e(x) − shift)/scale,  x = d(scale·z + shift)

    The diffusion model noises, learns and samples z (Rombach et al. 2022); data, pictures and
    metrics stay in x. A codec is part of the module that uses it: its weights, shift and scale are
    in every checkpoint, but neither in the optimizer nor in the average. It is always in
    evaluation mode and computes in float32. A subclass defines ``latent_shape``, ``moments`` and
    ``decoded``.

    Attributes:
        draws: Whether training draws e from q(e | x) in place of taking its mean.
        shape: [c, h, w] of one sample's latents, once attached to data.
        shift: float32 [c] mean of each channel over the training set.
        scale: float32 [c] standard deviation of each channel over the training set.
        measured: bool [], whether both were measured; 0 and 1 before.
    """

    draws: bool = False
    shape: tuple[int, ...]
    shift: Tensor
    scale: Tensor
    measured: Tensor

    @abstractmethod
    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape [c, h, w] of one sample's latents; raise InputError for unsuitable data."""

    @abstractmethod
    def moments(self, x: Tensor) -> Moments:
        """Encode data float32 [B, *shape], without shift and scale."""

    @abstractmethod
    def decoded(self, e: Tensor) -> Tensor:
        """Decode unscaled latents float32 [B, *latent shape] to data [B, *shape]."""

    def raw_log_det(self) -> float | None:
        """Log |det ∂e/∂x| of one sample, in nats; None: the map has no inverse."""
        return None

    def attach(self, data: DataSpec) -> DataSpec:
        """Make shift and scale for this data; return the specification of its latents."""
        if data.image_channels:
            raise InputError(
                f"{type(self).__name__} encodes no condition images, and this data has some; "
                "leave out --model.codec"
            )
        self.shape = shape = self.latent_shape(data.shape)
        self.register_buffer("shift", torch.zeros(shape[0]))
        self.register_buffer("scale", torch.ones(shape[0]))
        self.register_buffer("measured", torch.tensor(False))
        self.requires_grad_(False)
        self.train(False)
        return replace(data, shape=shape, data_range=None)

    @torch.no_grad()
    def encode(self, x: Tensor, noise: IndexedNoise | None = None) -> Tensor:
        """Encode data [B, *shape] to scaled latents [B, *latent shape], in the dtype of x.

        Args:
            x: The data.
            noise: Gives the draw of the posterior, where the codec draws; None takes the mean.
        """
        with torch.autocast(x.device.type, enabled=False):
            return self.scaled(self.moments(x.float()), noise).to(x.dtype)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Decode scaled latents [B, *latent shape] to data [B, *shape], in the dtype of z."""
        with torch.autocast(z.device.type, enabled=False):
            e = z.float() * _by_channel(self.scale, z) + _by_channel(self.shift, z)
            return self.decoded(e).to(z.dtype)

    def scaled(self, moments: Moments, noise: IndexedNoise | None = None) -> Tensor:
        """Take the posterior's mean, or a draw where the codec draws, and scale it."""
        e, std = moments
        if self.draws and noise is not None and std is not None:
            e = e + std * noise(Draw.POSTERIOR, tuple(e.shape[1:])).to(e)
        return (e - _by_channel(self.shift, e)) / _by_channel(self.scale, e)

    def digest(self) -> str:
        """The sha256 of what determines unscaled latents: class, arguments and weights."""
        described = [self.class_path(), self.latent_arguments()]
        digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
        for name, value in self.state_dict().items():
            if name not in ("shift", "scale", "measured"):
                digest.update(name.encode() + bytes_of(value))
        return digest.hexdigest()

    def latent_arguments(self) -> dict[str, Any]:
        """The arguments that determine unscaled latents, as plain data."""
        return self.plain_arguments()

    def encode_all(self, x: Tensor, batch_size: int = 256, device: Any = "cpu") -> Tensor:
        """Encode data [N, *shape] on the CPU in batches, by the posterior's mean."""
        parts = (self.encode(part.to(device)).cpu() for part in x.split(batch_size))
        return torch.cat(list(parts))

    def log_det(self) -> float | None:
        """Log |det ∂z/∂x| of one sample, in nats; None: the map has no inverse.

        log p(x) = log p(z) + log_det, where it is known.
        """
        raw = self.raw_log_det()
        if raw is None:
            return None
        return raw - math.prod(self.shape[1:]) * float(self.scale.double().log().sum())

    @torch.no_grad()
    def measure(self, batches: Iterable[Moments]) -> None:
        """Set shift and scale to mean and standard deviation of each channel of these latents.

        The posterior's deviation counts where the codec draws.

        Raises InputError: There are no latents, or they are not finite.
        """
        count, total, squares = 0, torch.tensor(0.0), torch.tensor(0.0)
        for mean, std in batches:
            e = mean.double().transpose(0, 1).flatten(1).cpu()  # [c, B·h·w]
            count += e.shape[1]
            total = total + e.sum(1)
            squares = squares + e.square().sum(1)
            if self.draws and std is not None:
                squares = squares + std.double().transpose(0, 1).flatten(1).cpu().square().sum(1)
        if not count or not bool(squares.isfinite().all()):
            raise InputError(f"{type(self).__name__}: the latents of the data are not finite")
        mean = total / count
        std = (squares / count - mean**2).clamp(min=0).sqrt()
        self.shift.copy_(mean)
        self.scale.copy_(torch.where(std > SMALLEST_STD, std, 1.0))
        self.measured.fill_(True)

    @override
    def train(self, mode: bool = True) -> Codec:
        return super().train(False)  # always in evaluation mode

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # Device moves only, because a decoder's pictures suffer in half precision.
        return super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)


class Identity(Codec):
    """No codec: the diffusion model works on the data itself."""

    @override
    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape

    @override
    def moments(self, x: Tensor) -> Moments:
        return Moments(x)

    @override
    def decoded(self, e: Tensor) -> Tensor:
        return e

    @override
    def attach(self, data: DataSpec) -> DataSpec:
        return data

    @override
    def encode(self, x: Tensor, noise: IndexedNoise | None = None) -> Tensor:
        return x

    @override
    def decode(self, z: Tensor) -> Tensor:
        return z

    @override
    def encode_all(self, x: Tensor, batch_size: int = 256, device: Any = "cpu") -> Tensor:
        return x

    @override
    def log_det(self) -> float:
        return 0.0


def _by_channel(values: Tensor, like: Tensor) -> Tensor:
    """Shape values [c] to be broadcast over [B, c, ...]."""
    return values.view(1, -1, *[1] * (like.ndim - 2))
