"""Features: what metrics compare, and the frozen networks that compute them from 8-bit images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ddpm_lightning.configurable import Configurable
from ddpm_lightning.errors import InputError
from ddpm_lightning.metrics.statistics import Statistics
from ddpm_lightning.progress import show_progress


class FeatureExtractor(Configurable, ABC):
    """A pretrained network in whose features two sets of images are compared.

    It holds a network but is none itself, so its weights never reach a checkpoint, the EMA or an
    optimizer. They load on first use, or early through :meth:`check`. One of your own states the
    attributes and defines ``load`` and ``features``; if its network classifies, too, it states
    ``classes`` and overrides ``features_and_logits``.

    Attributes:
        name: Stem of the metric's tag, e.g. ``fid``.
        alias: The stable tag for ``monitor:``.
        dim: Length of a feature vector; None: as many as an image has values.
        channels: The numbers of image channels that are accepted; None: any.
        min_size: The smallest accepted height and width, in pixels.
        classes: Number of classes that the network tells apart; None: it gives no logits.
        knows: Names of the data sets whose labels these classes are, in their order.
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
        """Read the weights: the network, and their sha256 as 64 hexadecimal digits."""

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Map uint8 [B, C, H, W], checked and on the network's device, to float32 [B, dim]."""

    def features_and_logits(self, images: Tensor) -> Features:
        """Do as ``features``, and give the logits of the same pass, float32 [B, classes]."""
        return Features(self.features(images))

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
        """Load the weights now, so that a missing file is found before the training."""
        _ = self._loaded

    def __call__(self, images: Tensor) -> Tensor:
        """Compute the features of :meth:`both` alone: float32 [B, dim]."""
        return self.both(images).features

    def both(self, images: Tensor) -> Features:
        """Features and logits of images uint8 [B, C, H, W], without gradients, in float32."""
        self._check_images(images)
        self.network.to(images.device)
        with plain_float32(images.device):
            return self.features_and_logits(images)

    def check_shape(self, shape: Sequence[int]) -> None:
        """Raise InputError for images of a shape [C, H, W] that the network does not read."""
        fits = len(shape) == 3 and (not self.channels or shape[0] in self.channels)
        if not fits or min(shape[1:]) < self.min_size:
            channels = " or ".join(map(str, self.channels or ("any number of",)))
            raise InputError(
                f"{type(self).__name__} reads images [C, H, W] of {channels} channel(s) and "
                f"{self.min_size}×{self.min_size} pixels or more, got {list(shape)}; LeNet is for "
                "grey images, ColourNet for colour, Inception for both: --extractor auto (in "
                "training --metrics.extractor auto) chooses"
            )

    def _check_images(self, images: Tensor) -> None:
        if images.dtype != torch.uint8:
            raise InputError(
                f"{type(self).__name__} reads 8-bit images, got {images.dtype}; images.to_uint8 "
                "converts from [−1, 1]"
            )
        self.check_shape(images.shape[1:])


@dataclass(frozen=True, eq=False)
class Features:
    """Features of a set of images on the CPU, float32 [n, d], and logits [n, K] or None.

    For points they are the points themselves.
    """

    features: Tensor
    logits: Tensor | None = None

    @classmethod
    def compute(
        cls,
        extractor: FeatureExtractor,
        images: Tensor | Iterable[Tensor],
        device: torch.device | str = "cpu",
        batch_size: int = 256,
        progress: bool = False,
        total: int | None = None,
    ) -> Features:
        """Run the extractor once over images; only features and logits are kept.

        Images are uint8 [n, C, H, W], or an iterator of such batches of ``total`` images, made one
        at a time.
        """
        batches: Iterable[Tensor] = images
        if isinstance(images, Tensor):
            batches, total = (images,), len(images)
        features: list[Tensor] = []
        logits: list[Tensor] = []
        name = f"{extractor.name} features"
        with show_progress(
            total=total, desc=name, unit="image", leave=False, disable=not progress
        ) as bar:
            for batch in batches:
                for part in batch.split(batch_size):
                    one = extractor.both(part.to(device))
                    features.append(one.features.float().cpu())
                    if one.logits is not None:
                        logits.append(one.logits.float().cpu())
                    bar.update(len(part))
        return cls(torch.cat(features), torch.cat(logits) if logits else None)

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: Tensor | slice) -> Features:
        """Choose some of the images."""
        logits = None if self.logits is None else self.logits[rows]
        return Features(self.features[rows], logits)

    @cached_property
    def statistics(self) -> Statistics:
        """Mean and covariance of the features, computed once."""
        return Statistics.of(self.features)

    def summarised(self) -> Features:
        """Keep the statistics alone, for metrics that need no pairs."""
        kept = self[:0]
        vars(kept)["statistics"] = self.statistics
        return kept


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
