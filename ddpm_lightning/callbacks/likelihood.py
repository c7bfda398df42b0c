"""How likely the test data is under the model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ddpm_lightning.callbacks.results import append_result
from ddpm_lightning.callbacks.tensorboard import show_picture
from ddpm_lightning.checkpoints import read_checkpoint
from ddpm_lightning.checks import check_seed
from ddpm_lightning.diffusion.bound import decoder_of, strata, variational_bound
from ddpm_lightning.diffusion.denoiser import given
from ddpm_lightning.diffusion.likelihood import Decoder
from ddpm_lightning.diffusion.samplers import Quadratic, Spacing
from ddpm_lightning.errors import InputError
from ddpm_lightning.module import DiffusionModule
from ddpm_lightning.pictures.bound import terms_figure
from ddpm_lightning.pictures.figure import pixels_of, write_figure
from ddpm_lightning.randomness import IndexedNoise, Stream


class Likelihood(Callback):
    """Measures the variational bound on −log p(x_0) (DDPM eq. 5) on `test`, with the EMA weights.

    Logs test/bpd, bits a dimension, for images in [−1, 1], and test/npd, nats a dimension, for
    continuous data, each with its standard error (over samples, levels and noise) and its parts:
    …_L0 (the decoder), …_L1_to_LT-1 and …_LT (what x_T still tells). x0_hat is clipped to the
    data's range. metrics.json in the run folder keeps the result, bound_test.png shows the
    terms level by level.

    Args:
        evaluations: Network evaluations a sample, an unbiased estimate: one level of each of as
            many strata; null: every level; 0 leaves the measurement out.
        spacing: Where the strata end; L_0 is one of its own.
        decoder: p(x_0 | x_1); default: DiscretizedGaussian for data in [−1, 1], taken for 8-bit
            images, and GaussianDecoder for any other.
        ema: Averaged weights (true) or the ones in training (false).
        seed: Seed of noise and levels.

    Raises:
        InputError: An argument is out of range.
    """

    def __init__(
        self,
        evaluations: int | None = 32,
        spacing: Spacing = Quadratic(),
        decoder: Decoder | None = None,
        ema: bool = True,
        seed: int = 0,
    ) -> None:
        check_seed(seed)
        if evaluations in (1,) or (evaluations or 0) < 0:
            raise InputError(
                f"Likelihood(evaluations={evaluations}): at least 2, null for every level or 0 "
                "for none"
            )
        self.evaluations = evaluations
        self.spacing = spacing
        self.decoder = decoder
        self.ema = ema
        self.seed = seed
        self._seen = 0
        self._sums: Tensor | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find impossible settings before the test."""
        if stage == "test" and self.evaluations != 0:
            assert isinstance(pl_module, DiffusionModule)
            strata(pl_module.schedule, self.evaluations, self.spacing)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting samples."""
        self._seen, self._sums = 0, None

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Bound each sample of the batch, in full precision: hooks run outside autocast."""
        if self.evaluations == 0:
            return
        assert isinstance(pl_module, DiffusionModule)
        x0, y, condition = pl_module.parts_of(batch)
        # Rank r holds samples r, r + world, …: the index names the sample whatever the layout.
        index = (self._seen + torch.arange(len(x0))) * trainer.world_size + trainer.global_rank
        self._seen += len(x0)
        bound = variational_bound(
            given(pl_module.denoiser(self.ema), condition),
            x0,
            IndexedNoise(self.seed, index, Stream.LIKELIHOOD, x0.device),
            y if pl_module.num_classes is not None else None,
            self._decoder(pl_module),
            pl_module.data_range,
            self.evaluations,
            self.spacing,
        )
        terms = bound.terms.cpu().double()
        total = terms.sum(1)
        moments = torch.stack([total.new_tensor(len(x0)), total.sum(), total.square().sum()])
        sums = torch.cat([moments, terms.sum(0)])
        self._sums = sums if self._sums is None else self._sums + sums

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the processes' sums together; log, write and print."""
        if self._sums is None:
            return
        assert isinstance(pl_module, DiffusionModule)
        sums = self._sums
        if trainer.world_size > 1:
            on_device = sums.to(trainer.strategy.root_device)
            sums = trainer.strategy.reduce(on_device, reduce_op="sum").cpu()
        n, total, squares = sums[:3].tolist()
        terms = (sums[3:] / n).tolist()
        mean, standard_error = mean_and_error(n, total, squares)
        self._report(trainer, pl_module, int(n), mean, standard_error, terms)

    def _report(
        self,
        trainer: Trainer,
        module: DiffusionModule,
        n: int,
        mean: float,
        standard_error: float,
        terms: list[float],
    ) -> None:
        edges = strata(module.schedule, self.evaluations, self.spacing)
        decoder = self._decoder(module)
        name = "bpd" if decoder.unit == "bits" else "npd"
        parts = {"L0": terms[0], "L1_to_LT-1": sum(terms[1:-1]), "LT": terms[-1]}
        values = {name: mean, f"{name}_stderr": standard_error}
        values |= {f"{name}_{part}": value for part, value in parts.items()}
        module.log_dict({f"test/{tag}": value for tag, value in values.items()})
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        folder = Path(trainer.default_root_dir)
        figure = terms_figure(terms, edges, f"{decoder.unit} a dimension")
        write_figure(folder / "bound_test.png", figure)
        show_picture(trainer, "test/bound", pixels_of(figure), step_of(trainer))
        result = {
            "step": step_of(trainer),
            "metric": name,
            "value": mean,
            "standard_error": standard_error,
            "parts": parts,
            "terms": terms,
            "edges": edges,
            "n": n,
            "split": "test",
            "evaluations": len(edges) - 1,
            "T": module.schedule.T,
            "spacing": self.spacing.describe(),
            "decoder": decoder.describe(),
            "variance": module.variance.describe(),
            "weights": "ema" if self.ema else "raw",
            "seed": self.seed,
        }
        append_result(folder, result)
        print(
            f"{decoder.unit} a dimension ≤ {mean:.4f} ± {standard_error:.4f} on {n} test samples, "
            f"{len(edges) - 1} of {module.schedule.T} levels each: "
            + ", ".join(f"{part} {value:.4f}" for part, value in parts.items())
        )

    def _decoder(self, module: DiffusionModule) -> Decoder:
        return self.decoder or decoder_of(module.data_range)


def mean_and_error(n: float, total: float, squares: float) -> tuple[float, float]:
    """The mean of n values and its standard error, from their sum and that of their squares."""
    mean = total / n
    variance = max(0.0, squares / n - mean**2) / (n - 1) if n > 1 else math.nan
    return mean, variance**0.5


def step_of(trainer: Trainer) -> int:
    """The optimizer steps behind the weights; a test alone restores no counter."""
    if trainer.ckpt_path is not None:
        return int(read_checkpoint(trainer.ckpt_path)["global_step"])
    return trainer.global_step
