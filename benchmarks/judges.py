"""Fréchet distances to the training images, by an extractor to tune with and by another."""

from __future__ import annotations

import statistics

import torch
from torch import Tensor

from ddpm_lightning.data.image_data import ImageData
from ddpm_lightning.images import to_uint8
from ddpm_lightning.metrics import ColourNet, Features, LeNet, frechet_distance
from ddpm_lightning.metrics.cache import cache_path, lookup, store
from ddpm_lightning.metrics.features import FeatureExtractor

SAMPLES = 1000
"""Samples of a measurement, and test images of the floor, against all training images."""

DRAWS = 25
"""Draws of test images for the floor."""

Distances = dict[str, float]
"""The Fréchet distance by each extractor's name."""


class Judge:
    """Both shipped classifiers, as extractors of features of one data set.

    The one for the data's channels comes first (LeNet for grey images, ColourNet for colour); it
    may be tuned with. The other one sees the images converted to its channels. It has another
    architecture and was trained on other pictures, so what pleases the first alone does not please
    it.

    Args:
        data: The data set; all its official training images are the reference.
        device: Where features are computed.
    """

    def __init__(self, data: ImageData, device: str = "cpu") -> None:
        self.data = data.replace(held_out=0)
        self.device = device
        extractors: tuple[FeatureExtractor, ...] = (LeNet(), ColourNet())
        self.extractors = extractors if data.shape[0] == 1 else extractors[::-1]
        images = self.data.images("train")[0]
        self.reference = {one.name: self._kept(one, images) for one in self.extractors}

    def __call__(self, samples: Tensor) -> Distances:
        """Distances of samples float32 [n, C, H, W] in [−1, 1] to the training images."""
        return self.of_images(to_uint8(samples))

    def of_images(self, images: Tensor) -> Distances:
        """Distances of images uint8 [n, C, H, W] to the training images."""
        return {
            one.name: frechet_distance(
                self._features(one, images).statistics, self.reference[one.name].statistics
            )
            for one in self.extractors
        }

    def floor(self, n: int = SAMPLES) -> Distances:
        """Distances of n random test images: the median of DRAWS draws, which differ by half."""
        images = self.data.images("test")[0]
        features = {one.name: self._kept(one, images) for one in self.extractors}
        generator = torch.Generator().manual_seed(0)
        drawn = [torch.randperm(len(images), generator=generator)[:n] for _ in range(DRAWS)]
        return {
            name: statistics.median(
                frechet_distance(kept[rows].statistics, self.reference[name].statistics)
                for rows in drawn
            )
            for name, kept in features.items()
        }

    def labels(self, n: int) -> Tensor:
        """Labels int64 [n] in the shares that the classes have among the training images.

        Evenly spaced over the sorted labels: MNIST's own order repeats with its writers' forms, so
        evenly spaced images of it are no fair sample.
        """
        labels = self.data.images("train")[1].sort().values
        return labels[torch.arange(n) * len(labels) // n]

    def _kept(self, extractor: FeatureExtractor, images: Tensor) -> Features:
        """Features that are computed once on a machine."""
        path = cache_path(extractor, images)
        features = lookup(path)
        if features is None:
            features = self._features(extractor, images)
            store(features, path)
        return features

    def _features(self, extractor: FeatureExtractor, images: Tensor) -> Features:
        parts = (as_channels(part, extractor.channels) for part in images.split(500))
        return Features.compute(extractor, parts, self.device, total=len(images))


def as_channels(images: Tensor, channels: tuple[int, ...] | None) -> Tensor:
    """Convert uint8 [B, 1 or 3, H, W] to a number of channels: repeated grey, or the luma."""
    if not channels or images.shape[1] in channels:
        return images
    if images.shape[1] == 1:
        return images.expand(-1, 3, -1, -1)
    weights = torch.tensor([0.299, 0.587, 0.114])  # ITU-R BT.601
    return torch.einsum("nchw,c->nhw", images.float(), weights).round().to(torch.uint8)[:, None]
