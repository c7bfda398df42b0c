"""A checkpoint under evaluation: drawn from with some settings, scored, and written down."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm_lightning.checkpoint import read_checkpoint
from ddpm_lightning.data.conditioned import Conditioned, condition_source
from ddpm_lightning.data.identity import identity
from ddpm_lightning.data.in_memory import InMemoryData, Split
from ddpm_lightning.diffusion.denoiser import Guidance
from ddpm_lightning.diffusion.samplers import Sampler
from ddpm_lightning.evaluation.judge import Judge
from ddpm_lightning.evaluation.likelihood import bits_per_dimension
from ddpm_lightning.evaluation.report import table, write_results
from ddpm_lightning.evaluation.sample_folder import SETTINGS, Drawing, draw_into
from ddpm_lightning.images import ImageFolder
from ddpm_lightning.metrics import Score
from ddpm_lightning.module import DiffusionModule
from ddpm_lightning.sampling import labels_of
from ddpm_lightning.trained import DataPlace, data_of


@dataclass
class Evaluated:
    """What stays the same whatever the sampler.

    Args:
        ckpt: The checkpoint.
        module: Its model, on its device.
        place: Where its data is now.
        split: Split that conditions are taken from.
        labels: Class labels, repeated along the index, or None.
        ema: Averaged weights, or those in training.
        n: Number of samples.
        seed: Seed of the noise.
        batch_size: Images at a time.
        bpd: Bound the likelihood, too.
    """

    ckpt: Path
    module: DiffusionModule
    place: DataPlace
    split: Split
    labels: list[int] | None
    ema: bool
    n: int
    seed: int
    batch_size: int
    bpd: bool
    _bounds: dict[str, Score] = field(default_factory=dict)

    @property
    def asked(self) -> Tensor | None:
        """The classes that samples are asked to be of: int64 [n], or None."""
        return labels_of(torch.arange(self.n), self.module.num_classes, self.labels)

    def data(self) -> InMemoryData:
        """The data that the model was trained on."""
        return data_of(self.ckpt, self.place)

    def label_source(self) -> object:
        """The data set whose classes the labels are."""
        data = self.data()
        return data.data if isinstance(data, Conditioned) else data

    def score(
        self, folder: Path, sampler: Sampler, guidance: Guidance, judge: Judge | None
    ) -> dict[str, Any]:
        """Draw into a folder, score, write results.json and print.

        Args:
            folder: The folder.
            sampler: How to sample.
            guidance: Classifier-free guidance.
            judge: Who scores the samples; None: draw none.

        Returns:
            The content of results.json.
        """
        scores: dict[str, Score] = {}
        stated: dict[str, Any] = {"seed": self.seed, "samples": self._source()}
        if judge is not None:
            drawing = self._drawing(sampler, guidance)
            images = folder / "samples"
            draw_into(images, self.module, drawing, self.n, self.batch_size)
            scores, digest = judge(ImageFolder(images, self.n), self.asked, folder)
            stated = {"n": self.n} | judge.describe() | stated
            stated["samples"] |= {
                "sha256": digest,
                "steps": len(sampler.levels(self.module.schedule)) - 1,
                **json.loads((images / SETTINGS).read_text()),
            }
        if self.bpd:
            scores["bpd"] = self._bound(folder)
        result = write_results(folder, scores, stated)
        print(f"{folder}: {'no samples' if judge is None else judge.said(self.n)}")
        print(table(scores))
        return result

    def _bound(self, folder: Path) -> Score:
        """Bound the likelihood, once a variance in a sweep; the first folder has the plot."""
        key = json.dumps(self.module.variance.describe())
        if key not in self._bounds:
            self._bounds[key] = bits_per_dimension(
                self.module, self.data(), self.ema, self.seed, self.batch_size, folder
            )
        return self._bounds[key]

    def _source(self) -> dict[str, Any]:
        step = read_checkpoint(self.ckpt)["global_step"]
        weights = "ema" if self.ema else "raw"
        return {"checkpoint": str(self.ckpt), "step": step, "weights": weights}

    def _drawing(self, sampler: Sampler, guidance: Guidance) -> Drawing:
        labels = None if self.labels is None else torch.as_tensor(self.labels)
        condition, condition_of = None, None
        if self.module.condition_channels:
            paired = condition_source(self.data(), self.module.condition_channels)
            assert paired is not None
            condition = paired.conditions(self.split, self.n)
            condition_of = {"data": identity(paired), "split": self.split}
        return Drawing(sampler, guidance, labels, self.ema, self.seed, condition, condition_of)
