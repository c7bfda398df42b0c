"""Features: what metrics compare, and the frozen networks that compute them from 8-bit images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ddpm_lightning.configurable import Configurable
from ddpm_lightning.errors import InputError
from ddpm_lightning.metrics.statistics import Statistics


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
        """Read the weights: the network, and their sha256 as 64 hexadecimal digits.

        Raises:
            InputError: The weights are missing, or not those of this network.
        """

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
        """Load the weights now, so that a missing file is found before hours of training."""
        _ = self._loaded

    def __call__(self, images: Tensor) -> Tensor:
        """Compute the features of :meth:`both` alone: float32 [B, dim]."""
        return self.both(images).features

    def both(self, images: Tensor) -> Features:
        """Compute features and logits in one pass, without gradients, in float32.

        Args:
            images: uint8 [B, C, H, W], 0…255; the features are on their device.

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


@dataclass(frozen=True, eq=False)
class Features:
    """Features of a set of images or, of points, the points themselves.

    Attributes:
        features: float32 [n, d], on the CPU.
        logits: float32 [n, K] of the extractor's classes, or None.
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

        Args:
            extractor: Whose features.
            images: uint8 [n, C, H, W], or batches of such in any sizes, made one at a time.
            device: Where to compute.
            batch_size: Images at a time, of a tensor and of longer batches.
            progress: Show a progress bar.
            total: Number of images, where they are batches, for the time left.

        Raises:
            InputError: There are no images, or they do not fit the extractor.
        """
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size}: at least 1")
        batches: Iterable[Tensor] = (images,) if isinstance(images, Tensor) else images
        total = len(images) if isinstance(images, Tensor) else total
        features: list[Tensor] = []
        logits: list[Tensor] = []
        with tqdm(
            total=total,
            desc=f"{extractor.name} features",
            unit="image",
            leave=False,
            disable=not progress,
        ) as bar:
            for batch in batches:
                for part in batch.split(batch_size):
                    one = extractor.both(part.to(device))
                    features.append(one.features.float().cpu())
                    if one.logits is not None:
                        logits.append(one.logits.float().cpu())
                    bar.update(len(part))
        if not features:
            raise InputError(f"{type(extractor).__name__} was given no images; give one or more")
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


def check_features(*sets: Tensor, least: int, metric: str) -> None:
    """Refuse features that a metric cannot be computed from.

    Args:
        sets: One or two tensors [n, d].
        least: The smallest n.
        metric: Named in the message.

    Raises:
        InputError: They are no matrices of equally long rows, too few or not finite.
    """
    shapes = " and ".join(str(list(rows.shape)) for rows in sets)
    if any(rows.ndim != 2 for rows in sets) or len({rows.shape[1] for rows in sets}) > 1:
        raise InputError(
            f"{metric} reads features [n, d] of one length d, got {shapes}; compute them all with "
            "the same extractor"
        )
    if min(map(len, sets)) < least:
        raise InputError(
            f"{metric} needs {least} or more feature vectors, got {shapes}; use more images"
        )
    if not all(bool(rows.isfinite().all()) for rows in sets):
        raise InputError(
            f"{metric}: the features are not finite; look at the images and the weights of the "
            "extractor"
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
