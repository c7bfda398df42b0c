"""One reference, one extractor: every set of samples is held against the same features."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm_lightning.evaluation.real_images import RealImages
from ddpm_lightning.images import ImageFolder, from_uint8, grid, write_png
from ddpm_lightning.metrics import FeatureExtractor
from ddpm_lightning.metrics.cached import Features, reference_features
from ddpm_lightning.metrics.floors import Floors, measured_floors
from ddpm_lightning.metrics.frechet import Statistics
from ddpm_lightning.metrics.measure import Measures, Score
from ddpm_lightning.plots.pictures import NEIGHBOURS, draw_neighbours
from ddpm_lightning.plots.strips import captioned


class Judge:
    """Scores folders of images against real ones.

    Args:
        real: The real images; their features are computed here, once, and kept on disk.
        extractor: Whose features are compared.
        measures: Which metrics; None: nothing but the features of the real images.
        batch_size: Images at a time.
        device: Where the extractor works.
    """

    def __init__(
        self,
        real: RealImages,
        extractor: FeatureExtractor,
        measures: Measures | None,
        batch_size: int,
        device: torch.device,
    ) -> None:
        self.real = real
        self.extractor = extractor
        self.measures = measures
        self.batch_size = batch_size
        self.device = device
        if isinstance(real.source, ImageFolder):
            self.reference, digest = self._features(real.source)
        else:
            digest = hashlib.sha256(real.source.contiguous().numpy().data).hexdigest()
            self.reference = reference_features(
                extractor, real.source, None, device, batch_size, progress=True
            )
        self.real_sha256 = digest
        self._floors: dict[int, Floors] = {}

    def __call__(
        self, images: ImageFolder, asked: Tensor | None, out: Path
    ) -> tuple[dict[str, Score], str]:
        """Score images, and draw them into a folder: grid.png and neighbours.png.

        Args:
            images: What to score.
            asked: int64 [n] classes that they were asked to be of, or None.
            out: The folder.

        Returns:
            The scores by name, each with its floor, and the sha256 of all pixels.
        """
        assert self.measures is not None
        features, digest = self._features(images)
        scores = self.measures(self.extractor, features, self.reference, self._statistics, asked)
        write_png(out / "grid.png", grid(from_uint8(images.read(images.files[:64]))))
        panel = draw_neighbours(
            images.read(images.files[:8]),
            features.features[:8],
            self.reference.features,
            self.real.take,
        )
        write_png(out / "neighbours.png", captioned(panel, title=NEIGHBOURS))
        return self.floors(len(images)).beside(scores), digest

    @cached_property
    def _statistics(self) -> Statistics:
        return Statistics.of(self.reference.features)

    def floors(self, n: int) -> Floors:
        """The floor of each metric for n samples; measured once."""
        assert self.measures is not None
        if n not in self._floors:
            known = self.extractor.knows_classes_of(self.real.data)
            labels = self.real.labels if known else None
            self._floors[n] = measured_floors(
                self.measures, self.extractor, self.reference, n, labels
            )
        return self._floors[n]

    def said(self, n: int) -> str:
        """Say in words what was held against what."""
        return (
            f"{n} samples against {len(self.real)} real images; "
            f"real images: {self.floors(n).said(n)}"
        )

    def describe(self) -> dict[str, Any]:
        """State all that decides about the scores beside the samples, as plain data."""
        extractor = self.extractor
        details = {"sha256": extractor.digest, "resize": extractor.resize}
        return {
            "reference": self.real.description | {"sha256": self.real_sha256},
            "extractor": extractor.describe() | details,
        }

    def _features(self, images: ImageFolder) -> tuple[Features, str]:
        """Features of all images, and the sha256 of all pixels."""
        digest = hashlib.sha256()

        def read() -> Iterator[Tensor]:
            for batch in images.batches(self.batch_size):
                digest.update(batch.contiguous().numpy().data)
                yield batch

        features = Features.compute(
            self.extractor, read(), self.device, self.batch_size, True, len(images)
        )
        return features, digest.hexdigest()
