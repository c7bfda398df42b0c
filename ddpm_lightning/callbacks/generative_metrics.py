"""Distances between samples and data while training."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from tqdm.auto import tqdm

from ddpm_lightning.callbacks.periodic import Periodic
from ddpm_lightning.callbacks.results import append_result, log_result
from ddpm_lightning.callbacks.sharing import gather, share, shows_progress
from ddpm_lightning.callbacks.tensorboard import show_picture
from ddpm_lightning.checks import check_seed
from ddpm_lightning.configurable import plain
from ddpm_lightning.data.conditioned import Conditioned, condition_source
from ddpm_lightning.data.identity import identity
from ddpm_lightning.data.image_data import ImageData
from ddpm_lightning.data.in_memory import Split
from ddpm_lightning.diffusion.denoiser import Guidance
from ddpm_lightning.diffusion.samplers import DDPM, Sampler
from ddpm_lightning.errors import InputError
from ddpm_lightning.images import to_uint8, write_png
from ddpm_lightning.metrics import FeatureExtractor, Statistics
from ddpm_lightning.metrics.cached import Features, cache_path, lookup, store
from ddpm_lightning.metrics.floors import measured_floors
from ddpm_lightning.metrics.measure import Measures, Metric, Score, check_accuracy
from ddpm_lightning.module import DiffusionModule
from ddpm_lightning.plots.pictures import NEIGHBOURS, draw_neighbours
from ddpm_lightning.plots.strips import captioned
from ddpm_lightning.sampling import labels_of, levels_from_noise, sampling_tag

MOST_WITH_ERRORS = 10_000
"""Samples up to which standard errors are computed: one process does, and the others wait."""


class GenerativeMetrics(Periodic):
    """Logs distances between samples and the un-augmented training images.

    By default the Fréchet distance; more on request, all from one pass of the extractor. Tags name
    what was measured (extractor, number of samples, sampler and its steps, weights, reference
    split); ``fid`` (Inception) or ``fd`` (any other extractor) is the stable alias for
    ``monitor:``. Beside it stand its standard error (up to 10,000 samples; it takes a minute for
    Inception on one core) and, for scale, the distance of n real images (of half the reference,
    if n is more) to its other images: samples of that value differ from the data about as much as
    the data from itself. metrics.json in the run folder keeps every result. The features of the
    real images are kept on disk, so only the first run on a data set computes them.

    Args:
        extractor: Whose features are compared: Inception for FID, LeNet for grey images offline.
        every_n_steps: Optimizer steps from one measurement to the next; the end of training has
            one, too.
        n: Number of samples. Distances at different n do not compare; published FIDs use 50000.
        sampler: How to sample; default: DDPM over all levels. Clips to the data's range.
        guidance: Strength of classifier-free guidance of a conditional model; 1 is none. Its
            labels are those of the reference images, in their order, repeated up to n; so are the
            images that a model is given.
        guidance_interval: Guide only at levels low < t/T ≤ high, e.g. [0.2, 0.8]; null: at all.
        guidance_rescale: Share, 0 to 1, by which guided predictions are brought back to the spread
            of unguided ones, against over-exposure; Lin et al. (2023) use 0.7.
        ema: Averaged weights (true), the ones in training (false), or both, one after the other;
            then the aliases are those of the averaged ones, and fd_raw and its like of the other.
        reference: Split to compare with: train (as published numbers do), val or test.
        seed: Seed of the noise, and of subsets and cuts in the metrics.
        batch_size: Images at a time on each device.
        metrics: Any of fd (Fréchet distance), fd_inf (extrapolated to endless samples), kid
            (kernel distance), is (Inception score), pr (precision, recall, density, coverage) and
            accuracy (share of samples that the extractor's classifier takes for the class asked
            for).
        kid_subset_size: Images in a subset of the kernel distance.
        neighbours: Samples that are shown with their nearest real images, in which copies would
            show: a PNG in the run folder's samples, and a picture in TensorBoard. 0: none.
        cache: Folder in which the features of the real images are kept; null: ddpm_lightning in
            $XDG_CACHE_HOME, else in ~/.cache.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        every_n_steps: int = 5000,
        n: int = 2000,
        sampler: Sampler | None = None,
        guidance: float = 1.0,
        guidance_interval: tuple[float, float] | None = None,
        guidance_rescale: float = 0.0,
        ema: bool | Literal["both"] = True,
        reference: Split = "train",
        seed: int = 1,
        batch_size: int = 256,
        metrics: Sequence[Metric] = ("fd",),
        kid_subset_size: int = 1000,
        neighbours: int = 8,
        cache: str | None = None,
    ) -> None:
        super().__init__(every_n_steps)
        check_seed(seed)
        if n < 2 or batch_size < 1 or neighbours < 0:
            raise InputError(
                f"GenerativeMetrics(n={n}, batch_size={batch_size}, neighbours={neighbours}): n "
                "is at least 2, batch_size at least 1, neighbours not negative"
            )
        self.extractor = extractor
        self.n = n
        self.sampler = sampler or DDPM()
        self.guidance = Guidance(guidance, guidance_interval, guidance_rescale)
        self.averaged = (True, False) if ema == "both" else (bool(ema),)
        self.reference = reference
        self.seed = seed
        self.batch_size = batch_size
        self.measures = Measures(tuple(metrics), kid_subset_size, seed=seed)
        self.neighbours = neighbours
        self.cache = cache

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find missing weights and impossible settings before training."""
        if stage == "fit":
            assert isinstance(pl_module, DiffusionModule)
            levels_from_noise(self.sampler, pl_module.denoiser())
            pl_module.check_labels(None, self.guidance)
            self.measures.check(self.extractor, self.n)
            self.extractor.check()
            dim = self.extractor.dim or math.prod(pl_module.shape)
            if "fd" in self.measures.metrics and self.n <= dim and trainer.is_global_zero:
                warnings.warn(
                    f"{self.extractor.name} of {self.n} samples in {dim} dimensions is mostly "
                    "bias; compare it at the same n only, or use more",
                    stacklevel=2,
                )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute the features of the reference and the floor, before training."""
        assert isinstance(pl_module, DiffusionModule)
        data = getattr(trainer, "datamodule", None)
        source = condition_source(data, pl_module.condition_channels)
        self._condition = None if source is None else source.conditions(self.reference, self.n)
        if isinstance(data, Conditioned):
            data = data.data
        if not isinstance(data, ImageData):
            raise InputError(
                "GenerativeMetrics compares with images of an ImageData data module, but "
                f"training uses {type(data).__name__}; leave the callback out"
            )
        images, labels = data.images(self.reference)
        self.measures.check(self.extractor, self.n, len(images))
        self._data = data
        self._shown = images[:0]
        self._labels = labels if pl_module.num_classes is not None else None
        self._asked = labels_of(torch.arange(self.n), pl_module.num_classes, self._labels)
        if "accuracy" in self.measures.metrics:
            check_accuracy(self.extractor, data, self._asked)
        reference = self._features_of(images, trainer, pl_module)
        if not trainer.is_global_zero:  # one process measures, and tells the others
            return
        self._reference = Statistics.of(reference.features)
        self._floors = measured_floors(
            self.measures, self.extractor, reference, self.n, self._labels
        )
        self._images = images
        without_pairs = {"fd", "fd_inf", "is", "accuracy"}
        distances_only = set(self.measures.metrics) <= without_pairs and not self.neighbours
        self._reference_features = reference[:0] if distances_only else reference

    def _features_of(self, images: Tensor, trainer: Trainer, module: LightningModule) -> Features:
        """Find the features of the reference on disk, or share the work and keep them there."""
        found, path = None, None
        if trainer.is_global_zero:
            path = cache_path(self.extractor, images, self.cache)
            found = lookup(path)
        if trainer.strategy.broadcast(found is not None):
            return found if found is not None else _NOTHING
        indices = share(len(images), trainer) % len(images)
        parts = (images[batch] for batch in indices.split(self.batch_size))
        features = self._gathered(parts, len(images), trainer, module)
        if path is not None:
            store(features, path)
        return features

    def _gathered(
        self, batches: Iterator[Tensor], n: int, trainer: Trainer, module: LightningModule
    ) -> Features:
        """Extract this process's share, and put all shares in the order of the indices."""
        own = Features.compute(self.extractor, batches, module.device, self.batch_size)
        logits = None if own.logits is None else gather(own.logits, n, trainer)
        return Features(gather(own.features, n, trainer), logits)

    def run(self, trainer: Trainer, module: LightningModule, step: int) -> None:
        """Sample, measure, log, write metrics.json and print."""
        assert isinstance(module, DiffusionModule)
        for ema in self.averaged:
            samples = self._gathered(self._drawn(trainer, module, ema), self.n, trainer, module)
            scores: dict[str, Score] = {}
            if trainer.is_global_zero:
                self._show_neighbours(trainer, module, samples, step, ema)
                scores = self.measures(
                    self.extractor,
                    samples,
                    self._reference_features,
                    self._reference,
                    self._asked,
                    errors=self.n <= MOST_WITH_ERRORS,
                )
                scores = self._floors.beside(scores)
            for name, score in trainer.strategy.broadcast(scores).items():
                self._report(trainer, module, step, name, score, ema)

    def _drawn(self, trainer: Trainer, module: DiffusionModule, ema: bool) -> Iterator[Tensor]:
        """Generate this process's share, uint8, a batch at a time: the images are not kept."""
        progress = shows_progress(trainer)
        batches = share(self.n, trainer).split(self.batch_size)
        for indices in tqdm(batches, desc="samples", leave=False, disable=not progress):
            with trainer.precision_plugin.forward_context():
                samples = module.generate(
                    indices,
                    self.sampler,
                    self._labels,
                    self.guidance,
                    self.seed,
                    ema,
                    self._condition,
                    batch_size=self.batch_size,
                    progress=progress,
                ).x
            images = to_uint8(samples)
            if len(self._shown) < self.neighbours:
                self._shown = torch.cat([self._shown, images])[: self.neighbours]
            yield images

    def _show_neighbours(
        self, trainer: Trainer, module: DiffusionModule, samples: Features, step: int, ema: bool
    ) -> None:
        """Draw the first samples of this process, each before its nearest real images."""
        shown, self._shown = self._shown, self._shown[:0]
        if not len(shown):
            return
        # This process drew samples 0, world, 2·world, …
        own = samples.features[:: trainer.world_size][: len(shown)]
        panel = draw_neighbours(
            shown[: len(own)], own, self._reference_features.features, self._images.__getitem__
        )
        panel = captioned(panel, title=NEIGHBOURS)
        name = f"neighbours_{sampling_tag(self.sampler, module.schedule, self.guidance, ema)}"
        folder = Path(trainer.default_root_dir) / "samples"
        write_png(folder / f"{name}_step_{step:08d}.png", panel)
        show_picture(trainer, f"samples/{name}", panel, step)

    def _report(
        self,
        trainer: Trainer,
        module: DiffusionModule,
        step: int,
        name: str,
        score: Score,
        ema: bool,
    ) -> None:
        alias = score.alias if ema == self.averaged[0] else f"{score.alias}_raw"
        how = sampling_tag(self.sampler, module.schedule, self.guidance, ema)
        tag = f"{name}/n{self.n}_{how}_{self.reference}"
        log_result(trainer, tag, alias, score.value, step)
        if not trainer.is_global_zero:
            return
        result = {
            "step": step,
            "metric": name,
            "value": score.value,
            "standard_error": score.error,
            "spread": score.spread,
            **score.settings,
            "n": self.n,
            "sampler": self.sampler.clipped(module.data_range).describe(),
            "steps": len(self.sampler.levels(module.schedule)) - 1,
            "guidance": self.guidance.scale,
            "guidance_interval": plain(self.guidance.interval, "guidance_interval"),
            "guidance_rescale": self.guidance.rescale,
            "variance": module.variance.describe(),
            "weights": "ema" if ema else "raw",
            "precision": str(trainer.precision),
            "seed": self.seed,
            "data": identity(self._data),
            "reference": self.reference,
            "reference_count": self._reference.n,
            "floor": score.floor,
            "floor_n": score.floor_n,
            "floor_reference_n": score.floor_reference_n,
            "extractor": self.extractor.describe(),
            "extractor_sha256": self.extractor.digest,
            "resize": self.extractor.resize,
        }
        append_result(Path(trainer.default_root_dir), result, fitting=True)
        error = "" if score.error is None else f" ± {_shown(score.error)}"
        spread = "" if score.spread is None else f", spread {_shown(score.spread)}"
        real = "too few real images for a floor"
        if score.floor is not None:
            real = f"real images: {_shown(score.floor)}, {self._floors.said(self.n)}"
        value = f"{_shown(score.value)}{error}"
        tqdm.write(f"step {step}: {name} {value} (n={self.n}{spread}, {how}; {real})")


_NOTHING = Features(torch.empty(0, 0))
"""Stands in for the features on a process that does not measure."""


def _shown(value: float) -> str:
    return f"{value:.3f}" if abs(value) >= 1 else f"{value:.4f}"
