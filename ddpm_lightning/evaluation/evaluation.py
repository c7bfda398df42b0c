"""A checkpoint under evaluation: drawn from with some settings, scored, and written down."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ddpm_lightning.batch import Condition
from ddpm_lightning.data.data_module import identity
from ddpm_lightning.data.wrapper import innermost
from ddpm_lightning.evaluation.judge import Judge
from ddpm_lightning.evaluation.likelihood import bits_per_dimension
from ddpm_lightning.evaluation.real_images import RealImages
from ddpm_lightning.evaluation.report import table
from ddpm_lightning.evaluation.sample_set import SampleSet, digests_of, draw_into
from ddpm_lightning.files import json_value
from ddpm_lightning.images import UniformFolder, to_uint8
from ddpm_lightning.loaded import Loaded
from ddpm_lightning.metrics import FeatureExtractor, Features, Metric, Result, Score, as_metrics
from ddpm_lightning.metrics.metric import metric_words
from ddpm_lightning.metrics.result import write_results
from ddpm_lightning.processes import Processes

BOUND = "bpd"
"""Name of the bound on the likelihood among the metrics: of the model, without samples."""


class Evaluation:
    """Scores of a checkpoint.

    Args:
        loaded: The checkpoint.
        metrics: Which metrics, and ``bpd``.
        reference: The real images; by default those of the checkpoint.
        extractor: Whose features are compared, or auto.
        samples: What is asked for; of several sets, one.
    """

    def __init__(
        self,
        loaded: Loaded,
        metrics: str | Sequence[Metric | str],
        reference: RealImages,
        extractor: FeatureExtractor | Literal["auto"],
        samples: SampleSet,
    ) -> None:
        words = metric_words(metrics)
        others = [word for word in words if word != BOUND]
        self.loaded = loaded
        self.bound = len(others) < len(words)
        self.judge: Judge | None = None
        if others or not self.bound:
            real = reference if reference.given else reference.of(loaded.data)
            chosen, device = as_metrics(others), str(loaded.module.device)
            self.judge = Judge(chosen, real, extractor, samples.seed, samples.batch_size, device)
        self.n, self.split = samples.n, reference.split
        self._bounds: dict[str, list[Result]] = {}

    def check(self, samples: SampleSet) -> None:
        """Raise InputError for what cannot be drawn or scored, before anything is computed."""
        samples.check(self.loaded.module)
        if self.judge is None:
            return
        samples, labels = self._asked(samples)
        self.judge.check(self.loaded.path, self.loaded.module.data.shape, samples.n)
        if self.judge.measures.needs_labels:
            self.judge.measures.check_labels(innermost(self.loaded.data), labels)

    def __call__(self, samples: SampleSet, out: Path) -> list[dict[str, Any]]:
        """Draw and score samples, print a table, and return the records of results.json.

        Several processes share the work; the first writes, prints and returns the records.
        """
        loaded, results, what = self.loaded, [], "no samples"
        if self.judge is not None:
            known, folder = self.known, out / "samples"
            _ = self.judge.reference  # before hours of sampling, because it may fail
            given: dict[str, Any] = {}
            if loaded.module.data.image_channels:
                given = {"condition": {"data": identity(loaded.data), "split": self.split}}
            samples, labels = self._asked(samples)
            stated = draw_into(folder, loaded.module, samples, known, given, loaded.origin)
            stated = {"checkpoint": str(loaded.path), **stated}
            images = UniformFolder(folder, samples.n)
            results = self.judge(images, out, stated, labels, loaded.step)
            what = self.judge.in_words(samples.n)
        if self.bound:
            results += self._bound(samples, out)
        if not Processes.current().first:
            return []
        records = write_results(out / "results.json", results)
        print(f"{out}: {what}")
        print(table(records))
        return records

    def scores(self, samples: SampleSet) -> dict[str, Score]:
        """Draw and score samples in memory, by one process, without standard errors."""
        assert self.judge is not None
        judge, (samples, labels) = self.judge, self._asked(samples)
        x = self.loaded.module.generate(torch.arange(samples.n), samples, self.known).x
        features = Features.compute(judge.extractor, to_uint8(x), judge.device, judge.batch_size)
        return judge.measures(features, judge.reference.features, labels, errors=False)

    def stated(self, samples: SampleSet) -> dict[str, Any]:
        """State all that decides about the scores in memory, as plain data."""
        assert self.judge is not None
        module, (samples, _) = self.loaded.module, self._asked(samples)
        return {
            **digests_of(module, samples.weights),
            **samples.state(module, self.known),
            "reference": self.judge.reference.description["sha256"],
            "extractor": json_value(self.judge.extractor.describe()),
        }

    def _asked(self, samples: SampleSet) -> tuple[SampleSet, Tensor | None]:
        """The samples with the data's captions where they need some, and their classes."""
        module, texts = self.loaded.module, list[str]()
        if module.text is not None:
            samples = samples.with_captions(module, self.loaded.data, self.split)
            texts = list(self.loaded.data.texts)
        return samples, samples.labels_of(module, self.known, texts)

    @cached_property
    def known(self) -> Condition:
        """Labels of the real images, and the images that a conditioned model is given."""
        module, label, image = self.loaded.module, None, None
        if module.data.num_classes is not None and self.judge is not None:
            label = self.judge.real.labels
        if module.data.image_channels:
            image = self.loaded.data.finished(self.split, self.n).condition.image
        return Condition(label, image)

    def _bound(self, samples: SampleSet, out: Path) -> list[Result]:
        """Bound the likelihood, once a variance in a sweep; the first folder has the plot."""
        key = json.dumps(samples.denoiser(self.loaded.module).variance.describe())
        if key not in self._bounds:
            self._bounds[key] = bits_per_dimension(self.loaded, samples, out)
        return self._bounds[key]
