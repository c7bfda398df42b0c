"""Requests for samples, and the loop that draws them by index.

Sample k is the same whatever the batch size or the number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ddpm_lightning.batch import NULL_LABEL, Condition, DataSpec
from ddpm_lightning.checkpoint import weights_digest
from ddpm_lightning.configurable import Configurable
from ddpm_lightning.diffusion.denoiser import Denoiser, Denoises
from ddpm_lightning.diffusion.guidance import Guidance, as_guidance, guide
from ddpm_lightning.diffusion.prediction import Variance
from ddpm_lightning.diffusion.samplers import DDPM, Sampler, State
from ddpm_lightning.diffusion.variances import replacing
from ddpm_lightning.errors import InputError
from ddpm_lightning.randomness import IndexedNoise, check_seed

Weights = Literal["ema", "raw"]
"""Averaged weights, or those that the optimizer left."""


class Model(Protocol):
    """What samples are drawn from; a DiffusionModule."""

    data: DataSpec

    @property
    def knows_null(self) -> bool:
        """Whether the model has learned what "no class" is."""

    @property
    def device(self) -> torch.device:
        """Where the network is."""

    def denoiser(self, weights: Weights = "ema") -> Denoiser:
        """The network read as a prediction of x0."""


class Request(Configurable):
    """A request for samples: all that decides about sample k but its index and its condition.

    Args:
        sampler: How to sample, e.g. --sampler DDIM --sampler.steps 50 --sampler.eta 0.5; default:
            DDPM over all levels. Clips to the data's range.
        guidance: Scale of classifier-free guidance (CFG) of a conditional model; 1 is none, 0
            ignores the labels. --guidance.scale, --guidance.interval and --guidance.rescale limit
            it to some levels and hold its spread.
        labels: Class labels for a conditional model: one for all samples, or a list that is
            repeated; default: those of the data at hand, or one class after the other.
        variance: Variance of the reverse steps of DDPM, in place of the model's own, e.g.
            --variance FixedLarge.
        weights: ema (averaged) or raw (as the optimizer left them).
        seed: Seed of the noise, 0 to 2**64 − 1.
        batch_size: Samples at a time on each device; changes memory and speed, not the samples.

    Raises:
        InputError: A number is out of range.
    """

    def __init__(
        self,
        sampler: Sampler | None = None,
        guidance: float | Guidance = 1.0,
        labels: list[int] | int | None = None,
        variance: Variance | None = None,
        weights: Weights = "ema",
        seed: int = 0,
        batch_size: int = 256,
    ) -> None:
        check_seed(seed)
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size}: at least 1")
        if weights not in ("ema", "raw"):
            raise InputError(f"weights={weights!r}: ema (averaged) or raw")
        self.sampler = sampler or DDPM()
        self.guidance = as_guidance(guidance)
        self.labels = [labels] if isinstance(labels, int) else labels
        self.variance = variance
        self.weights: Weights = weights
        self.seed = seed
        self.batch_size = batch_size

    def check(self, model: Model) -> None:
        """Raise InputError for whatever does not fit a model, before anything is computed."""
        levels_from_noise(self.sampler, model.denoiser(self.weights))
        self.denoiser(model)
        self.check_labels(model)

    def check_labels(self, model: Model) -> None:
        """Raise InputError if the labels or the guidance do not fit a model."""
        scale, known = self.guidance.scale, model.data.num_classes
        labels = None if self.labels is None else torch.as_tensor(self.labels)
        if known is None:
            if labels is not None:
                raise InputError("labels given, but the model has none (conditional: false)")
            if scale != 1:
                raise InputError(
                    f"guidance {scale:g} needs a model with labels (conditional: true)"
                )
            return
        unlabelled = labels is not None and bool((labels == NULL_LABEL).any())
        if not model.knows_null and (scale != 1 or unlabelled):
            raise InputError(
                "the model was trained with label_dropout 0 and does not know what no class is: "
                "give labels, and no guidance"
            )
        if labels is not None:
            fits = (labels >= NULL_LABEL) & (labels < known)
            if labels.ndim != 1 or not len(labels) or not bool(fits.all()):
                raise InputError(
                    f"labels {self.labels}: give one or more from 0…{known - 1} (or −1, no class)"
                )

    def denoiser(self, model: Model) -> Denoiser:
        """The model's denoiser with the requested weights and variance, not guided.

        Raises:
            InputError: The sampler has no use for a variance, or the variance was measured or
                learned with other weights.
        """
        denoiser = model.denoiser(self.weights)
        if self.variance is None:
            return denoiser
        if not isinstance(self.sampler, DDPM):
            raise InputError(
                f"{type(self.sampler).__name__} has no use for a variance, only DDPM has; leave "
                "out --variance or use --sampler DDPM"
            )
        measured_with = getattr(self.variance, "network", None)
        if measured_with not in (None, weights_digest(denoiser.net)):
            raise InputError(
                f"the variance table was measured with other weights than the {self.weights} ones "
                "of this checkpoint; estimate it for these: python -m ddpm_lightning "
                f"analytic_variance --ckpt CHECKPOINT --weights {self.weights}"
            )
        variance = replacing(denoiser.variance, self.variance, model.data.shape[0])
        return replace(denoiser, variance=variance)

    def tag(self, model: Model) -> str:
        """Name how samples come about, for tags and files: ddim50_guidance1.5_ema."""
        schedule = model.denoiser(self.weights).schedule
        parts = (self.sampler.tag(schedule), self.guidance.tag, self.weights)
        return "_".join(filter(None, parts))

    def condition(self, model: Model, indices: Tensor, given: Condition) -> Condition:
        """What the samples of these indices are made from.

        Args:
            model: The model.
            indices: int64 [n].
            given: Of the data at hand, repeated along the index; requested labels replace its
                own.

        Raises:
            InputError: The model needs an image beside x_t, or takes none.
        """
        check_image(model.data, given.image)
        label = None
        if model.data.num_classes is not None:
            known = given.label if self.labels is None else torch.as_tensor(self.labels).long()
            if known is None:
                label = indices % model.data.num_classes
            else:
                label = known[indices % len(known)]
        return given._replace(label=None).repeated(indices)._replace(label=label)


@dataclass(frozen=True, eq=False)
class Frames:
    """How samples came about, at F levels evenly spread over the steps, noise first.

    Args:
        x_t: float32 [F, n, ...].
        x0: float32 [F, n, ...] the predictions there; at the end the sample itself.
        levels: The F levels.
    """

    x_t: Tensor
    x0: Tensor
    levels: list[int]


@dataclass(frozen=True, eq=False)
class Samples:
    """Generated data and, on request, how it came about.

    Args:
        x: float32 [n, ...] samples.
        frames: None unless requested.
        inputs: float32 [M, ...] what an edit started from; None for other samples.
    """

    x: Tensor
    frames: Frames | None = None
    inputs: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Procedure:
    """A sampling procedure: from noise by a sampler, or an edit of given data.

    Args:
        steps: Number of steps.
        trajectory: From the noise of some samples and their condition to the States visited, one
            more than steps.
        inputs: [M, ...] what an edit starts from, or None.
    """

    steps: int
    trajectory: Callable[[IndexedNoise, Condition], Iterator[State]]
    inputs: Tensor | None = None


def from_noise(denoiser: Denoises, sampler: Sampler, shape: tuple[int, ...]) -> Procedure:
    """Sampling from pure noise.

    Args:
        denoiser: The model, guided or not.
        sampler: How to go from noise to data.
        shape: [C, ...] of one sample.
    """

    def trajectory(noise: IndexedNoise, condition: Condition) -> Iterator[State]:
        x_T = noise(0, shape) * denoiser.schedule.prior_std
        return sampler.trajectory(denoiser, x_T, condition, noise)

    return Procedure(len(levels_from_noise(sampler, denoiser)) - 1, trajectory)


def generate(
    model: Model,
    indices: Tensor,
    request: Request,
    condition: Condition = Condition(),
    frames: int = 0,
    progress: bool = False,
) -> Samples:
    """Draw the samples of these indices.

    Args:
        model: What to sample from.
        indices: int64 [n]; a sample's noise depends on (seed, index) alone.
        request: How to sample.
        condition: Labels and images at hand, repeated along the index.
        frames: Keep x_t at this many levels, at most one a step; 0 for none, or at least 2.
        progress: Show a progress bar.

    Raises:
        InputError: The request or the condition does not fit the model.
    """
    request.check(model)
    denoiser = guide(request.denoiser(model), request.guidance)
    sampler = request.sampler.clipped(model.data.data_range)
    return run(
        from_noise(denoiser, sampler, model.data.shape),
        indices,
        request,
        request.condition(model, indices, condition),
        model.device,
        frames,
        progress,
    )


def run(
    procedure: Procedure,
    indices: Tensor,
    request: Request,
    condition: Condition,
    device: torch.device,
    frames: int = 0,
    progress: bool = False,
) -> Samples:
    """Run a sampling procedure for these sample indices, in batches.

    Args:
        procedure: What to run.
        indices: int64 [n].
        request: Its seed and batch size count.
        condition: Of each sample, n rows a part.
        device: Where the denoiser is.
        frames: Keep x_t at this many levels, at most one a step; 0 for none, or at least 2.
        progress: Show a progress bar.

    Returns:
        The samples, on the CPU.

    Raises:
        InputError: There is nothing to do, or the samples are not finite.
    """
    if not len(indices):
        raise InputError("0 samples asked for; give at least 1")
    check_frames(frames)
    steps = procedure.steps
    kept = {round(i * steps / (frames - 1)) for i in range(frames)} if frames else set()
    batches = torch.arange(len(indices)).split(request.batch_size)
    xs: list[Tensor] = []
    seen: list[list[State]] = []
    with tqdm(
        total=len(batches) * steps, desc="sampling", unit="step", leave=False, disable=not progress
    ) as bar:
        for rows in batches:
            noise = IndexedNoise(request.seed, indices[rows], device=device)
            states = procedure.trajectory(noise, condition.rows(rows).to(device))
            seen.append([])
            for k, state in enumerate(states):
                if k in kept:
                    x_t, x0 = state.x_t.float().cpu(), state.x0.float().cpu()
                    seen[-1].append(State(state.t, x_t, x0))
                bar.update(k > 0)
            xs.append(state.x_t.float().cpu())
    x = torch.cat(xs)
    if not bool(x.isfinite().all()):
        raise InputError(
            "the samples are not finite: the network has diverged, or the sampler leaves the "
            "data's range; use an earlier checkpoint, a smaller learning rate, or a clip"
        )
    inputs = None if procedure.inputs is None else procedure.inputs.cpu()
    return Samples(x, _joined(seen) if frames else None, inputs)


def _joined(batches: list[list[State]]) -> Frames:
    """Put the States of several batches together, level by level."""
    columns = list(zip(*batches, strict=True))
    x_t = torch.stack([torch.cat([state.x_t for state in column]) for column in columns])
    x0 = torch.stack([torch.cat([state.x0 for state in column]) for column in columns])
    return Frames(x_t, x0, [column[0].t for column in columns])


def levels_from_noise(sampler: Sampler, denoiser: Denoises) -> list[int]:
    """The sampler's levels.

    Raises:
        InputError: They do not start where noise belongs.
    """
    levels = sampler.levels(denoiser.schedule)
    if levels[0] != denoiser.schedule.T and not sampler.spacing.starts_below_T:
        raise InputError(
            f"the sampler starts at level {levels[0]}, but samples start from noise at level "
            f"{denoiser.schedule.T}"
        )
    return levels


def check_frames(frames: int) -> None:
    """Raise InputError unless this many frames make a trajectory, or none."""
    if frames < 0 or frames == 1:
        raise InputError(f"frames={frames}: a trajectory has 2 or more (noise and sample), or 0")


def check_image(data: DataSpec, image: Tensor | None) -> None:
    """Raise InputError unless condition images are those that a model takes.

    Args:
        data: The model's data.
        image: [M, K, H, W], or None.
    """
    channels = data.image_channels
    if channels and image is None:
        raise InputError(
            f"the model makes images out of given ones of {channels} channel(s), and none are "
            "given; give condition images (condition=, --condition)"
        )
    if image is not None and not channels:
        raise InputError(
            "condition images given, but the model takes none; leave them out (condition=, "
            "--condition)"
        )
    wanted = (channels, *data.shape[1:])
    if image is not None and (not len(image) or tuple(image.shape[1:]) != wanted):
        raise InputError(
            f"condition images of shape {list(image.shape)}; the model takes one or more of "
            f"{list(wanted)}"
        )
