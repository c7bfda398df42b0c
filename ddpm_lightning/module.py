"""The LightningModule: noising, loss, EMA and optimizer around a network and its mathematics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from ddpm_lightning.batch import Batch, Condition, DataSpec
from ddpm_lightning.checkpoint import FORMAT, KEY, read_checkpoint, rebuild, upgraded
from ddpm_lightning.configurable import Configurable, build, configurable_class
from ddpm_lightning.diffusion.denoiser import Denoiser
from ddpm_lightning.diffusion.guidance import Guidance
from ddpm_lightning.diffusion.label_dropout import LabelDropout
from ddpm_lightning.diffusion.losses import MSE, NoisedBatch, Objective
from ddpm_lightning.diffusion.parameterizations import Eps, Parameterization
from ddpm_lightning.diffusion.prediction import FixedSmall, Variance
from ddpm_lightning.diffusion.samplers import Sampler
from ddpm_lightning.diffusion.schedules import Linear, Schedule
from ddpm_lightning.diffusion.timesteps import Timesteps, Uniform, level_of
from ddpm_lightning.ema import EMA
from ddpm_lightning.errors import InputError
from ddpm_lightning.finite import check_finite_loss, check_finite_weights
from ddpm_lightning.networks.network import Network
from ddpm_lightning.networks.unet import UNet
from ddpm_lightning.optimization import (
    make_lr_schedule,
    make_optimizer,
    refuse_fused_clipping,
)
from ddpm_lightning.randomness import BatchNoise, Draw, IndexedNoise, Stream, step_seed
from ddpm_lightning.resume import (
    apply_settings,
    begin_next_epoch,
    check_optimization,
    check_run,
    describe_optimization,
    describe_run,
)
from ddpm_lightning.sampling import Request, Samples, Weights, generate

GOLDEN_RATIO = 0.6180339887498949


class DiffusionModule(Configurable, LightningModule):
    """A diffusion model in training: data in, loss out, EMA beside it.

    Args:
        data: What a network must know of the data. The command line takes it from the data
            module.
        net: The network, as a factory of (data, output channels).
        schedule: The noise schedule.
        parameterization: What the network predicts.
        variance: Variance of the reverse steps.
        objective: The training loss.
        timesteps: Which noise levels (timesteps) a training batch sees.
        conditional: Train with class labels.
        label_dropout: Which rows forget their label in training, for classifier-free guidance.
        ema: The average of the weights.
        optimizer: The optimizer.
        warmup_steps: Optimizer steps over which the learning rate rises linearly from 0.
        lr_schedule: Learning rate after the warm-up, stepped per optimizer step; null: constant.
        compile: Compile the network with torch.compile for training.
        seed: Seed of noise, levels and label dropout. The command line takes it from
            seed_everything.

    Raises:
        InputError: The parts do not fit each other or the data.
    """

    def __init__(
        self,
        data: DataSpec,
        net: Callable[[DataSpec, int], Network] = UNet,
        schedule: Schedule = Linear(),
        parameterization: Parameterization = Eps(),
        variance: Variance = FixedSmall(),
        objective: Objective = MSE(),
        timesteps: Timesteps = Uniform(),
        conditional: bool = False,
        label_dropout: LabelDropout = LabelDropout(),
        ema: EMA = EMA(),
        optimizer: OptimizerCallable = partial(torch.optim.Adam, lr=2e-4),
        warmup_steps: int = 0,
        lr_schedule: LRSchedulerCallable | None = None,
        compile: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if conditional and data.num_classes is None:
            raise InputError("conditional: true needs data with classes; this data has none")
        if warmup_steps < 0:
            raise InputError(f"warmup_steps={warmup_steps}: give 0 or more optimizer steps")
        self.data = data if conditional else replace(data, num_classes=None)
        channels = data.shape[0]
        self.net = net(self.data, channels + variance.extra_channels(channels))
        # Those that hold tensors are made anew: two modules must not share one default.
        self.schedule = build(schedule.describe())
        self.ema = build(ema.describe())
        self.ema.follow(self.net)
        self.parameterization = parameterization
        self.variance = variance
        self.objective = objective
        self.timesteps = timesteps
        self.label_dropout = label_dropout
        self.optimizer = optimizer
        self.warmup_steps = warmup_steps
        self.lr_schedule = lr_schedule
        self.compile_net = compile
        self.seed = seed
        # Of this run's optimizer, and of the one in the checkpoint that it goes on from.
        self._optimization: dict[str, Any] | None = None
        self._resumed: dict[str, Any] | None = None
        self._losses: list[tuple[Tensor, Tensor]] = []  # of the micro-batches of a step
        self._denoisers: dict[Weights, Denoiser] = {}
        self.objective.check(self.denoiser())
        self.save_hyperparameters(self._hyper_parameters(data))

    # ------------------------------------------------------------------ training

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Noise a batch and score the network on it (DDPM algorithm 1).

        Returns:
            ``loss``, the levels ``t`` [B] and the per-sample losses ``per_sample`` [B].
        """
        noise = self._training_noise(batch, batch_idx)
        t, weight = self.timesteps(self.schedule, noise)
        condition = self.known(batch)
        if self.data.num_classes is not None:
            condition = self.label_dropout(condition, noise)
        terms = self.objective(self.denoiser("raw"), self._noised(batch, t, noise, condition))
        loss = (weight * terms["loss"]).mean()
        self._watch(loss, t, terms)
        return {"loss": loss, "t": t, "per_sample": terms["loss"].detach()}

    def _training_noise(self, batch: Batch, batch_idx: int) -> BatchNoise:
        """The noise of these rows of the step's global batch; dropout is seeded, too."""
        if batch.row is None:
            raise InputError(
                "the training batch does not say where its rows stand in the global batch; give "
                "Batch(x0, condition, index, row), as ddpm_lightning.data does"
            )
        parts, step = self.trainer.accumulate_grad_batches, self.trainer.global_step
        size = len(batch.x0) * self.trainer.world_size * parts
        # What the layers draw themselves (dropout) is a function of the step, too.
        torch.manual_seed(step_seed(self.seed, step, batch_idx % parts, self.global_rank))
        return BatchNoise(self.seed, step, batch.row, size, self.device)

    def _noised(
        self, batch: Batch, t: Tensor, noise: IndexedNoise, condition: Condition
    ) -> NoisedBatch:
        eps = noise(Draw.EPS, tuple(batch.x0.shape[1:]))
        x_t = self.schedule.add_noise(batch.x0, t, eps)
        return NoisedBatch(batch.x0, eps, t, x_t, condition)

    def _watch(self, loss: Tensor, t: Tensor, terms: dict[str, Tensor]) -> None:
        """Log the terms; stop at a loss that is not finite; keep what the timesteps learn from."""
        means = {f"train/{name}": term.mean() for name, term in terms.items()}
        self.log_dict(means, prog_bar=True)
        every, step = self.trainer.log_every_n_steps, self.trainer.global_step  # type: ignore[attr-defined]
        if every and step % every == 0:
            check_finite_loss(loss, self.net, step)
        if self.timesteps.learns:
            self._losses.append((t, terms["loss"].detach()))

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step the optimizer, then let the average follow: once per optimizer step."""
        super().optimizer_step(*args, **kwargs)
        self.ema.update(self.net, self.trainer.global_step)
        if self._losses:
            self._teach_timesteps()

    def configure_optimizers(self) -> Any:
        """The optimizer on the network's parameters; warm-up and schedule per optimizer step."""
        optimizer = make_optimizer(self.net, self.optimizer)
        refuse_fused_clipping(optimizer, self.trainer)
        scheduler = make_lr_schedule(optimizer, self.warmup_steps, self.lr_schedule)
        self._optimization = describe_optimization(optimizer, scheduler)
        self._check_optimization()
        if scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def setup(self, stage: str) -> None:
        """Compile in place, which leaves the names of the weights alone."""
        self._resumed = self._optimization = None
        if stage == "fit" and self.compile_net:
            self.net.compile()

    def on_train_start(self) -> None:
        """Let a resumed run have the optimizer's settings that it states."""
        self._losses.clear()
        begin_next_epoch(self.trainer)
        if self._resumed is not None and self._optimization is not None:
            apply_settings(self.trainer, self._resumed, self._optimization)
        self._resumed = None

    # ---------------------------------------------------------- validation and test

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Log the loss of raw and EMA weights at fixed levels and fixed noise."""
        return self._evaluation_step(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Log the loss of raw and EMA weights on the test split."""
        return self._evaluation_step(batch, "test")

    def _evaluation_step(self, batch: Batch, split: str) -> dict[str, Tensor]:
        noise = IndexedNoise(self.seed, batch.index, Stream.VALIDATION, self.device)
        # Multiples of the golden ratio mod 1 cover the levels evenly, in any subset of the data.
        u = (0.5 + batch.index.double() * GOLDEN_RATIO) % 1
        t = level_of(u.float(), self.schedule).to(self.device)
        noised = self._noised(batch, t, noise, self.known(batch))
        losses = {
            "loss": self.objective(self.denoiser("raw"), noised)["loss"],
            "loss_ema": self.objective(self.denoiser("ema"), noised)["loss"],
        }
        self.log_dict(
            {f"{split}/{name}": loss.mean() for name, loss in losses.items()},
            batch_size=len(batch.x0),
            sync_dist=True,
            prog_bar=True,
        )
        return losses | {"t": t}

    # ------------------------------------------------------------------- sampling

    @property
    def knows_null(self) -> bool:
        """Whether the model has learned what "no class" is."""
        return self.label_dropout.teaches_null

    def known(self, batch: Batch) -> Condition:
        """What the model is told of a batch: no labels unless it is conditional."""
        if self.data.num_classes is None:
            return batch.condition._replace(label=None)
        return batch.condition

    def denoiser(self, weights: Weights = "ema") -> Denoiser:
        """The network read as a prediction of x0.

        Args:
            weights: ema (averaged) or raw (the ones in training).
        """
        net = self.ema.net if weights == "ema" else self.net
        last = self._denoisers.get(weights)
        if last is None or last.net is not net:  # its construction checks every level
            last = Denoiser(net, self.schedule, self.parameterization, self.variance)
            self._denoisers[weights] = last
        return last

    def sample(
        self,
        n: int,
        sampler: Sampler | None = None,
        labels: list[int] | int | None = None,
        guidance: float | Guidance = 1.0,
        seed: int = 0,
        weights: Weights = "ema",
        condition: Condition = Condition(),
    ) -> Tensor:
        """Draw samples; the k-th depends on the seed, k and what it is given alone.

        Args:
            n: Number of samples.
            sampler: How to sample; DDPM over all levels by default. Clips to the data's range.
            labels: Class labels for a conditional model, repeated up to n; by default those of
                ``condition``, or one class after the other.
            guidance: Scale of classifier-free guidance, 1 is none, 0 ignores the labels; or a
                :class:`Guidance`, limited to an interval or rescaled.
            seed: Seed of the noise, ≥ 0.
            weights: ema (averaged) or raw (the ones in training).
            condition: For a model that is given images beside x_t; repeated up to n.

        Returns:
            float32 [n, *shape], on the CPU; [−1, 1] for images.

        Raises:
            InputError: The labels or the condition do not fit the model.
        """
        request = Request(sampler, guidance, labels, None, weights, seed)
        return self.generate(torch.arange(n), request, condition).x

    def generate(
        self,
        indices: Tensor,
        request: Request = Request(),
        condition: Condition = Condition(),
        frames: int = 0,
        progress: bool = False,
    ) -> Samples:
        """Draw the samples of these indices; see :func:`ddpm_lightning.sampling.generate`."""
        return generate(self, indices, request, condition, frames, progress)

    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Sample the images of these indices with the EMA weights: float32 [B, *shape].

        A model that is given images takes them from the test split, repeated along the index.
        """
        condition = Condition()
        if self.data.image_channels:
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            given = data.finished("test", data.predict_n).condition
            condition = Condition(image=given.image)
        request = Request(seed=self.seed)
        return self.generate(
            batch.cpu(), request, condition, progress=self.trainer.is_global_zero
        ).x

    # ----------------------------------------------------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what a fresh process needs to rebuild the model; refuse to save a broken one."""
        check_finite_weights(self, self.trainer.global_step)
        checkpoint[KEY] = {
            "format": FORMAT,
            "class_path": self.class_path(),
            "timesteps": self.timesteps.state_dict(),
            "optimization": self._optimization,
        } | describe_run(self.trainer)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up what the timestep distribution has learned; see that a run can go on.

        Raises:
            InputError: The run's batches or steps are others than the checkpoint's.
        """
        if KEY not in checkpoint:
            return
        checkpoint = upgraded(checkpoint)
        self.timesteps.load_state_dict(checkpoint[KEY].get("timesteps", {}))
        trainer = self._trainer
        if trainer is not None and trainer.state.fn == TrainerFn.FITTING:
            check_run(checkpoint, trainer)
            self._resumed = checkpoint[KEY].get("optimization")
            self._check_optimization()

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Take weights.

        Raises:
            InputError: They are those of another network.
        """
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except RuntimeError as error:
            raise InputError(f"the weights do not fit the network: {error}") from error

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, map_location: Any = "cpu", **overrides: Any
    ) -> DiffusionModule:
        """Rebuild the module from a checkpoint's path alone.

        Args:
            checkpoint_path: The .ckpt file.
            map_location: Device for the weights.
            overrides: Arguments of the module that replace the checkpoint's, e.g. an optimizer,
                which a checkpoint does not describe.

        Raises:
            InputError: The file is not such a checkpoint, or its parts cannot be imported.
        """
        checkpoint = read_checkpoint(checkpoint_path, map_location)
        module = cls.from_checkpoint(checkpoint, checkpoint_path, **overrides)
        return module.to(map_location) if map_location is not None else module

    @classmethod
    def from_checkpoint(
        cls, checkpoint: dict[str, Any], path: str | Path, **overrides: Any
    ) -> DiffusionModule:
        """Rebuild the module from a checkpoint that has been read.

        Args:
            checkpoint: As :func:`ddpm_lightning.checkpoint.read_checkpoint` gives it.
            path: Where it comes from, for messages.
            overrides: Arguments of the module that replace the checkpoint's.

        Raises:
            InputError: Its parts cannot be imported, or its weights do not fit.
        """
        module_class = configurable_class(checkpoint[KEY]["class_path"])
        if not issubclass(module_class, cls):
            raise InputError(f"{path} holds a {module_class.__name__}, not a {cls.__name__}")
        try:
            module = rebuild(module_class, checkpoint["hyper_parameters"], overrides)
            module.load_state_dict(checkpoint["state_dict"])
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        return module

    # --------------------------------------------------------------------- helpers

    def _check_optimization(self) -> None:
        # Strategies differ in what comes first, the optimizer or the checkpoint.
        if self._resumed is not None and self._optimization is not None:
            check_optimization(self._resumed, self._optimization)

    def _teach_timesteps(self) -> None:
        """Show the losses of an optimizer step, in the order of the rows of the global batch."""
        parts: Any = [self.all_gather(part) for part in self._losses]  # [world, B] each
        self._losses.clear()
        t, losses = (torch.cat([p.flatten() for p in rows]) for rows in zip(*parts, strict=True))
        self.timesteps.update(t, losses)

    def _hyper_parameters(self, data: DataSpec) -> dict[str, Any]:
        net = self.net.describe(skip=("data", "out_channels"))  # which the factory is called with
        # The optimizer is how it is trained, not what it is.
        others = self.plain_arguments(skip=("data", "net", "optimizer", "lr_schedule"))
        return {"data": data.plain(), "net": net} | others
