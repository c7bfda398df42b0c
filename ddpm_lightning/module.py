"""The LightningModule: diffusion loss, EMA, optimizer, sampling and checkpoints of a network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from operator import is_not
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from typing_extensions import override

from ddpm_lightning.batch import Batch, Condition, DataSpec
from ddpm_lightning.checkpoint import DIGESTS, FORMAT, KEY, read_checkpoint, rebuild, upgraded
from ddpm_lightning.checkpoint_io import install
from ddpm_lightning.compilation import compile_training
from ddpm_lightning.configurable import Configurable
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
from ddpm_lightning.finite import GradientCheck, check_finite_weights, warn_of_losses
from ddpm_lightning.networks.checks import check_size, warn_of_evaluation_mode
from ddpm_lightning.networks.network import Network
from ddpm_lightning.networks.small_unet import SmallUNet
from ddpm_lightning.optimization import (
    last_step,
    make_lr_schedule,
    make_optimizer,
    refuse_callbacks,
    refuse_settings,
    refuse_short_schedule,
)
from ddpm_lightning.randomness import BatchNoise, Draw, IndexedNoise, Stream, step_seed
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
from ddpm_lightning.sampling import Request, Samples, Weights, generate
from ddpm_lightning.sharding import check_sharding, shard
from ddpm_lightning.step_means import StepMeans
from ddpm_lightning.text import TextEncoder
from ddpm_lightning.training_state import check_loops, check_training_state

NO_CAPTIONS = (
    "the model reads captions, and the data has none; take data that has (--data Shapes, --data "
    "Captioned, a folder with a metadata.csv of file_name,text), or leave out --model.text"
)

GOLDEN_RATIO = 0.6180339887498949


class DiffusionModule(Configurable, LightningModule):
    """A diffusion model: a network, its noise schedule and parameterization, and its training.

    Args:
        data: Specification of the data; the command line takes it from the data module.
        net: The network, as a factory of (data, output channels); by default one for small images.
        schedule: The noise schedule.
        parameterization: What the network predicts.
        variance: Variance of the reverse steps.
        objective: The training loss.
        timesteps: Distribution of the training timesteps.
        conditional: Train with class labels.
        label_dropout: Which labels are dropped in training, for classifier-free guidance.
        ema: The exponential moving average of the weights.
        optimizer: The optimizer.
        warmup_steps: Optimizer steps over which the learning rate rises linearly from 0.
        lr_schedule: Learning rate after the warm-up, stepped per optimizer step; null: constant.
        compile: Compile the network with torch.compile for training; validation and sampling run
            it as it is.
        seed: Seed of noise, timesteps and label dropout; the command line takes it from
            seed_everything.
        skip_nonfinite: Steps in a row that may be skipped because their gradients are not finite,
            without a trace in weights and average; one more ends the run.
        text: Encoder of the data's captions, for a network with cross-attention, e.g. --model.text
            VocabularyEncoder; null: no text.

    Raises:
        InputError: The parts do not fit each other or the data.
    """

    def __init__(
        self,
        data: DataSpec,
        net: Callable[[DataSpec, int], Network] = SmallUNet,
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
        skip_nonfinite: int = 0,
        text: TextEncoder | None = None,
    ) -> None:
        super().__init__()
        if conditional and data.num_classes is None:
            raise InputError("conditional: true needs data with classes; this data has none")
        if warmup_steps < 0:
            raise InputError(f"warmup_steps={warmup_steps}: give 0 or more optimizer steps")
        self.data = data if conditional else replace(data, num_classes=None)
        self.text = None if text is None else text.of(data)
        if self.text is not None:
            self.data = replace(self.data, token_width=self.text.width)
        channels = data.shape[0]
        out_channels = channels + variance.extra_channels(channels)
        check_size(partial(net, self.data, out_channels))
        self.net = net(self.data, out_channels)
        if self.data.token_width and not self.net.takes_tokens:
            raise InputError(
                f"{type(self.net).__name__} as it is set does not read the text; take UNet with "
                "--model.net.cross_attention_levels '[1,2]' or DiT with --model.net."
                "cross_attention true, or leave out --model.text"
            )
        # Parts with tensors are copied, because two modules must not share one default argument.
        self.schedule = copy.deepcopy(schedule)
        self.ema = copy.deepcopy(ema)
        self.ema.follow(self.net)
        self.parameterization = parameterization
        self.variance = variance
        self.objective = objective
        self.timesteps = copy.deepcopy(timesteps)
        self.label_dropout = label_dropout
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
        self._losses: list[tuple[Tensor, Tensor]] = []  # (t, loss) of a step's micro-batches
        self._means = StepMeans()
        self._denoisers: dict[Weights, Denoiser] = {}
        self.objective.check(self.denoiser())
        self.save_hyperparameters(self._hyper_parameters(data))

    # ------------------------------------------------------------------ training

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Compute the loss of a noised batch (DDPM algorithm 1), also ``per_sample`` [B]."""
        self.gradients.keep(batch, batch_idx)
        loss, t, terms = self.training_loss(batch, batch_idx)
        self._means.add(terms)
        if self.timesteps.learns:
            self._losses.append((t, terms["loss"].detach()))
        return {"loss": loss, "t": t, "per_sample": terms["loss"].detach()}

    def training_loss(
        self, batch: Batch, batch_idx: int
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Compute the mean loss, levels int64 [B] and loss terms [B] of a training batch."""
        noise = self._training_noise(batch, batch_idx)
        t, weight = self.timesteps(self.schedule, noise)
        condition = self.known(batch)
        if condition.label is not None or condition.tokens is not None:
            condition = self.label_dropout(condition, noise)
        terms = self.objective(self.denoiser("raw"), self._noised(batch, t, noise, condition))
        return (weight * terms["loss"]).mean(), t, terms

    def _training_noise(self, batch: Batch, batch_idx: int) -> BatchNoise:
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

    def _noised(
        self, batch: Batch, t: Tensor, noise: IndexedNoise, condition: Condition
    ) -> NoisedBatch:
        eps = noise(Draw.EPS, tuple(batch.x0.shape[1:]))
        x_t = self.schedule.add_noise(batch.x0, t, eps)
        return NoisedBatch(batch.x0, eps, t, x_t, condition)

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
        if self._losses:
            # Of all processes and micro-batches, in the order of the global batch.
            parts: Any = [self.all_gather(part) for part in self._losses]  # [world, B] each
            self._losses.clear()
            t, losses = (torch.cat([p.flatten() for p in ps]) for ps in zip(*parts, strict=True))
            self.timesteps.update(t, losses)

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
        means = {f"train/{name}": mean for name, mean in means.items()}
        self.log_dict(means, prog_bar=True, logger=False)
        for logger in self.trainer.loggers if is_logged else ():
            logger.log_metrics(means, step)
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
        if self.trainer.precision == "64-true":
            self.double()  # before Lightning does, who loads the weights of a checkpoint first
        if stage == "fit" and self.compile_net:
            compile_training(self.net)

    @override
    def on_train_start(self) -> None:
        self._losses.clear()
        self.gradients.forget()
        self._means.clear()
        warn_of_evaluation_mode(self.net)
        continue_after_step(self.trainer)
        if self._resumed is not None and self._optimization is not None:
            apply_settings(self.trainer, self._resumed, self._optimization)
        self._resumed = None

    # ---------------------------------------------------------- validation and test

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Log the loss of raw and EMA weights at fixed timesteps and noise."""
        return self._evaluation_step(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Log the loss of raw and EMA weights on the test split."""
        return self._evaluation_step(batch, "test")

    def _evaluation_step(self, batch: Batch, split: str) -> dict[str, Tensor]:
        noise = IndexedNoise(self.seed, batch.index, Stream.VALIDATION, self.device)
        # Multiples of the golden ratio mod 1 cover [0, 1) evenly, in any range of indices.
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

    @override
    def on_validation_end(self) -> None:
        losses = {"val/loss": "the raw weights", "val/loss_ema": "the EMA weights"}
        warn_of_losses(self.trainer, losses)

    @override
    def on_test_end(self) -> None:
        losses = {"test/loss": "the raw weights", "test/loss_ema": "the EMA weights"}
        warn_of_losses(self.trainer, losses)

    # ------------------------------------------------------------------- sampling

    @property
    def knows_null(self) -> bool:
        """Whether the model was trained with the null label."""
        return self.label_dropout.teaches_null

    def known(self, batch: Batch) -> Condition:
        """The condition of a batch: labels if the model is conditional, tokens if it has text."""
        condition = batch.condition
        if self.data.num_classes is None:
            condition = condition._replace(label=None)
        elif condition.label is None:
            raise InputError("the model is conditional, but the batch has no labels")
        if self.text is None:
            return condition
        if batch.captions is None:
            raise InputError(NO_CAPTIONS)
        tokens, mask = self.text(batch.captions, batch.x0.device)
        return condition._replace(tokens=tokens, mask=mask)

    def denoiser(self, weights: Weights = "ema") -> Denoiser:
        """The denoiser of the ema (averaged) or raw (as trained) weights."""
        net = self.ema.net if weights == "ema" else self.net
        parts: Any = (net, self.schedule, self.parameterization, self.variance)
        cached = self._denoisers.get(weights)  # because building one checks every level
        if cached is None or any(map(is_not, parts, vars(cached).values())):
            cached = self._denoisers[weights] = Denoiser(*parts)
        return cached

    def sample(
        self,
        n: int,
        sampler: Sampler | None = None,
        labels: list[int] | int | None = None,
        guidance: float | Guidance = 1.0,
        seed: int = 0,
        weights: Weights = "ema",
        condition: Condition = Condition(),
        prompt: list[str] | str | None = None,
    ) -> Tensor:
        """Draw samples float32 [n, *shape] on the CPU, in [−1, 1] for images.

        Sample k depends on the seed, k, its label and its condition alone.

        Args:
            n: Number of samples.
            sampler: The sampler; DDPM over all levels by default. Clips to the data's range.
            labels: Class labels for a conditional model, repeated up to n; by default those of
                ``condition``, or one class after the other.
            guidance: Scale of classifier-free guidance, 1 is none, 0 ignores the labels; or a
                :class:`Guidance`, limited to an interval or rescaled.
            seed: Seed of the noise, ≥ 0.
            weights: ema (averaged) or raw (as trained).
            condition: Condition images or labels, repeated up to n; labels count for a conditional
                model alone.
            prompt: What samples of a model with text show, a text or several, repeated up to n.

        Raises:
            InputError: The labels, the prompt or the condition do not fit the model.
        """
        request = Request(sampler, guidance, labels, None, weights, seed, prompt=prompt)
        request.check(self)
        return self.generate(torch.arange(n), request, condition).x

    def generate(
        self,
        indices: Tensor,
        request: Request = Request(),
        condition: Condition = Condition(),
        frames: int = 0,
        progress: bool = False,
    ) -> Samples:
        """Draw the samples of these indices; see :func:`ddpm_lightning.sampling.generate`.

        ``request.check(module)`` comes first, once: it compares weights, too.
        """
        return generate(self, indices, request, condition, frames, progress)

    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Draw the samples of indices int64 [B] with the EMA weights: float32 [B, *shape].

        Condition images, with their labels, and captions come from the test split, repeated along
        the index.
        """
        condition, request = Condition(), Request(seed=self.seed)
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if self.data.image_channels:
            condition = data.finished("test", data.predict_n).condition
        if self.text is not None:
            request = request.replace(prompt=list(data.captions("test") or [""]))
        progress = self.trainer.is_global_zero
        return self.generate(batch.cpu(), request, condition, progress=progress).x

    # ----------------------------------------------------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the description that rebuilds the model; refuse to save weights with NaN."""
        step = self.trainer.global_step
        check_finite_weights(self, step, self.gradients.saved)
        self.gradients.saved = step
        checkpoint[KEY] = {
            "format": FORMAT,
            "class_path": self.class_path(),
            "timesteps": self.timesteps.state_dict(),
            "optimization": self._optimization,
        } | describe_run(self.trainer)
        if skipped := self.gradients.state_dict():
            checkpoint[KEY]["skipped"] = skipped

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the timestep distribution; raise InputError if the run cannot resume."""
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
        self.timesteps.load_state_dict(checkpoint[KEY].get("timesteps", {}))

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
    ) -> DiffusionModule:
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

    def _hyper_parameters(self, data: DataSpec) -> dict[str, Any]:
        # data and out_channels are passed to the factory; optimizer and skipped steps do not
        # define the model.
        net = self.net.describe(skip=("data", "out_channels"))
        skip = ("data", "net", "optimizer", "lr_schedule", "skip_nonfinite")
        if self.text is None:  # so that versions without text read the checkpoint, too
            skip = (*skip, "text")
        others = self.plain_arguments(skip)
        return {"data": data.plain(), "net": net} | others
