"""Distances between samples and data while training."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from tqdm.auto import tqdm

from ddpm_lightning.callbacks.periodic import Periodic
from ddpm_lightning.callbacks.sharing import gather, share, shows_progress
from ddpm_lightning.configurable import plain
from ddpm_lightning.data.conditioned import Conditioned, condition_source
from ddpm_lightning.data.image_data import ImageData
from ddpm_lightning.data.in_memory import Split
from ddpm_lightning.diffusion.denoiser import Guidance
from ddpm_lightning.diffusion.samplers import DDPM, Sampler
from ddpm_lightning.errors import InputError
from ddpm_lightning.images import to_uint8
from ddpm_lightning.metrics import FeatureExtractor, Statistics, frechet_distance
from ddpm_lightning.module import DiffusionModule


class GenerativeMetrics(Periodic):
    """Logs the Fréchet distance between samples and the un-augmented training images.

    Tags name what was measured (extractor, number of samples, sampler and its steps, weights,
    reference split); ``fid`` (Inception) or ``fd`` (any other extractor) is the stable alias for
    ``monitor:``. Beside it stands, for scale, the distance of as many real images to the other
    images of the reference: samples of that value differ from the data about as much as the data
    from itself. metrics.json in the run folder keeps every result.

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
        ema: Averaged weights (true) or the ones in training (false).
        reference: Split to compare with: train (as published numbers do), val or test.
        seed: Seed of the noise.
        batch_size: Images at a time on each device.
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
        ema: bool = True,
        reference: Split = "train",
        seed: int = 1,
        batch_size: int = 256,
    ) -> None:
        super().__init__(every_n_steps)
        if n < 2 or batch_size < 1 or seed < 0:
            raise InputError(
                f"GenerativeMetrics(n={n}, batch_size={batch_size}, seed={seed}): n is at least "
                "2, batch_size at least 1, seed not negative"
            )
        self.extractor = extractor
        self.n = n
        self.sampler = sampler or DDPM()
        self.guidance = Guidance(guidance, guidance_interval, guidance_rescale)
        self.ema = ema
        self.reference = reference
        self.seed = seed
        self.batch_size = batch_size

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find missing weights and impossible settings before training."""
        if stage == "fit":
            assert isinstance(pl_module, DiffusionModule)
            self.sampler.levels(pl_module.schedule)
            pl_module.check_labels(None, self.guidance)
            self.extractor.check()
            if self.n <= self.extractor.dim and trainer.is_global_zero:
                warnings.warn(
                    f"{self.extractor.name} of {self.n} samples in {self.extractor.dim} "
                    "dimensions is mostly bias; compare it at the same n only, or use more",
                    stacklevel=2,
                )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute the reference statistics and the floor, before training."""
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
        self._labels = labels if pl_module.num_classes is not None else None
        indices = share(len(images), trainer)
        bar = tqdm(
            indices.split(self.batch_size),
            desc=f"{self.extractor.name} features of the {self.reference} images",
            leave=False,
            disable=not shows_progress(trainer),
        )
        features = torch.cat(
            [
                self.extractor(images[batch % len(images)].to(pl_module.device)).cpu()
                for batch in bar
            ]
        )
        features = gather(features, len(images), trainer)
        self._reference = Statistics.of(features)
        # Of as many real images against the others: fewer than the samples are compared with, so
        # a good model may score a little lower.
        count = min(self.n, len(features) // 2)
        order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
        self._floor = frechet_distance(
            Statistics.of(features[order[:count]]), Statistics.of(features[order[count:]])
        )
        self._floor_count = count

    def run(self, trainer: Trainer, module: LightningModule, step: int) -> None:
        """Sample, measure, log, write metrics.json and print."""
        assert isinstance(module, DiffusionModule)
        with trainer.precision_plugin.forward_context():
            samples = module.generate(
                share(self.n, trainer),
                self.sampler,
                self._labels,
                self.guidance,
                self.seed,
                self.ema,
                self._condition,
                batch_size=self.batch_size,
                progress=shows_progress(trainer),
            ).x
        features = [
            self.extractor(batch.to(module.device)).cpu()
            for batch in to_uint8(samples).split(self.batch_size)
        ]
        gathered = gather(torch.cat(features), self.n, trainer)
        distance = frechet_distance(Statistics.of(gathered), self._reference)
        self._report(trainer, module, step, distance)

    def _report(
        self, trainer: Trainer, module: DiffusionModule, step: int, distance: float
    ) -> None:
        sampler = self.sampler.tag(module.schedule)
        weights = "ema" if self.ema else "raw"
        name, alias = self.extractor.name, self.extractor.alias
        how = "_".join(filter(None, (sampler, self.guidance.tag, weights)))
        tag = f"{name}/n{self.n}_{how}_{self.reference}"
        if step % self.every_n_steps == 0:  # not at the end of training, where logging is over
            module.log(alias, distance, on_step=True, on_epoch=False, logger=False)
        for logger in trainer.loggers:
            logger.log_metrics({tag: distance, alias: distance}, step)
        if not trainer.is_global_zero:
            return
        result = {
            "step": step,
            "metric": name,
            "value": distance,
            "n": self.n,
            "sampler": self.sampler.describe(),
            "steps": len(self.sampler.levels(module.schedule)) - 1,
            "guidance": self.guidance.scale,
            "guidance_interval": plain(self.guidance.interval, "guidance_interval"),
            "guidance_rescale": self.guidance.rescale,
            "weights": weights,
            "precision": str(trainer.precision),
            "seed": self.seed,
            "reference": self.reference,
            "reference_count": self._reference.n,
            "floor": self._floor,
            "floor_n": self._floor_count,
            "extractor": self.extractor.describe(),
            "extractor_sha256": self.extractor.digest,
        }
        append_result(Path(trainer.default_root_dir) / "metrics.json", result)
        tqdm.write(
            f"step {step}: {name} {distance:.3f} (n={self.n}, {how}; real against "
            f"real at n={self._floor_count}: {self._floor:.3f})"
        )


def append_result(path: Path, result: dict[str, Any]) -> None:
    """Add a result to metrics.json, replacing those that a resumed run measures anew."""
    results = json.loads(path.read_text()) if path.exists() else []
    settings = [key for key in result if key not in ("step", "value", "standard_error", "parts")]

    def superseded(old: dict[str, Any]) -> bool:
        same = all(old.get(key) == result[key] for key in settings)
        return same and old["step"] >= result["step"]

    results = [old for old in results if not superseded(old)] + [result]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    partial.write_text(json.dumps(results, indent=2) + "\n")
    partial.replace(path)
