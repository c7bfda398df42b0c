"""The seam of the metrics: 8-bit images in, feature vectors of a frozen network out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ddpm_lightning.configurable import Configurable
from ddpm_lightning.errors import InputError


class Extracted(NamedTuple):
    """What one pass of a network over images [B, C, H, W] gives.

    Attributes:
        features: float32 [B, dim].
        logits: float32 [B, classes] of the network's own classes, or None if it has none.
    """

    features: Tensor
    logits: Tensor | None = None


class FeatureExtractor(Configurable, ABC):
    """A pretrained network in whose features two sets of images are compared.

    It holds a network but is none itself: assigned to a LightningModule, a callback or another
    metric it registers nothing, so its weights never reach a checkpoint, the EMA or an optimizer.
    The weights load on first use, or early through :meth:`check`.

    One of your own states the attributes and defines ``load`` and ``features``; if its network
    classifies, too, it states ``classes`` and overrides ``features_and_logits``.

    Attributes:
        name: Stem of the metric's tag, e.g. ``fid``.
        alias: The stable tag for ``monitor:``.
        dim: Length of a feature vector; None: as many as an image has values.
        channels: The numbers of image channels that are accepted; None: any.
        min_size: The smallest accepted height and width, in pixels.
        classes: Number of classes that the network tells apart; None: it gives no logits.
        knows: Names of the data sets (classes of ddpm_lightning.data, or of your own) whose labels
            these classes are, in their order: only of those it can tell the accuracy.
        resize: How images are brought to the network's size, as stated in results.
    """

    name: str
    alias: str
    dim: int | None
    channels: tuple[int, ...] | None
    min_size: int = 1
    classes: int | None = None
    knows: tuple[str, ...] = ()
    resize: str = "none"

    @abstractmethod
    def load(self) -> tuple[nn.Module, str]:
        """Read the weights.

        Returns:
            The network, and the sha256 of its weights as 64 hexadecimal digits.

        Raises:
            InputError: The weights are missing, or not those of this network.
        """

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Map uint8 [B, C, H, W], checked and on the network's device, to float32 [B, dim]."""

    def features_and_logits(self, images: Tensor) -> Extracted:
        """Do as ``features``, and give the logits of the same pass, float32 [B, classes]."""
        return Extracted(self.features(images))

    def knows_classes_of(self, data: object) -> bool:
        """Tell whether the labels of a data set are the network's classes."""
        return type(data).__name__ in self.knows

    @property
    def network(self) -> nn.Module:
        """The frozen network, in evaluation mode."""
        return self._loaded[0]

    @property
    def digest(self) -> str:
        """The sha256 of the weights: features are comparable only under the same digest."""
        return self._loaded[1]

    @cached_property
    def _loaded(self) -> tuple[nn.Module, str]:
        with torch.inference_mode(False):  # such tensors could not be moved later on
            network, digest = self.load()
        return network.eval().requires_grad_(False), digest

    def check(self) -> None:
        """Load the weights now, so that a missing file is found before hours of training.

        Raises:
            InputError: The weights are missing, or not those of this network.
        """
        _ = self._loaded

    def __call__(self, images: Tensor) -> Tensor:
        """Compute features on the images' device, without gradients, in float32.

        Args:
            images: uint8 [B, C, H, W], 0…255.

        Returns:
            float32 [B, dim].

        Raises:
            InputError: The images do not fit, or the weights are missing.
        """
        return self.both(images).features

    def logits(self, images: Tensor) -> Tensor | None:
        """Classify images uint8 [B, C, H, W]: float32 [B, classes], None without classes."""
        return self.both(images).logits

    def both(self, images: Tensor) -> Extracted:
        """Compute features and logits in one pass; otherwise as a call.

        Args:
            images: uint8 [B, C, H, W], 0…255.

        Raises:
            InputError: The images do not fit, or the weights are missing.
        """
        self._check_images(images)
        self.network.to(images.device)
        with plain_float32(images.device):
            return self.features_and_logits(images)

    def _check_images(self, images: Tensor) -> None:
        kind = type(self).__name__
        if images.dtype != torch.uint8:
            raise InputError(
                f"{kind} reads 8-bit images, got {images.dtype}; convert images in [−1, 1] with "
                "ddpm_lightning.images.to_uint8"
            )
        if images.ndim != 4 or (self.channels and images.shape[1] not in self.channels):
            accepted = " or ".join(map(str, self.channels or ("any number of",)))
            raise InputError(
                f"{kind} reads images [B, C, H, W] of {accepted} channel(s), got "
                f"{list(images.shape)}; LeNet is for grey images, Inception for grey and colour"
            )
        if min(images.shape[2:]) < self.min_size:
            raise InputError(
                f"{kind} reads images of at least {self.min_size}×{self.min_size} pixels, got "
                f"{list(images.shape)}; pad or enlarge them first"
            )


@contextmanager
def plain_float32(device: torch.device) -> Iterator[None]:
    """Suspend gradients, autocast and TF32: features do not depend on the trainer's precision."""
    switches = _tf32_switches()
    before = [getattr(where, name) for where, name, _ in switches]
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        for where, name, off in switches:
            setattr(where, name, off)
        try:
            yield
        finally:
            for (where, name, _), value in zip(switches, before, strict=True):
                setattr(where, name, value)


def _tf32_switches() -> list[tuple[Any, str, Any]]:
    """Where TF32 is switched, the switch's name and its value for off."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    if hasattr(cudnn, "conv"):  # torch 2.9 and later, which forbid to mix both ways
        return [(where, "fp32_precision", "ieee") for where in (matmul, cudnn.conv, cudnn.rnn)]
    return [(where, "allow_tf32", False) for where in (matmul, cudnn)]
