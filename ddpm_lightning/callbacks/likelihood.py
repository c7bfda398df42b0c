"""Likelihood of the test data: the variational bound, and the probability-flow ODE."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torchmetrics
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from typing_extensions import override

from ddpm_lightning.batch import Batch
from ddpm_lightning.callbacks.results import metrics_file
from ddpm_lightning.checkpoint import read_checkpoint
from ddpm_lightning.data.data_module import identity
from ddpm_lightning.diffusion.bound import decoder_of, strata, variational_bound
from ddpm_lightning.diffusion.decoders import Decoder
from ddpm_lightning.diffusion.flow import adaptive_flow_likelihood, flow_likelihood
from ddpm_lightning.diffusion.samplers import QuadraticSpacing, Spacing
from ddpm_lightning.errors import InputError, above, at_least
from ddpm_lightning.evaluation.likelihood import bound_settings
from ddpm_lightning.metrics.metric import Score
from ddpm_lightning.metrics.result import Result, append_result
from ddpm_lightning.module import DiffusionModule
from ddpm_lightning.plots.figure import terms_figure, write_figure
from ddpm_lightning.randomness import IndexedNoise, Stream, check_seed
from ddpm_lightning.sampling import Weights
from ddpm_lightning.trackers import show


class Likelihood(Callback):
    """Measures the negative log-likelihood (NLL) of the test split on `test`, in two ways.

    The variational bound on −log p(x_0) (DDPM eq. 5) logs test/bpd, bits a dimension, for images
    in [−1, 1], and test/npd, nats a dimension, for continuous data, each with its standard error
    and its parts: …_L0 (the decoder), …_L1_to_LT-1 and …_LT (what x_T still tells). x0_hat is
    clipped to the data's range. The probability-flow ODE (Song et al. 2021, eq. 39) logs
    test/bpd_flow or test/npd_flow: no bound, but the likelihood of the ODE's own distribution, up
    to the error of its steps; images are taken for 8 bits and filled up by uniform noise.
    metrics.json in the run folder keeps the results, bound_test.png shows the terms of the bound.

    Args:
        evaluations: Network evaluations (NFE) a sample of the bound, an unbiased estimate: one
            level of each of as many strata; null: every level; 0 leaves the bound out.
        spacing: Where the strata end; L_0 is one of its own.
        decoder: p(x_0 | x_1); default: DiscretizedGaussian for data in [−1, 1], taken for 8-bit
            images, and GaussianDecoder for any other.
        flow_n: Test samples of the ODE's likelihood, the first of the split; 0: none.
        flow_steps: Steps of Heun's method, of two network evaluations each; null: every level.
        flow_probes: Vectors of Hutchinson's estimate of the divergence, a backward pass each;
            null: the exact one, for data of at most 64 dimensions.
        weights: ema (averaged) or raw (the ones in training).
        seed: Seed of noise, levels and probes.
        flow_tolerance: Instead of flow_steps, Runge–Kutta 5(4) to this relative and absolute
            tolerance, e.g. 1e-5; null: Heun's method.

    Raises:
        InputError: An argument is out of range.
    """

    def __init__(
        self,
        evaluations: int | None = 32,
        spacing: Spacing = QuadraticSpacing(),
        decoder: Decoder | None = None,
        flow_n: int = 0,
        flow_steps: int | None = 100,
        flow_probes: int | None = 1,
        weights: Weights = "ema",
        seed: int = 0,
        flow_tolerance: float | None = None,
    ) -> None:
        check_seed(seed)
        above(0, self, flow_tolerance=flow_tolerance)
        at_least(0, self, evaluations=evaluations, flow_n=flow_n)
        at_least(1, self, flow_steps=flow_steps, flow_probes=flow_probes)
        self.evaluations = evaluations
        self.spacing = spacing
        self.decoder = decoder
        self.flow_n = flow_n
        self.flow_steps = flow_steps
        self.flow_probes = flow_probes
        self.flow_tolerance = flow_tolerance
        self.weights: Weights = weights
        self.seed = seed

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.flow_n and isinstance(trainer.strategy, ModelParallelStrategy):
            raise InputError(
                "the flow's likelihood is not measured in shards, which wait for each other; give "
                "--likelihood.flow_n 0, or test without ModelParallelStrategy"
            )
        if stage == "test" and self.evaluations != 0:
            assert isinstance(pl_module, DiffusionModule)
            strata(pl_module.schedule, self.evaluations, self.spacing)

    @override
    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DiffusionModule)
        columns = 1
        if self.evaluations != 0:
            columns = len(strata(pl_module.schedule, self.evaluations, self.spacing))
        # On a GPU's device only where processes reduce there: MPS has no float64.
        root = trainer.strategy.root_device
        device = root if root.type == "cuda" else "cpu"
        self._bound, self._flow = Moments(columns).to(device), Moments(1).to(device)
        self._flow_evaluations = 0

    @override
    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        # In full precision, for hooks run outside autocast.
        assert isinstance(pl_module, DiffusionModule)
        device, condition = batch.x0.device, pl_module.known(batch)
        denoiser, x0 = pl_module.denoiser(self.weights), pl_module.latents(batch)
        offset = _offset(pl_module)
        if self.evaluations != 0:
            bound = variational_bound(
                denoiser,
                x0,
                IndexedNoise(self.seed, batch.index, Stream.LIKELIHOOD, device),
                condition,
                self.decoder,
                pl_module.latent.data_range,
                self.evaluations,
                self.spacing,
            )
            bound.terms[:, 0] += offset
            self._bound.update(bound.terms)
        count = int((batch.index < self.flow_n).sum())  # they come first
        if count:
            arguments = (
                denoiser,
                x0[:count],
                IndexedNoise(self.seed, batch.index[:count], Stream.LIKELIHOOD, device),
                condition.rows(slice(count)),
                256 if decoder_of(pl_module.latent.data_range).unit == "bits" else None,
                self.flow_probes,
            )
            if self.flow_tolerance is None:
                flow = flow_likelihood(*arguments, self.flow_steps)
            else:
                lowest = pl_module.timesteps.lowest(pl_module.schedule)
                flow = adaptive_flow_likelihood(*arguments, self.flow_tolerance, lowest)
            self._flow.update(flow.nll[:, None] + offset)
            self._flow_evaluations = max(self._flow_evaluations, flow.evaluations)

    @override
    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DiffusionModule)
        if self.evaluations != 0:
            self._report_bound(trainer, pl_module)
        if self.flow_n:
            self._report_flow(trainer, pl_module)

    def _report_bound(self, trainer: Trainer, module: DiffusionModule) -> None:
        edges = strata(module.schedule, self.evaluations, self.spacing)
        decoder = self.decoder or decoder_of(module.latent.data_range)
        n, mean, error, terms = self._bound.compute()
        parts = {"L0": terms[0], "L1_to_LT-1": sum(terms[1:-1]), "LT": terms[-1]}
        data = getattr(trainer, "datamodule", None)
        settings = bound_settings(data, n, edges, self.spacing, decoder)
        name = ("bpd" if decoder.unit == "bits" else "npd") + _of_latents(module)
        module.log_dict({f"test/{name}_{part}": value for part, value in parts.items()})
        parts_in_full = parts | {"edges": edges, "terms": terms}
        score = Score(mean, error, settings=settings, parts=parts_in_full)
        if not self._report(trainer, module, name, score):
            return
        figure = terms_figure(terms, edges, f"{decoder.unit} a dimension")
        file = Path(trainer.default_root_dir) / "bound_test.png"
        write_figure(file, figure)
        show(trainer, "test/bound", file, step_of(trainer))
        print(
            f"{decoder.unit} a dimension ≤ {in_words(score)} on {n} test samples, "
            f"{len(edges) - 1} of {module.schedule.T} levels each: "
            + ", ".join(f"{part} {value:.4f}" for part, value in parts.items())
        )

    def _report_flow(self, trainer: Trainer, module: DiffusionModule) -> None:
        unit = decoder_of(module.latent.data_range).unit
        n, mean, error, _ = self._flow.compute()
        name = ("bpd_flow" if unit == "bits" else "npd_flow") + _of_latents(module)
        settings = {
            "data": identity(getattr(trainer, "datamodule", None)),
            "split": "test",
            "count": n,
            "steps": self.flow_steps,
            "probes": self.flow_probes,
        }
        if self.flow_tolerance is not None:
            settings |= {"steps": None, "tolerance": self.flow_tolerance}
        score = Score(mean, error, settings=settings)
        if self._report(trainer, module, name, score):
            flow = f"{unit} a dimension of the probability flow"
            cost = f"NFE {self._flow_evaluations} each"
            print(f"{flow}: {in_words(score)} on {n} test samples, {cost}")

    def _report(self, trainer: Trainer, module: DiffusionModule, name: str, score: Score) -> bool:
        """Log a likelihood and keep it in metrics.json; whether it is to be printed, too."""
        logged = {f"test/{name}": score.value, f"test/{name}_stderr": score.standard_error}
        module.log_dict({tag: value for tag, value in logged.items() if value is not None})
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return False
        samples = {
            "variance": module.variance.describe(),
            "weights": self.weights,
            "seed": self.seed,
        }
        append_result(metrics_file(trainer), Result(name, score, samples, step=step_of(trainer)))
        return True


def _offset(module: DiffusionModule) -> float:
    """What makes −log p(z) that of the data, a dimension, in nats; 0 where there is no such."""
    return -(module.codec.log_det() or 0.0) / math.prod(module.latent.shape)


def _of_latents(module: DiffusionModule) -> str:
    """The end of a likelihood's name that is of latents alone, for the data has none."""
    return "_latent" if module.codec.log_det() is None else ""


class Moments(torchmetrics.Metric):
    """Mean of rows and standard error of their sums, over batches and processes."""

    full_state_update = False
    sums: Tensor

    def __init__(self, columns: int) -> None:
        super().__init__()
        zeros = torch.zeros(3 + columns, dtype=torch.float64)
        self.add_state("sums", default=zeros, dist_reduce_fx="sum")

    def update(self, rows: Tensor) -> None:
        """Add rows [B, columns]."""
        rows = rows.detach().to(self.sums)
        total = rows.sum(1)
        moments = torch.stack([total.new_tensor(len(rows)), total.sum(), total.square().sum()])
        self.sums = self.sums + torch.cat([moments, rows.sum(0)])

    def compute(self) -> tuple[int, float, float, list[float]]:
        """Number of rows; mean of their sums and its standard error; mean of each column."""
        n, total, squares = self.sums[:3].tolist()
        mean = total / n
        variance = max(0.0, squares / n - mean**2) / (n - 1) if n > 1 else math.nan
        return int(n), mean, variance**0.5, (self.sums[3:] / n).tolist()


def in_words(score: Score) -> str:
    """Write a likelihood with its standard error, where that is known."""
    error = score.standard_error
    return f"{score.value:.4f}" + ("" if error is None else f" ± {error:.4f}")


def step_of(trainer: Trainer) -> int:
    """The optimizer steps behind the weights; a test alone restores no counter."""
    if trainer.ckpt_path is not None:
        return int(read_checkpoint(trainer.ckpt_path)["global_step"])
    return trainer.global_step
