"""What modules that a run trains share: weights, average, optimizer, logs and checkpoints."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from typing_extensions import Self, override

from ddpm_lightning.batch import Batch, DataSpec
from ddpm_lightning.checkpoint import DIGESTS, FORMAT, KEY, read_checkpoint, rebuild, upgraded
from ddpm_lightning.checkpoint_io import install
from ddpm_lightning.compilation import compile_training
from ddpm_lightning.configurable import Configurable
from ddpm_lightning.ema import EMA
from ddpm_lightning.errors import InputError
from ddpm_lightning.finite import GradientCheck, check_finite_weights, warn_of_losses
from ddpm_lightning.networks.checks import warn_of_evaluation_mode
from ddpm_lightning.optimization import (
    last_step,
    make_lr_schedule,
    make_optimizer,
    prepare_steps,
    refuse_callbacks,
    refuse_settings,
    refuse_short_schedule,
)
from ddpm_lightning.processes import leave_at_exit
from ddpm_lightning.randomness import BatchNoise, step_seed
from ddpm_lightning.resume import (
    apply_settings,
    check_optimization,
    check_run,
    continue_after_step,
    describe_optimization,
    describe_run,
    forget_time,
    is_resume,
    tell_change,
)
from ddpm_lightning.sharding import check_sharding, shard
from ddpm_lightning.step_means import StepMeans
from ddpm_lightning.training_state import check_loops, check_training_state


class TrainedModule(Configurable, LightningModule, ABC):
    """A network that a run trains, with the average of its weights.

    Attributes:
        last_means: Means of the last step's loss terms over this process, or over all where they
            are logged, by tag.

    A subclass defines ``training_loss``, calls :meth:`checked` in ``training_step``, and states
    what rebuilds it by ``save_hyperparameters(self.described(data))``.

    Args:
        net: The network, whose arguments a checkpoint describes.
        ema: The exponential moving average of the weights.
        optimizer: The optimizer.
        warmup_steps: Optimizer steps over which the learning rate rises linearly from 0.
        lr_schedule: Learning rate after the warm-up, stepped per optimizer step; None: constant.
        compile: Compile the network with torch.compile for training.
        seed: Seed of everything that training draws.
        skip_nonfinite: Steps in a row that may be skipped because their gradients are not finite.

    Raises:
        InputError: A number is out of range.
    """

    def __init__(
        self,
        net: Any,
        ema: EMA,
        optimizer: OptimizerCallable,
        warmup_steps: int,
        lr_schedule: LRSchedulerCallable | None,
        compile: bool,
        seed: int,
        skip_nonfinite: int,
    ) -> None:
        super().__init__()
        if warmup_steps < 0:
            raise InputError(f"warmup_steps={warmup_steps}: give 0 or more optimizer steps")
        self.net = net
        # Parts with tensors are copied, because two modules must not share one default argument.
        self.ema = copy.deepcopy(ema)
        self.ema.follow(self.net)
        self.optimizer = optimizer
        self.lr: float | None = None  # in place of the optimizer's; Lightning's LR finder sets it
        self.warmup_steps = warmup_steps
        self.lr_schedule = lr_schedule
        self.compile_net = compile
        self.seed = seed
        self.gradients = GradientCheck(skip_nonfinite)
        # describe_optimization of this run, and of the checkpoint that it resumes.
        self._optimization: dict[str, Any] | None = None
        self._resumed: dict[str, Any] | None = None
        self._means = StepMeans()
        self.last_means: dict[str, Any] = {}

    # ------------------------------------------------------------------ training

    @abstractmethod
    def training_loss(
        self, batch: Batch, batch_idx: int
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Compute the mean loss, levels int64 [B] and loss terms [B] of a training batch."""

    def checked(self, batch: Batch, batch_idx: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Compute the training loss, its terms for the logs, its batch for a search of faults."""
        self.gradients.keep(batch, batch_idx)
        loss, t, terms = self.training_loss(batch, batch_idx)
        self._means.add(terms)
        return loss, t, terms

    def training_noise(self, batch: Batch, batch_idx: int) -> BatchNoise:
        """Return the noise of the batch's rows; seed torch's generator for the layers' dropout."""
        if batch.row is None:
            raise InputError(
                "the training batch does not state its rows of the global batch; return Batch(x0, "
                "condition, index, row), index and row on the CPU, as ddpm_lightning.data does"
            )
        parts, step = self.trainer.accumulate_grad_batches, self.trainer.global_step
        size = len(batch.x0) * self.trainer.world_size * parts
        torch.manual_seed(step_seed(self.seed, step, batch_idx % parts, self.global_rank))
        return BatchNoise(self.seed, step, batch.row, size, self.device)

    @override
    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.gradients.before_step(self, self.trainer, optimizer)

    @override
    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self._log_step(self.trainer.global_step + 1)
        self.gradients.forget()
        if not self.gradients.skipped:
            self.ema.update(self.net, self.trainer.global_step)

    def _log_step(self, step: int) -> None:
        """Log the means of the global batch, before the callbacks save the step.

        Between the steps that the loggers get, ``monitor:`` and the progress bar have the means of
        this process, which cost no communication.
        """
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        is_logged = every and step % every == 0
        means: dict[str, Any] = (
            self._means.reduce(self.trainer.strategy) if is_logged else self._means.own()
        )
        self.last_means = {f"train/{name}": mean for name, mean in means.items()}
        # Because Lightning reads what it logs for a bar at every step; ours read last_means.
        bar = self.trainer.progress_bar_callback
        wanted = bar is not None and not getattr(bar, "reads_means", False)
        self.log_dict(self.last_means, prog_bar=wanted, logger=False)
        for logger in self.trainer.loggers if is_logged else ():
            logger.log_metrics(self.last_means, step)
        self._means.clear()

    @override
    def configure_optimizers(self) -> Any:
        optimizer = make_optimizer(self.net, self.optimizer, self.lr)
        refuse_settings(optimizer, self.trainer)
        scheduler = make_lr_schedule(optimizer, self.warmup_steps, self.lr_schedule)
        refuse_short_schedule(scheduler, self.warmup_steps, last_step(self.trainer))
        self._optimization = describe_optimization(optimizer, scheduler)
        self._check_optimization()
        if scheduler is None:
            return optimizer
        per_step = {"scheduler": scheduler, "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": per_step}

    @override
    def configure_model(self) -> None:
        mesh = self.device_mesh  # of ModelParallelStrategy alone
        if mesh is not None:
            shard(self.net, mesh["data_parallel"])
            shard(self.ema.net, mesh["data_parallel"])

    @override
    def setup(self, stage: str) -> None:
        check_sharding(self.trainer, self.compile_net)
        self._resumed = self._optimization = None
        refuse_callbacks(self.trainer)
        install(self.trainer)
        leave_at_exit()
        if self.trainer.precision == "64-true":
            self.double()  # before Lightning does, who loads the weights of a checkpoint first
        if stage == "fit" and self.compile_net:
            compile_training(self.net)

    @override
    def on_train_start(self) -> None:
        self.gradients.forget()
        self._means.clear()
        warn_of_evaluation_mode(self.net)
        continue_after_step(self.trainer)
        if self._resumed is not None and self._optimization is not None:
            apply_settings(self.trainer, self._resumed, self._optimization)
        self._resumed = None
        for optimizer in self.trainer.optimizers:
            prepare_steps(optimizer)

    @override
    def on_validation_end(self) -> None:
        losses = {"val/loss": "the raw weights", "val/loss_ema": "the EMA weights"}
        warn_of_losses(self.trainer, losses)

    @override
    def on_test_end(self) -> None:
        losses = {"test/loss": "the raw weights", "test/loss_ema": "the EMA weights"}
        warn_of_losses(self.trainer, losses)

    # ----------------------------------------------------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the description that rebuilds the model; refuse to save weights with NaN."""
        step = self.trainer.global_step
        check_finite_weights(self, step, self.gradients.saved)
        self.gradients.saved = step
        checkpoint[KEY] = {
            "format": FORMAT,
            "class_path": self.class_path(),
            **self.own_state(),
            "optimization": self._optimization,
        } | describe_run(self.trainer)
        if skipped := self.gradients.state_dict():
            checkpoint[KEY]["skipped"] = skipped

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what is beside the weights; raise InputError if the run cannot resume."""
        if KEY not in checkpoint:
            return
        if DIGESTS in checkpoint[KEY] and self.trainer.ckpt_path:  # because another IO read it
            read_checkpoint(self.trainer.ckpt_path, weights=True)
        loaded, checkpoint = checkpoint, upgraded(checkpoint)
        trainer = self._trainer
        if trainer is not None:
            check_loops(checkpoint, trainer)
        if trainer is not None and is_resume(trainer):
            check_run(checkpoint, self.trainer)
            skipped = checkpoint[KEY].get("skipped", {})
            self.gradients.load_state_dict(skipped, checkpoint["global_step"])
            forget_time(self.trainer, loaded)
            before = checkpoint["hyper_parameters"].get("compile")
            tell_change(self.trainer, "compile", before, self.compile_net)
            self._resumed = checkpoint[KEY].get("optimization")
            self._check_optimization()
            check_training_state(checkpoint, self)
        self.load_own_state(checkpoint[KEY])

    def own_state(self) -> dict[str, Any]:
        """What a subclass keeps in a checkpoint beside the weights, tensors and plain data."""
        return {}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Restore it from the checkpoint's entry of this library."""

    @override
    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except RuntimeError as error:
            problems = " ".join(str(error).split())
            raise InputError(f"the weights do not fit the network: {problems}") from error

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | Path,
        map_location: Any = "cpu",
        trust: Iterable[str] = (),
        **overrides: Any,
    ) -> Self:
        """Read a checkpoint and rebuild the module, without further arguments.

        Args:
            checkpoint_path: The .ckpt file.
            map_location: Device for the weights.
            trust: Packages whose classes may be imported, e.g. ["my_idea"]; this library's own,
                and packages that are imported already, always are.
            overrides: Arguments of the module that replace the checkpoint's, e.g. an optimizer,
                which a checkpoint does not describe.

        Raises:
            InputError: The file is not such a checkpoint, is damaged, or its parts cannot or may
                not be imported.
        """
        checkpoint = read_checkpoint(checkpoint_path, map_location, weights=True)
        module = rebuild(checkpoint, checkpoint_path, cls, overrides, trust)
        return module.to(map_location) if map_location is not None else module

    # --------------------------------------------------------------------- helpers

    def _check_optimization(self) -> None:
        # Called twice, because the strategy decides whether optimizer or checkpoint comes first.
        if self._resumed is not None and self._optimization is not None:
            check_optimization(self._resumed, self._optimization)

    def described(self, data: DataSpec) -> dict[str, Any]:
        """What rebuilds the module, as plain data: its hyper-parameters."""
        # data and out_channels are passed to the factory; optimizer and skipped steps do not
        # define the model.
        net = self.net.describe(skip=("data", "out_channels"))
        skip = ("data", "net", "optimizer", "lr_schedule", "skip_nonfinite")
        others = self.plain_arguments(skip)
        return {"data": data.plain(), "net": net} | others
