"""The LightningModule: noising, loss, EMA and optimizer around a network and its mathematics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from operator import is_not
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from ddpm_lightning.checkpoints import FORMAT, KEY, read_checkpoint, rebuild
from ddpm_lightning.configurable import Configurable, build, configurable_class
from ddpm_lightning.diffusion.denoiser import Denoiser, Guidance, as_guidance, given, guide
from ddpm_lightning.diffusion.objectives import MSE, NoisedBatch, Objective
from ddpm_lightning.diffusion.parameterizations import Eps, Parameterization
from ddpm_lightning.diffusion.samplers import DDPM, Sampler
from ddpm_lightning.diffusion.schedules import Linear, Schedule
from ddpm_lightning.diffusion.timesteps import Timesteps, Uniform, level_of
from ddpm_lightning.diffusion.variances import FixedSmall, Variance
from ddpm_lightning.ema import EMA
from ddpm_lightning.errors import InputError
from ddpm_lightning.finite import check_finite_loss, check_finite_weights
from ddpm_lightning.networks.network import NULL_LABEL, Network
from ddpm_lightning.networks.unet import UNet
from ddpm_lightning.optimization import (
    make_lr_schedule,
    make_optimizer,
    refuse_fused_clipping,
)
from ddpm_lightning.randomness import BatchNoise, Draw, IndexedNoise, Stream, step_seed
from ddpm_lightning.resume import (
    apply_settings,
    check_optimization,
    check_run,
    describe_optimization,
    describe_run,
)
from ddpm_lightning.sampling import (
    Samples,
    check_condition,
    check_labels,
    generate,
    labels_of,
)

GOLDEN_RATIO = 0.6180339887498949


class DiffusionModule(Configurable, LightningModule):
    """A diffusion model in training: data in, loss out, EMA beside it.

    Args:
        shape: Of one sample: [C, H, W] of images, [2] of points in the plane. The command line
            takes it from the data module.
        num_classes: Classes in the data, or null. The command line takes it from the data module.
        data_range: Lowest and highest data value, to which sampling clips; null for unbounded
            data. The command line takes it from the data module.
        condition_channels: Channels of the image that is given beside x_t, 0 for none. The
            command line takes it from the data module.
        net: The network, as a factory of (input channels: the data's and the condition's, output
            channels, classes or null).
        schedule: The noise schedule.
        parameterization: What the network predicts.
        variance: Variance of the reverse steps.
        objective: The training loss.
        timesteps: Which noise levels a training batch sees.
        conditional: Train with class labels.
        label_dropout: Share of rows whose label is dropped in training, for guidance.
        optimizer: The optimizer.
        warmup_steps: Optimizer steps over which the learning rate rises linearly from 0.
        lr_schedule: Learning rate after the warm-up, stepped per optimizer step; null: constant.
        ema_decay: Decay of the weight average per optimizer step.
        ema_warmup: Start the average with a faster decay, min(decay, (1 + n)/(10 + n)).
        ema_start: Optimizer steps before averaging starts.
        compile: Compile the network with torch.compile for training.
        seed: Seed of noise, levels and label dropout. The command line takes it from
            seed_everything.

    Raises:
        InputError: The parts do not fit each other or the data.
    """

    def __init__(
        self,
        shape: list[int],
        num_classes: int | None = None,
        data_range: tuple[float, float] | None = (-1.0, 1.0),
        condition_channels: int = 0,
        net: Callable[[int, int, int | None], Network] = UNet,
        schedule: Schedule = Linear(),
        parameterization: Parameterization = Eps(),
        variance: Variance = FixedSmall(),
        objective: Objective = MSE(),
        timesteps: Timesteps = Uniform(),
        conditional: bool = False,
        label_dropout: float = 0.1,
        optimizer: OptimizerCallable = partial(torch.optim.Adam, lr=2e-4),
        warmup_steps: int = 0,
        lr_schedule: LRSchedulerCallable | None = None,
        ema_decay: float = 0.9999,
        ema_warmup: bool = True,
        ema_start: int = 0,
        compile: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if conditional and num_classes is None:
            raise InputError("conditional: true needs data with classes; this data has none")
        if warmup_steps < 0:
            raise InputError(f"warmup_steps={warmup_steps}: give 0 or more optimizer steps")
        if not 0 <= label_dropout < 1:
            raise InputError(f"label_dropout={label_dropout}: give a share in [0, 1)")
        self.shape = tuple(shape)
        self.num_classes = num_classes if conditional else None
        self.data_range = data_range
        self.condition_channels = condition_channels
        channels, in_channels = self.shape[0], self.shape[0] + condition_channels
        out_channels = channels + variance.extra_channels(channels)
        self.net = net(in_channels, out_channels, self.num_classes)
        self.net.check_shape((in_channels, *self.shape[1:]))
        # A schedule carries device tables, so two modules must not share one default.
        self.schedule = build(schedule.describe())
        self.parameterization = parameterization
        self.variance = variance
        self.objective = objective
        self.timesteps = timesteps
        self.label_dropout = label_dropout
        self.optimizer = optimizer
        self.warmup_steps = warmup_steps
        self.lr_schedule = lr_schedule
        self.ema = EMA(self.net, ema_decay, ema_warmup, ema_start)
        self.compile_net = compile
        self.seed = seed
        self._validated = 0
        # Of this run's optimizer, and of the one in the checkpoint that it goes on from.
        self._optimization: dict[str, Any] | None = None
        self._resumed: dict[str, Any] | None = None
        self._losses: list[tuple[Tensor, Tensor]] = []  # of the micro-batches of a step
        self._denoisers: dict[bool, Denoiser] = {}
        self.objective.check(self.denoiser())
        self.save_hyperparameters(self._hyper_parameters())

    # ------------------------------------------------------------------ training

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> dict[str, Tensor]:
        """Noise a batch and score the network on it (DDPM algorithm 1).

        Returns:
            ``loss``, the levels ``t`` [B] and the per-sample losses ``per_sample`` [B].
        """
        x0, y, condition = self.parts_of(batch)
        micro_batch = batch_idx % self.trainer.accumulate_grad_batches
        world, step = self.trainer.world_size, self.trainer.global_step
        first = (micro_batch * world + self.global_rank) * len(x0)
        rows = torch.arange(first, first + len(x0))
        size = len(x0) * world * self.trainer.accumulate_grad_batches
        noise = BatchNoise(self.seed, step, rows, size, self.device)
        # What the layers draw themselves (dropout) is a function of the step, too.
        torch.manual_seed(step_seed(self.seed, step, micro_batch, self.global_rank))
        t, weight = self.timesteps(self.schedule, noise)
        if self.num_classes is not None:
            y = y.masked_fill(noise.uniform(Draw.LABEL_DROPOUT) < self.label_dropout, NULL_LABEL)
        noised = self._noised(x0, y, t, noise)
        terms = self.objective(given(self.denoiser(ema=False), condition), noised)
        loss = (weight * terms["loss"]).mean()
        means = {f"train/{name}": term.mean() for name, term in terms.items()}
        self.log_dict(means, prog_bar=True)
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and step % every == 0:
            check_finite_loss(loss, self.net, step)
        if self.timesteps.learns:
            self._losses.append((t, terms["loss"].detach()))
        return {"loss": loss, "t": t, "per_sample": terms["loss"].detach()}

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
        if self._resumed is not None and self._optimization is not None:
            apply_settings(self.trainer, self._resumed, self._optimization)
        self._resumed = None

    # ---------------------------------------------------------- validation and test

    def on_validation_epoch_start(self) -> None:
        """Start counting samples."""
        self._validated = 0

    def on_test_epoch_start(self) -> None:
        """Start counting samples."""
        self._validated = 0

    def validation_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> dict[str, Tensor]:
        """Log the loss of raw and EMA weights at fixed levels and fixed noise."""
        return self._evaluation_step(batch, "val")

    def test_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> dict[str, Tensor]:
        """Log the loss of raw and EMA weights on the test split."""
        return self._evaluation_step(batch, "test")

    def _evaluation_step(self, batch: tuple[Tensor, ...], split: str) -> dict[str, Tensor]:
        x0, y, condition = self.parts_of(batch)
        # Rank r holds samples r, r + world, …: the index names the sample whatever the layout.
        position = self._validated + torch.arange(len(x0))
        index = position * self.trainer.world_size + self.global_rank
        self._validated += len(x0)
        noise = IndexedNoise(self.seed, index, Stream.VALIDATION, self.device)
        # Multiples of the golden ratio mod 1 cover the levels evenly, in any subset of the data.
        u = (0.5 + index.double() * GOLDEN_RATIO) % 1
        t = level_of(u.float(), self.schedule).to(x0.device)
        noised = self._noised(x0, y, t, noise)
        losses = {
            name: self.objective(given(self.denoiser(ema), condition), noised)["loss"]
            for name, ema in (("loss", False), ("loss_ema", True))
        }
        self.log_dict(
            {f"{split}/{name}": loss.mean() for name, loss in losses.items()},
            batch_size=len(x0),
            sync_dist=True,
            prog_bar=True,
        )
        return losses | {"t": t}

    # ------------------------------------------------------------------- sampling

    def denoiser(self, ema: bool = True) -> Denoiser:
        """The network read as a prediction of x0.

        Args:
            ema: Averaged weights (True) or the ones in training (False).
        """
        net = self.ema.net if ema else self.net
        parts = (net, self.schedule, self.parameterization, self.variance)
        last = self._denoisers.get(ema)
        # Kept, for its construction checks every level.
        if last is None or any(map(is_not, parts, (getattr(last, f.name) for f in fields(last)))):
            last = self._denoisers[ema] = Denoiser(*parts)
        return last

    def sample(
        self,
        n: int,
        sampler: Sampler | None = None,
        labels: Tensor | list[int] | None = None,
        guidance: float | Guidance = 1.0,
        seed: int = 0,
        ema: bool = True,
        condition: Tensor | None = None,
    ) -> Tensor:
        """Draw samples; the k-th depends on the seed, k and what it is given alone.

        Args:
            n: Number of samples.
            sampler: How to sample; DDPM over all levels by default. Clips to the data's range.
            labels: Class labels for a conditional model, repeated up to n; by default one class
                after the other.
            guidance: Strength of classifier-free guidance, 1 is none, 0 ignores the labels; or a
                :class:`Guidance`, limited to an interval or rescaled.
            seed: Seed of the noise, ≥ 0.
            ema: Averaged weights (True) or the ones in training (False).
            condition: [M, condition_channels, H, W] images for a model that is given one beside
                x_t, repeated up to n.

        Returns:
            float32 [n, *shape], on the CPU; [−1, 1] for images.

        Raises:
            InputError: The labels or the condition do not fit the model.
        """
        return self.generate(torch.arange(n), sampler, labels, guidance, seed, ema, condition).x

    def generate(
        self,
        indices: Tensor,
        sampler: Sampler | None = None,
        labels: Tensor | list[int] | None = None,
        guidance: float | Guidance = 1.0,
        seed: int = 0,
        ema: bool = True,
        condition: Tensor | None = None,
        **options: Any,
    ) -> Samples:
        """Draw the samples of these indices, as :meth:`sample` does those of 0…n − 1.

        Args:
            indices: int64 [n]; labels are repeated along the index, too.
            sampler: How to sample.
            labels: Class labels.
            guidance: Strength of classifier-free guidance.
            seed: Seed of the noise.
            ema: Averaged weights or the ones in training.
            condition: Images given beside x_t, repeated along the index like the labels.
            options: batch_size, frames and progress of :func:`ddpm_lightning.sampling.generate`.
        """
        self.check_labels(labels, guidance)
        self.check_condition(condition)
        return generate(
            guide(self.denoiser(ema), guidance),
            (sampler or DDPM()).clipped(self.data_range),
            self.shape,
            indices,
            labels=labels_of(indices, self.num_classes, labels),
            condition=condition,
            seed=seed,
            device=self.device,
            **options,
        )

    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Sample the images of these indices with the EMA weights: float32 [B, *shape].

        A model that is given images takes them from the test split, repeated along the index.
        """
        options: dict[str, Any] = {"seed": self.seed, "progress": self.trainer.is_global_zero}
        if self.condition_channels:
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            options["condition"] = data.conditions("test", data.predict_n)
        return self.generate(batch.cpu(), **options).x

    def check_labels(
        self, labels: Tensor | list[int] | None, guidance: float | Guidance = 1.0
    ) -> None:
        """Raise InputError if labels or guidance do not fit the model."""
        check_labels(self.num_classes, labels, as_guidance(guidance), self.label_dropout)

    def parts_of(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Take a batch (x0, y) or (x0, y, condition) apart; no condition is None.

        Raises:
            InputError: The batch lacks a condition that the model needs, or the reverse.
        """
        condition = batch[2] if len(batch) > 2 else None
        self.check_condition(condition)
        return batch[0], batch[1], condition

    def check_condition(self, condition: Tensor | None) -> None:
        """Raise InputError if the images given beside x_t do not fit the model."""
        check_condition(self.condition_channels, self.shape, condition)

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
        module_class = configurable_class(checkpoint[KEY]["class_path"])
        if not issubclass(module_class, cls):
            raise InputError(
                f"{checkpoint_path} holds a {module_class.__name__}, not a {cls.__name__}"
            )
        try:
            module = rebuild(module_class, checkpoint["hyper_parameters"], overrides)
            module.load_state_dict(checkpoint["state_dict"])
        except InputError as error:
            raise InputError(f"{checkpoint_path}: {error}") from error
        return module.to(map_location) if map_location is not None else module

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

    def _noised(self, x0: Tensor, y: Tensor, t: Tensor, noise: IndexedNoise) -> NoisedBatch:
        eps = noise(Draw.EPS, tuple(x0.shape[1:]))
        x_t = self.schedule.add_noise(x0, t, eps)
        return NoisedBatch(x0, eps, t, x_t, y if self.num_classes is not None else None)

    def _hyper_parameters(self) -> dict[str, Any]:
        net = self.net.describe()
        for name in list(net["init_args"])[:3]:  # the three that the factory is called with
            del net["init_args"][name]
        # The optimizer is how it is trained, not what it is.
        return {"net": net} | self.plain_arguments(skip=("net", "optimizer", "lr_schedule"))
