"""The LightningModule of diffusion models: loss, validation and sampling."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from operator import is_not
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from typing_extensions import override

from ddpm_lightning.batch import Batch, Condition, DataSpec
from ddpm_lightning.codecs import Codec, Identity
from ddpm_lightning.codecs.measuring import check_latents, measure_scale
from ddpm_lightning.diffusion.denoiser import Denoiser
from ddpm_lightning.diffusion.guidance import Guidance
from ddpm_lightning.diffusion.label_dropout import LabelDropout
from ddpm_lightning.diffusion.levels import is_real
from ddpm_lightning.diffusion.losses import MSE, NoisedBatch, Objective
from ddpm_lightning.diffusion.pairing import Independent, Pairing
from ddpm_lightning.diffusion.parameterizations import Eps, Parameterization
from ddpm_lightning.diffusion.prediction import FixedSmall, Variance
from ddpm_lightning.diffusion.samplers import Sampler
from ddpm_lightning.diffusion.schedules import Linear, Schedule
from ddpm_lightning.diffusion.self_conditioning import self_conditioned
from ddpm_lightning.diffusion.timesteps import Timesteps, Uniform, level_of
from ddpm_lightning.ema import EMA
from ddpm_lightning.errors import InputError
from ddpm_lightning.networks.checks import check_size
from ddpm_lightning.networks.network import Network
from ddpm_lightning.networks.small_unet import SmallUNet
from ddpm_lightning.randomness import Draw, IndexedNoise, Stream
from ddpm_lightning.sampling import Request, Samples, Weights, generate
from ddpm_lightning.text import TextEncoder
from ddpm_lightning.trained import TrainedModule

NO_CAPTIONS = (
    "the model reads captions, and the data has none; take data that has (--data Shapes, --data "
    "Captioned, a folder with a metadata.csv of file_name,text), or leave out --model.text"
)

GOLDEN_RATIO = 0.6180339887498949


class DiffusionModule(TrainedModule):
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
        codec: The latents that are noised, learned and sampled; by default the data itself.
        text: Encoder of the data's captions, for a network with cross-attention, e.g. --model.text
            VocabularyEncoder; null: no text.
        pairing: Which noise of a training batch belongs to which sample.

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
        codec: Codec = Identity(),
        text: TextEncoder | None = None,
        pairing: Pairing = Independent(),
    ) -> None:
        if conditional and data.num_classes is None:
            raise InputError("conditional: true needs data with classes; this data has none")
        # Parts with tensors are copied, because two modules must not share one default argument.
        codec = copy.deepcopy(codec)
        encoder = None if text is None else text.of(data)
        if encoder is None:  # because a checkpoint need not hold what its model never reads
            data = replace(data, words=(), caption_length=0)
        known = data if conditional else replace(data, num_classes=None)
        if encoder is not None:
            known = replace(known, token_width=encoder.width)
        latent = codec.attach(known)
        channels = latent.shape[0]
        out_channels = channels + variance.extra_channels(channels)
        check_size(partial(net, latent, out_channels))
        super().__init__(
            net(latent, out_channels),
            ema,
            optimizer,
            warmup_steps,
            lr_schedule,
            compile,
            seed,
            skip_nonfinite,
        )
        if latent.token_width and not self.net.takes_tokens:
            raise InputError(
                f"{type(self.net).__name__} as it is set does not read the text; take UNet with "
                "--model.net.cross_attention_levels '[1,2]' or DiT with --model.net."
                "cross_attention true, or leave out --model.text"
            )
        self.data, self.latent, self.codec, self.text = known, latent, codec, encoder
        self.schedule = copy.deepcopy(schedule)
        self.parameterization = parameterization
        self.variance = variance
        self.objective = objective
        self.timesteps = copy.deepcopy(timesteps)
        self.label_dropout = label_dropout
        self.pairing = pairing
        if not isinstance(pairing, Independent) and (known.token_width or known.image_channels):
            raise InputError(
                f"pairing {type(pairing).__name__} pairs noise within classes, not for texts or "
                "condition images, of which it would tell; leave out --model.pairing"
            )
        self._losses: list[tuple[Tensor, Tensor]] = []  # (t, loss) of a step's micro-batches
        self._denoisers: dict[Weights, Denoiser] = {}
        self.objective.check(self.denoiser())
        lowest = self.timesteps.lowest(self.schedule)
        if is_real(lowest):
            self.objective.check_real_time(self.denoiser(), float(lowest), latent.shape)
        self.save_hyperparameters(self.described(data))

    # ------------------------------------------------------------------ training

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Compute the loss of a noised batch (DDPM algorithm 1), also ``per_sample`` [B]."""
        loss, t, terms = self.checked(batch, batch_idx)
        if self.timesteps.learns:
            self._losses.append((t, terms["loss"].detach()))
        return {"loss": loss, "t": t, "per_sample": terms["loss"].detach()}

    @override
    def training_loss(
        self, batch: Batch, batch_idx: int
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        noise = self.training_noise(batch, batch_idx)
        t, weight = self.timesteps(self.schedule, noise)
        condition = self.known(batch)
        if condition.label is not None or condition.tokens is not None:
            condition = self.label_dropout(condition, noise)
        noised = self._noised(batch, t, noise, condition, self.pairing)
        denoiser = self.denoiser("raw")
        known = self_conditioned(denoiser, noised.x_t, t, condition, noise)
        terms = self.objective(denoiser, replace(noised, condition=known))
        return (weight * terms["loss"]).mean(), t, terms

    def _noised(
        self,
        batch: Batch,
        t: Tensor,
        noise: IndexedNoise,
        condition: Condition,
        pairing: Pairing = Independent(),
    ) -> NoisedBatch:
        x0 = self.latents(batch, noise)
        eps = pairing(x0, noise(Draw.EPS, tuple(x0.shape[1:])), condition.label)
        return NoisedBatch(x0, eps, t, self.schedule.add_noise(x0, t, eps), condition)

    @override
    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self._losses:
            # Of all processes and micro-batches, in the order of the global batch.
            parts: Any = [self.all_gather(part) for part in self._losses]  # [world, B] each
            self._losses.clear()
            t, losses = (torch.cat([p.flatten() for p in ps]) for ps in zip(*parts, strict=True))
            self.timesteps.update(t, losses)

    @override
    def on_fit_start(self) -> None:
        if not self.trainer.strategy.restore_checkpoint_after_setup:
            self._prepare_codec()

    @override
    def on_train_start(self) -> None:
        self._prepare_codec()  # again, because FSDP2 restores a checkpoint after on_fit_start
        self._losses.clear()
        super().on_train_start()

    # ---------------------------------------------------------- validation and test

    @override
    def on_validation_start(self) -> None:
        trainer = self.trainer
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            self._prepare_codec()

    @override
    def on_test_start(self) -> None:
        self._prepare_codec()

    def _prepare_codec(self) -> None:
        """Refuse the latents of another codec; measure the scale of a new run's."""
        check_latents(self.codec, getattr(self.trainer, "datamodule", None))
        if self.trainer.state.fn == TrainerFn.FITTING:
            measure_scale(self.codec, self.trainer)

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

    def latents(self, batch: Batch, noise: IndexedNoise | None = None) -> Tensor:
        """The latents [B, ...] of a batch, which the denoiser predicts; its x0 without a codec.

        ``noise`` gives the draw of a codec that draws from its posterior; None takes the mean.
        """
        if batch.latents is not None:
            return self.codec.scaled(batch.latents, noise)
        return self.codec.encode(batch.x0, noise)

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

        Condition images and captions come from the test split, with their labels, repeated along
        the index.
        """
        condition, request = Condition(), Request(seed=self.seed)
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if self.data.image_channels or (self.text is not None and self.data.num_classes):
            condition = data.finished("test", data.predict_n).condition
        if self.text is not None:
            request = request.replace(prompt=list(data.captions("test") or [""]))
        progress = self.trainer.is_global_zero
        return self.generate(batch.cpu(), request, condition, progress=progress).x

    # ----------------------------------------------------------------- checkpoints

    @override
    def own_state(self) -> dict[str, Any]:
        return {"timesteps": self.timesteps.state_dict()}

    @override
    def load_own_state(self, state: dict[str, Any]) -> None:
        self.timesteps.load_state_dict(state.get("timesteps", {}))
