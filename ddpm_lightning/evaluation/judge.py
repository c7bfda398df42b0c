"""Folders of images scored against one set of real images, in the features of one extractor."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ddpm_lightning.data.image_set import StoredImages
from ddpm_lightning.errors import InputError, at_least
from ddpm_lightning.evaluation.real_images import RealImages
from ddpm_lightning.evaluation.sample_set import made_by
from ddpm_lightning.files import check_folder
from ddpm_lightning.images import ImageArchive, UniformFolder, from_uint8, grid, write_png
from ddpm_lightning.loaded import device_named
from ddpm_lightning.metrics import (
    FeatureExtractor,
    Features,
    Measures,
    Metric,
    Reference,
    Result,
    choice_in_words,
    chosen_extractor,
)
from ddpm_lightning.metrics.cache import cache_path, lookup, store
from ddpm_lightning.plots.strips import draw_neighbours
from ddpm_lightning.processes import Processes
from ddpm_lightning.randomness import check_seed


class Judge:
    """Scores folders of images against real images, in the features of one extractor.

    Args:
        metrics: Which.
        reference: The real images.
        extractor: Whose features are compared. auto is LeNet for grey images; for colour it is
            Inception if its weights are in torch hub's cache, else ColourNet.
        seed: Seed of subsets, splits and cuts in the metrics.
        batch_size: Images at a time.
        device: Where the extractor works: cpu, cuda, cuda:1, mps, or auto.

    Raises:
        InputError: The real images, the weights of the extractor or the device are not there.
    """

    def __init__(
        self,
        metrics: Sequence[Metric],
        reference: RealImages,
        extractor: FeatureExtractor | Literal["auto"] = "auto",
        seed: int = 1,
        batch_size: int = 256,
        device: str = "auto",
    ) -> None:
        check_seed(seed)
        at_least(1, self, batch_size=batch_size)
        self.device = device_named(device)
        self.real = reference
        processes = Processes.current()
        self.extractor = chosen_extractor(extractor, reference.shape, processes.all_agree)
        self.extractor.check()
        if extractor == "auto" and processes.first:
            print(choice_in_words(self.extractor))
        self.measures = Measures(metrics, self.extractor, seed)
        self.batch_size = batch_size

    def check(self, what: Path, shape: Sequence[int], n: int) -> None:
        """Refuse n images [C, H, W] of a folder or checkpoint that cannot be scored.

        Raises InputError: The real images are of another shape, or there are too few for a metric.
        """
        if tuple(shape) != tuple(self.real.shape):
            raise InputError(
                f"{what} has images of shape {list(shape)} (channels, height, width), but the "
                f"real ones are {list(self.real.shape)}; nothing is resized or converted "
                "silently, so bring one to the other first"
            )
        self.extractor.check_shape(shape)
        self.measures.check(n, self.real.count)

    @cached_property
    def reference(self) -> Reference:
        """The real images' features, computed once; those of a data set are kept on disk."""
        source = self.real.source
        if not isinstance(source, Tensor):
            return self.real.reference(self.measures, *self._features(source))
        processes = Processes.current()
        path = cache_path(self.extractor, source) if processes.first else None
        features = lookup(path)
        if not processes.agreed(features is not None):
            own = processes.share(len(source), self.batch_size)
            features = self._gathered(self.real.batches(own, self.batch_size), len(source))
            store(features, path)
        digest = self.real.digest() if processes.first else ""
        return self.real.reference(
            self.measures, NOTHING if features is None else features, digest
        )

    def __call__(
        self,
        images: UniformFolder | ImageArchive,
        out: Path,
        samples: dict[str, Any],
        labels: Tensor | None = None,
        step: int | None = None,
    ) -> list[Result]:
        """Score images, and draw them into a folder: grid.png and neighbours.png.

        ``samples`` says how they came about; labels int64 [n] are the classes that they were asked
        to be of; step counts the optimizer steps behind the weights. Of several processes that
        share the work, the first draws and has the results.
        """
        reference = self.reference  # whose features all processes compute
        features, digest = self._features(images)
        if not Processes.current().first:
            return []
        scores = reference(features, labels)
        origin = {"checkpoint": samples.get("checkpoint"), "step": step}
        about = made_by(samples, {k: v for k, v in origin.items() if v is not None})
        write_png(out / "grid.png", grid(from_uint8(images.read(images.files[:64]))), about)
        panel = draw_neighbours(
            images.read(images.files[:8]),
            features.features[:8],
            reference.features.features,
            self.real.take,
        )
        write_png(out / "neighbours.png", panel, about)
        stated = {"n": len(images), "sha256": digest, **samples}
        return reference.results(scores, stated, step)

    def in_words(self, n: int) -> str:
        """Say how many samples were compared with how many real images."""
        return (
            f"{n} samples against {self.real.count} real images; real images: "
            f"{self.reference.in_words(n)}"
        )

    def _features(
        self, images: UniformFolder | ImageArchive | StoredImages
    ) -> tuple[Features, str]:
        """Features of all images, and the sha256 of all pixels, on the first process."""
        digest, processes, n = hashlib.sha256(), Processes.current(), len(images)
        own = processes.share(n, self.batch_size)

        def read() -> Iterator[Tensor]:
            if not processes.first:
                for rows in own.split(self.batch_size):
                    yield images.read([images.files[row] for row in rows.tolist()])
                return
            size = len(processes.batches(n, self.batch_size)[0])
            for k, batch in enumerate(images.batches(size)):  # all of them, for the digest
                digest.update(batch.contiguous().numpy().data)
                if k % processes.count == 0:
                    yield batch

        return self._gathered(read(), n), digest.hexdigest()

    def _gathered(self, batches: Iterable[Tensor], n: int) -> Features:
        """Extract the features of this process's share of n images, and gather those of all."""
        processes, size = Processes.current(), self.batch_size
        count = len(processes.share(n, size))
        if not count:
            return NOTHING
        own = Features.compute(self.extractor, batches, self.device, size, processes.first, count)
        logits = None if own.logits is None else processes.gather(own.logits, n, size)
        return Features(processes.gather(own.features, n, size), logits)


NOTHING = Features(torch.empty(0, 0))
"""Stands in for the features on processes other than the first."""


def check_out(out: Path, images: Mapping[str, Path | None]) -> None:
    """Refuse a folder for results that cannot be written, or lies in one of images, by flag.

    Raises InputError: Nothing can be written there, or the results would join the images.
    """
    for flag, folder in images.items():
        if folder is not None and folder.resolve() in (out.resolve(), *out.resolve().parents):
            raise InputError(
                f"--out {out} lies in --{flag} {folder}, whose images the results would join; "
                "choose another --out"
            )
    check_folder(out)
