"""Distances between samples and data of few dimensions while training."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import combinations
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from tqdm.auto import tqdm

from ddpm_lightning.callbacks.periodic import Periodic
from ddpm_lightning.callbacks.results import append_result, log_result
from ddpm_lightning.callbacks.sharing import gather, share, shows_progress
from ddpm_lightning.checks import check_seed
from ddpm_lightning.configurable import plain
from ddpm_lightning.data.identity import identity
from ddpm_lightning.data.in_memory import InMemoryData, Split
from ddpm_lightning.diffusion.denoiser import Guidance
from ddpm_lightning.diffusion.samplers import DDPM, Sampler
from ddpm_lightning.errors import InputError
from ddpm_lightning.metrics.points import mmd, sliced_wasserstein
from ddpm_lightning.module import DiffusionModule
from ddpm_lightning.sampling import levels_from_noise, sampling_tag

SETS = 5
"""Distances to average: one set of a few thousand points is off by chance as much as by error."""


class PointMetrics(Periodic):
    """Logs two distances between samples and real points: sliced Wasserstein-1 and squared MMD.

    The first points of the split make up to five sets of n, and each is compared with n samples of
    its own; the distance is the mean. Beside it stands, for scale, the mean over the pairs of the
    real sets, real against real at the same n: samples that reach it cannot be told from the data
    by this distance. Tags name what was measured (points in a set, sampler and its steps, weights,
    split); ``swd`` and ``mmd`` are the stable aliases for ``monitor:``. metrics.json in the run
    folder keeps every result.

    Args:
        every_n_steps: Optimizer steps from one measurement to the next; the end of training has
            one, too.
        n: Points in a set; the split holds at least two sets. Distances at different n do not
            compare.
        sampler: How to sample; default: DDPM over all levels. Clips to the data's range.
        guidance: Strength of classifier-free guidance of a conditional model; 1 is none. The
            labels are those of the real points, in their order.
        guidance_interval: Guide only at levels low < t/T ≤ high, e.g. [0.2, 0.8]; null: at all.
        guidance_rescale: Share, 0 to 1, by which guided predictions are brought back to the spread
            of unguided ones.
        ema: Averaged weights (true) or the ones in training (false).
        reference: Split to compare with: val (as training has not seen it), train or test.
        projections: Random directions of the sliced Wasserstein distance.
        bandwidths: Widths of the MMD's Gaussian kernels, in the units of the data.
        seed: Seed of the noise.
        batch_size: Samples at a time on each device.

    Raises:
        InputError: A number is out of range.
    """

    def __init__(
        self,
        every_n_steps: int = 1000,
        n: int = 2000,
        sampler: Sampler | None = None,
        guidance: float = 1.0,
        guidance_interval: tuple[float, float] | None = None,
        guidance_rescale: float = 0.0,
        ema: bool = True,
        reference: Split = "val",
        projections: int = 256,
        bandwidths: Sequence[float] = (0.1, 0.3, 1.0),
        seed: int = 1,
        batch_size: int = 2000,
    ) -> None:
        super().__init__(every_n_steps)
        check_seed(seed)
        if n < 2 or min(projections, batch_size) < 1:
            raise InputError(
                f"PointMetrics(n={n}, projections={projections}, batch_size={batch_size}): n is "
                "at least 2, the others at least 1"
            )
        if not bandwidths or min(bandwidths) <= 0:
            raise InputError(
                f"PointMetrics(bandwidths={list(bandwidths)}): give one or more, each above 0"
            )
        self.n = n
        self.sampler = sampler or DDPM()
        self.guidance = Guidance(guidance, guidance_interval, guidance_rescale)
        self.ema = ema
        self.reference = reference
        self.seed = seed
        self.batch_size = batch_size
        self._distances: dict[str, partial[float]] = {
            "swd": partial(sliced_wasserstein, projections=projections),
            "mmd": partial(mmd, bandwidths=list(bandwidths)),
        }

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find impossible settings before training."""
        if stage == "fit":
            assert isinstance(pl_module, DiffusionModule)
            levels_from_noise(self.sampler, pl_module.denoiser())
            pl_module.check_labels(None, self.guidance)
            if len(pl_module.shape) != 1:
                raise InputError(
                    f"PointMetrics compares points, not data of shape {list(pl_module.shape)}; "
                    "GenerativeMetrics compares images"
                )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Cut the split into sets and compute the floor, before training."""
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, InMemoryData):
            raise InputError(
                "PointMetrics compares with the points of an InMemoryData data module, but "
                f"training uses {type(data).__name__}; leave the callback out"
            )
        points, labels = data.finished(self.reference)
        if len(points) < 2 * self.n:
            raise InputError(
                f"PointMetrics(n={self.n}) needs {2 * self.n} points for real against real, and "
                f"the {self.reference} split has {len(points)}; use fewer, or more data (--data.n)"
            )
        self._data = data
        self._labels = labels if pl_module.num_classes is not None else None
        self._sets = points.split(self.n)[: min(SETS, len(points) // self.n)]
        self._count = len(self._sets) * self.n
        self._floor = {
            name: _mean([distance(a, b) for a, b in combinations(self._sets, 2)])
            for name, distance in self._distances.items()
        }

    def run(self, trainer: Trainer, module: LightningModule, step: int) -> None:
        """Sample, measure, log, write metrics.json and print."""
        assert isinstance(module, DiffusionModule)
        with trainer.precision_plugin.forward_context():
            samples = module.generate(
                share(self._count, trainer),
                self.sampler,
                self._labels,
                self.guidance,
                self.seed,
                self.ema,
                batch_size=self.batch_size,
                progress=shows_progress(trainer),
            ).x
        drawn = gather(samples, self._count, trainer).split(self.n)
        for name, distance in self._distances.items():
            value = _mean([distance(x, y) for x, y in zip(drawn, self._sets, strict=True)])
            self._report(trainer, module, step, name, value)

    def _report(
        self, trainer: Trainer, module: DiffusionModule, step: int, name: str, value: float
    ) -> None:
        how = sampling_tag(self.sampler, module.schedule, self.guidance, self.ema)
        tag = f"{name}/n{self.n}_{how}_{self.reference}"
        log_result(trainer, tag, name, value, step)
        if not trainer.is_global_zero:
            return
        result = {
            "step": step,
            "metric": name,
            "value": value,
            "n": self.n,
            "sampler": self.sampler.clipped(module.data_range).describe(),
            "steps": len(self.sampler.levels(module.schedule)) - 1,
            "guidance": self.guidance.scale,
            "guidance_interval": plain(self.guidance.interval, "guidance_interval"),
            "guidance_rescale": self.guidance.rescale,
            "variance": module.variance.describe(),
            "weights": "ema" if self.ema else "raw",
            "precision": str(trainer.precision),
            "seed": self.seed,
            "data": identity(self._data),
            "reference": self.reference,
            "sets": len(self._sets),
            "floor": self._floor[name],
            "floor_n": self.n,
            "floor_reference_n": self.n,
            **self._distances[name].keywords,
        }
        append_result(Path(trainer.default_root_dir), result, fitting=True)
        tqdm.write(
            f"step {step}: {name} {value:.5f} (n={self.n}, {how}; real against real: "
            f"{self._floor[name]:.5f})"
        )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
