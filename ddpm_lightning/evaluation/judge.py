"""One reference, one extractor: every set of samples is held against the same features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm_lightning.evaluation.real_images import RealImages
from ddpm_lightning.evaluation.scores import Score, feature_scores
from ddpm_lightning.image_folder import ImageFolder
from ddpm_lightning.images import from_uint8, grid, write_png
from ddpm_lightning.metrics import FeatureExtractor
from ddpm_lightning.metrics.cached import Features, reference_features
from ddpm_lightning.pictures import draw_neighbours


class Judge:
    """Scores folders of images against real ones.

    Args:
        real: The real images; their features are computed here, once, and kept on disk.
        extractor: Whose features are compared.
        metrics: Which metrics; those without features are left to others.
        seed: Seed of subsets.
        batch_size: Images at a time.
        device: Where the extractor works.
    """

    def __init__(
        self,
        real: RealImages,
        extractor: FeatureExtractor,
        metrics: Sequence[str],
        seed: int,
        batch_size: int,
        device: torch.device,
    ) -> None:
        self.real = real
        self.extractor = extractor
        self.metrics = [name for name in metrics if name != "bpd"]
        self.seed = seed
        self.batch_size = batch_size
        self.device = device
        self.reference = self._features_of_real()

    def __call__(self, images: ImageFolder, asked: Tensor | None, out: Path) -> dict[str, Score]:
        """Score images, and draw them into a folder: grid.png and neighbours.png.

        Args:
            images: What to score.
            asked: int64 [n] classes that they were asked to be of, or None.
            out: The folder.
        """
        features = Features.compute(
            self.extractor,
            images.batches(self.batch_size),
            self.device,
            self.batch_size,
            progress=True,
        )
        scores = feature_scores(
            self.metrics,
            self.extractor,
            features,
            self.reference,
            asked,
            self.real.labels,
            self.seed,
        )
        write_png(out / "grid.png", grid(from_uint8(images.read(images.files[:64]))))
        panel = draw_neighbours(
            images.read(images.files[:8]),
            features.features[:8],
            self.reference.features,
            self.real.take,
        )
        write_png(out / "neighbours.png", panel)
        return scores

    def describe(self) -> dict[str, Any]:
        """State all that decides about the scores beside the samples, as plain data."""
        extractor = self.extractor
        details = {"sha256": extractor.digest, "resize": extractor.resize}
        return {
            "reference": self.real.description,
            "extractor": extractor.describe() | details,
            "seed": self.seed,
        }

    def _features_of_real(self) -> Features:
        source = self.real.source
        if isinstance(source, ImageFolder):
            batches = source.batches(self.batch_size)
            return Features.compute(
                self.extractor, batches, self.device, self.batch_size, progress=True
            )
        return reference_features(
            self.extractor, source, None, self.device, self.batch_size, progress=True
        )
