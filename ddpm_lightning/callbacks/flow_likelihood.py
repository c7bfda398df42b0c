"""The likelihood of test data by the probability flow: the second way, beside the bound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from ddpm_lightning.callbacks.likelihood import mean_and_error, step_of
from ddpm_lightning.callbacks.results import append_result
from ddpm_lightning.checks import check_seed
from ddpm_lightning.diffusion.bound import decoder_of
from ddpm_lightning.diffusion.denoiser import given
from ddpm_lightning.diffusion.flow_likelihood import flow_likelihood
from ddpm_lightning.errors import InputError
from ddpm_lightning.module import DiffusionModule
from ddpm_lightning.randomness import IndexedNoise, Stream


class FlowLikelihood(Callback):
    """Measures −log p(x_0) by the probability-flow ODE (Song et al. 2021, eq. 39) on `test`.

    Logs test/bpd_flow, bits a dimension, for images in [−1, 1], taken for 8 bits and filled up by
    uniform noise, and test/npd_flow, nats a dimension, for continuous data, each with its standard
    error over samples. metrics.json in the run folder keeps the result. Unlike the bound it is
    the likelihood of the ODE's own distribution, up to the error of its steps.

    Args:
        n: Test samples that are measured, the first of the split; 0: leave it out.
        steps: Steps of Heun's method, of two network evaluations each; null: every level.
        probes: Vectors of Hutchinson's estimate of the divergence, a backward pass each; null:
            the exact one, for data of at most 64 dimensions.
        ema: Averaged weights (true) or the ones in training (false).
        seed: Seed of noise and vectors.

    Raises:
        InputError: A number is out of range.
    """

    def __init__(
        self,
        n: int = 0,
        steps: int | None = 100,
        probes: int | None = 1,
        ema: bool = True,
        seed: int = 0,
    ) -> None:
        check_seed(seed)
        if n < 0 or (steps or 1) < 1 or (1 if probes is None else probes) < 1:
            raise InputError(
                f"FlowLikelihood(n={n}, steps={steps}, probes={probes}): n is not negative, steps "
                "and probes at least 1"
            )
        self.n = n
        self.steps = steps
        self.probes = probes
        self.ema = ema
        self.seed = seed
        self._seen = 0
        self._moments = torch.zeros(3, dtype=torch.float64)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting samples."""
        self._seen, self._moments = 0, torch.zeros(3, dtype=torch.float64)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Follow the samples of the batch to noise, in full precision."""
        assert isinstance(pl_module, DiffusionModule)
        x0, y, condition = pl_module.parts_of(batch)
        # Rank r holds samples r, r + world, …: the index names the sample whatever the layout.
        index = (self._seen + torch.arange(len(x0))) * trainer.world_size + trainer.global_rank
        self._seen += len(x0)
        count = int((index < self.n).sum())  # they come first
        if not count:
            return
        condition = None if condition is None else condition[:count]
        likelihood = flow_likelihood(
            given(pl_module.denoiser(self.ema), condition),
            x0[:count],
            IndexedNoise(self.seed, index[:count], Stream.LIKELIHOOD, x0.device),
            y[:count] if pl_module.num_classes is not None else None,
            256 if self._bits(pl_module) else None,
            self.probes,
            self.steps,
        )
        nll = likelihood.nll.double().cpu()
        self._moments += torch.stack([nll.new_tensor(count), nll.sum(), nll.square().sum()])

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the processes' sums together; log, write and print."""
        assert isinstance(pl_module, DiffusionModule)
        if not self.n:
            return
        moments = self._moments
        if trainer.world_size > 1:
            on_device = moments.to(trainer.strategy.root_device)
            moments = trainer.strategy.reduce(on_device, reduce_op="sum").cpu()
        n, total, squares = moments.tolist()
        mean, standard_error = mean_and_error(n, total, squares)
        name = "bpd_flow" if self._bits(pl_module) else "npd_flow"
        pl_module.log_dict({f"test/{name}": mean, f"test/{name}_stderr": standard_error})
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        result = {
            "step": step_of(trainer),
            "metric": name,
            "value": mean,
            "standard_error": standard_error,
            "n": int(n),
            "split": "test",
            "steps": self.steps,
            "probes": self.probes,
            "weights": "ema" if self.ema else "raw",
            "seed": self.seed,
        }
        append_result(Path(trainer.default_root_dir), result)
        unit = "bits" if self._bits(pl_module) else "nats"
        print(
            f"{unit} a dimension of the probability flow: {mean:.4f} ± {standard_error:.4f} on "
            f"{int(n)} test samples"
        )

    @staticmethod
    def _bits(module: DiffusionModule) -> bool:
        return decoder_of(module.data_range).unit == "bits"
