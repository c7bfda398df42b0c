"""Requests for samples, and the loop that draws them by index, in batches.

Sample k is the same for any batch size and number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, Protocol

import torch
from einops import rearrange
from torch import Tensor

from ddpm_lightning.batch import NULL_LABEL, Condition, DataSpec
from ddpm_lightning.checkpoint import weights_digest
from ddpm_lightning.codecs import Codec
from ddpm_lightning.configurable import Configurable
from ddpm_lightning.diffusion.denoiser import Denoiser, Denoises
from ddpm_lightning.diffusion.guidance import Guidance, as_guidance, guide
from ddpm_lightning.diffusion.levels import Schedule, Time
from ddpm_lightning.diffusion.prediction import Prediction, Variance
from ddpm_lightning.diffusion.samplers import DDPM, Sampler, State
from ddpm_lightning.diffusion.variances import replacing
from ddpm_lightning.errors import InputError, at_least
from ddpm_lightning.networks.network import Network
from ddpm_lightning.processes import Processes
from ddpm_lightning.progress import show_progress
from ddpm_lightning.randomness import IndexedNoise, check_seed
from ddpm_lightning.text import TextEncoder

Weights = Literal["ema", "raw"]
"""Averaged weights, or the optimizer's."""


NO_NULL = (
    "the model was trained with label_dropout 0, so it has no unconditional prediction: give "
    "{}, and no guidance"
)


class Model(Protocol):
    """The interface of DiffusionModule that sampling needs."""

    data: DataSpec
    latent: DataSpec
    codec: Codec
    text: TextEncoder | None

    @property
    def knows_null(self) -> bool:
        """Whether the model was trained with the null label and the null caption."""

    @property
    def device(self) -> torch.device:
        """The network's device."""

    def denoiser(self, weights: Weights = "ema") -> Denoiser:
        """The denoiser of these weights."""


class Request(Configurable):
    """Sampling settings: sampler, guidance, labels, weights and seed.

    Args:
        sampler: The sampler, e.g. --sampler DDIM --sampler.steps 50 --sampler.eta 0.5; default:
            DDPM over all levels. Clips to the data's range.
        guidance: Scale of classifier-free guidance (CFG) of a model with labels or text; 1 is
            none, 0 ignores them. --guidance.interval limits it to a range of levels,
            --guidance.rescale rescales its result to the conditional standard deviation.
        labels: Class labels, numbers from 0, for a conditional model: one for all samples, or a
            list that is repeated; default: those of the data, or one class after the other.
        variance: Variance of the reverse steps of DDPM, in place of the model's own, e.g.
            --variance FixedLarge.
        weights: ema (averaged) or raw (as trained).
        seed: Seed of the noise, 0 to 2**64 − 1.
        batch_size: Samples at a time on each device; changes memory and speed, not the samples.
        prompt: What samples of a model with text show, e.g. --prompt "a red ring"; several are
            repeated along the samples; default: those of the data, or nothing in particular.
        negative_prompt: What guidance leads away from, in place of the null caption.

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
        prompt: list[str] | str | None = None,
        negative_prompt: str | None = None,
    ) -> None:
        check_seed(seed)
        at_least(1, self, batch_size=batch_size)
        if weights not in ("ema", "raw"):
            raise InputError(f"weights={weights!r}: give ema (averaged) or raw")
        self.sampler = sampler or DDPM()
        self.guidance = as_guidance(guidance)
        self.labels = [labels] if isinstance(labels, int) else labels
        self.variance = variance
        self.weights: Weights = weights
        self.seed = seed
        self.batch_size = batch_size
        self.prompts = [prompt] if isinstance(prompt, str) else prompt
        self.negative_prompt = negative_prompt
        if self.sampler.chooses_steps and self.guidance.interval is not None:
            raise InputError(
                f"{type(self.sampler).__name__} steps to a tolerance, which the jumps at the ends "
                "of a guidance interval make dear, not cheap: leave out --guidance.interval, or "
                "take --sampler DDIM"
            )
        if self.prompts == []:
            raise InputError("prompt []: give a text, or several (--prompt)")
        if negative_prompt is not None and self.guidance.scale in (0, 1):
            raise InputError(
                f"negative_prompt changes nothing at guidance {self.guidance.scale:g}; give "
                "another (--guidance 3)"
            )

    def check(self, model: Model) -> None:
        """Raise InputError if the request does not fit a model, before anything is computed."""
        levels_from_noise(self.sampler.clipped((-1.0, 1.0)), model.denoiser(self.weights))
        self.check_variance(model)
        self.check_labels(model)
        self.check_prompts(model)

    def check_prompts(self, model: Model) -> None:
        """Raise InputError if prompts do not fit a model, or guidance has none to act on."""
        prompts = [*(self.prompts or ()), *filter(None, [self.negative_prompt])]
        if model.text is not None:
            if prompts:
                _encoded(model, model.text, prompts)
        elif prompts or self.negative_prompt is not None:
            flag = "--prompt" if self.prompts else "--negative_prompt"
            raise InputError(
                f"the model was trained without text, so it takes no prompt; leave out {flag}, or "
                "train one that has (fit --config configs/shapes_text.yaml)"
            )

    def check_variance(self, model: Model) -> None:
        """Raise InputError if the variance does not fit a model; compares all weights."""
        denoiser = self.denoiser(model)
        measured_with = getattr(self.variance, "network", None)
        if measured_with not in (None, weights_digest(denoiser.net)):
            raise InputError(
                f"the variance table was measured with other weights than the {self.weights} ones "
                "of this checkpoint; estimate it for these: python -m ddpm_lightning "
                f"analytic_variance --ckpt CHECKPOINT --weights {self.weights}"
            )

    def check_labels(self, model: Model, labels: Tensor | None = None) -> None:
        """Raise InputError if labels (default: the request's) or guidance do not fit a model."""
        scale, known = self.guidance.scale, model.data.num_classes
        if labels is None and self.labels is not None:
            labels = torch.as_tensor(self.labels)
        if known is None:
            if labels is not None:
                raise InputError("labels given, but the model has none (conditional: false)")
            if scale != 1 and model.text is None:
                raise InputError(
                    f"guidance {scale:g} needs a model with labels (conditional: true) or text"
                )
            if scale != 1 and not model.knows_null:
                raise InputError(NO_NULL.format("a prompt"))
            return
        unlabelled = labels is not None and bool((labels == NULL_LABEL).any())
        if not model.knows_null and (scale != 1 or unlabelled):
            raise InputError(NO_NULL.format("labels"))
        if labels is not None:
            fits = (labels >= NULL_LABEL) & (labels < known)
            if labels.ndim != 1 or not len(labels) or not bool(fits.all()):
                shown = sorted(set(labels.flatten().tolist()))[:12]
                raise InputError(
                    f"labels {shown}: give one or more from 0…{known - 1} (or −1, no class)"
                )

    def denoiser(self, model: Model) -> Denoiser:
        """The model's denoiser with the requested weights and variance, without guidance."""
        denoiser = model.denoiser(self.weights)
        if self.variance is None:
            return denoiser
        if not isinstance(self.sampler, DDPM):
            raise InputError(
                f"{type(self.sampler).__name__} has no use for a variance, only DDPM has; leave "
                "out --variance or use --sampler DDPM"
            )
        variance = replacing(denoiser.variance, self.variance, model.latent.shape[0])
        return replace(denoiser, variance=variance)

    def tag(self, model: Model) -> str:
        """Name the request for logs and files: ddim50_guidance1.5_ema."""
        schedule = model.denoiser(self.weights).schedule
        parts = (self.sampler.tag(schedule), self.guidance.tag, self.weights)
        return "_".join(filter(None, parts))

    def condition(self, model: Model, indices: Tensor, given: Condition) -> Condition:
        """The condition of each sample: ``given``, repeated along the index, or as requested."""
        check_image(model.data, given.image)
        label = self.label(model, indices, given)
        given = given._replace(label=None).repeated(indices)._replace(label=label)
        if model.text is None:
            return given
        if not model.knows_null and self.prompts is None:
            raise InputError(NO_NULL.format("a prompt"))
        if self.prompts is None:
            return given
        prompts = [self.prompts[k % len(self.prompts)] for k in indices.tolist()]
        tokens, mask = _encoded(model, model.text, prompts)
        return given._replace(tokens=tokens, mask=mask)

    def label(self, model: Model, indices: Tensor, given: Condition) -> Tensor | None:
        """The class of each sample, int64 [n], as in :meth:`condition`; None: it has none."""
        if model.data.num_classes is None:
            return None
        known = given.label if self.labels is None else torch.as_tensor(self.labels).long()
        if known is None and model.text is not None and self.prompts is not None:
            raise InputError(
                "the model has labels beside text: give those that belong to the prompts, too "
                "(--labels)"
            )
        known = torch.arange(model.data.num_classes) if known is None else known
        self.check_labels(model, known)
        return known[indices % len(known)]

    def negative(self, model: Model) -> Condition:
        """What guidance leads away from: one row of tokens, or nothing for the null caption."""
        if model.text is None or self.negative_prompt is None:
            return Condition()
        return Condition(None, None, *model.text([self.negative_prompt], model.device))


def _encoded(model: Model, text: TextEncoder, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Tokens [n, L, D] and mask [n, L] of prompts; a text without tokens is the null caption."""
    tokens, mask = text(prompts)
    if not model.knows_null and not bool(mask.any(1).all()):
        raise InputError(NO_NULL.format("a prompt"))
    return tokens, mask


@dataclass(frozen=True, eq=False)
class Frames:
    """Trajectories of samples at F levels evenly spaced over the steps, noise first.

    Args:
        x_t: float32 [F, n, ...] noisy samples.
        x0: float32 [F, n, ...] predictions of x0; the samples themselves in the last.
        levels: The F levels.
    """

    x_t: Tensor
    x0: Tensor
    levels: list[int]


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples and, on request, their trajectories.

    Args:
        x: float32 [n, ...] samples.
        frames: The trajectories, or None.
        inputs: float32 [M, ...] the images that were edited, or None.
        evaluations: Network evaluations (NFE) a sample, guidance counted twice; None: not counted.
    """

    x: Tensor
    frames: Frames | None = None
    inputs: Tensor | None = None
    evaluations: float | None = None

    def gathered(self, n: int, batch_size: int) -> Samples:
        """Put the shares of all processes together; the first has samples 0…n − 1, others none."""
        processes = Processes.current()

        def gather(by_level: Tensor) -> Tensor:
            rows = rearrange(by_level, "level n ... -> n level ...")
            return rearrange(processes.gather(rows, n, batch_size), "n level ... -> level n ...")

        frames = self.frames
        if frames is not None:
            frames = Frames(gather(frames.x_t), gather(frames.x0), frames.levels)
        x = processes.gather(self.x, n, batch_size)
        return Samples(x, frames, self.inputs, self.evaluations)


class Counted:
    """A denoiser that counts the rows that it is asked for."""

    def __init__(self, denoiser: Denoises) -> None:
        self.denoiser = denoiser
        self.rows = 0

    @property
    def net(self) -> Network | None:
        """The network inside."""
        return self.denoiser.net

    @property
    def schedule(self) -> Schedule:
        """The forward process."""
        return self.denoiser.schedule

    def __call__(self, x_t: Tensor, t: Time, condition: Condition = Condition()) -> Prediction:
        """Predict x0; arguments as for any denoiser."""
        self.rows += len(x_t)
        return self.denoiser(x_t, t, condition)


@dataclass(frozen=True, eq=False)
class Procedure:
    """A sampling procedure: generation from noise, or an edit of images.

    Args:
        steps: Number of steps.
        trajectory: Function of (noise, condition) that yields steps + 1 States.
        inputs: [M, ...] the images to edit, or None.
        decode: From what the trajectory holds to data; None: it holds data.
    """

    steps: int
    trajectory: Callable[[IndexedNoise, Condition], Iterator[State]]
    inputs: Tensor | None = None
    decode: Callable[[Tensor], Tensor] | None = None


def from_noise(denoiser: Denoises, sampler: Sampler, shape: tuple[int, ...]) -> Procedure:
    """The procedure that generates samples of ``shape`` [C, ...] from noise."""

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
        model: The model.
        indices: int64 [n]; a sample's noise depends on (seed, index) alone.
        request: The sampling settings.
        condition: Labels and images, repeated along the index.
        frames: Number of levels to keep the trajectory at: 0, or 2 to steps + 1.
        progress: Show a progress bar.

    Raises:
        InputError: The request or the condition does not fit the model.
    """
    request.check_labels(model)
    counted = Counted(request.denoiser(model))
    denoiser = guide(counted, request.guidance, request.negative(model))
    sampler = request.sampler.clipped(model.latent.data_range)
    procedure = from_noise(denoiser, sampler, model.latent.shape)
    procedure = replace(procedure, decode=model.codec.decode)
    condition = request.condition(model, indices, condition)
    samples = run(procedure, indices, request, condition, model.device, frames, progress)
    return replace(samples, evaluations=counted.rows / len(indices))


def run(
    procedure: Procedure,
    indices: Tensor,
    request: Request,
    condition: Condition,
    device: torch.device,
    frames: int = 0,
    progress: bool = False,
) -> Samples:
    """Run a sampling procedure for these sample indices, in batches; return it on the CPU.

    Args:
        procedure: The procedure.
        indices: int64 [n] sample indices.
        request: Gives the seed and the batch size.
        condition: The condition of each sample, n rows per part.
        device: The denoiser's device.
        frames: Number of levels to keep the trajectory at: 0, or 2 to steps + 1.
        progress: Show a progress bar.

    Raises:
        InputError: There are no indices, or the samples are not finite.
    """
    if not len(indices):
        raise InputError("0 samples requested; give at least 1")
    check_frames(frames)
    steps = procedure.steps
    decode = procedure.decode or _as_it_is
    kept = {round(i * steps / (frames - 1)) for i in range(frames)} if frames else set()
    batches = torch.arange(len(indices)).split(request.batch_size)
    xs: list[Tensor] = []
    seen: list[list[State]] = []
    with show_progress(
        total=len(batches) * steps, desc="sampling", unit="step", leave=False, disable=not progress
    ) as bar:
        for rows in batches:
            noise = IndexedNoise(request.seed, indices[rows], device=device)
            states = procedure.trajectory(noise, condition.rows(rows).to(device))
            seen.append([])
            finite: list[tuple[int, Tensor]] = []  # read only where the samples are not
            for k, state in enumerate(states):
                parts = [part.isfinite().all() for part in (state.x_t, state.x0)]
                finite.append((state.t, torch.stack(parts)))
                if k in kept:
                    x_t, x0 = (decode(x).float().cpu() for x in (state.x_t, state.x0))
                    seen[-1].append(State(state.t, x_t, x0))
                bar.update(k > 0)
            xs.append(decode(state.x_t).float().cpu())
            _check_finite(xs[-1], indices[rows], finite)
    x = torch.cat(xs)
    inputs = None if procedure.inputs is None else procedure.inputs.cpu()
    return Samples(x, _joined(seen) if frames else None, inputs)


def _as_it_is(x: Tensor) -> Tensor:
    return x


def _check_finite(x: Tensor, indices: Tensor, finite: list[tuple[int, Tensor]]) -> None:
    """Raise InputError unless samples are finite, with the level where they ceased to be.

    Args:
        x: [B, ...] the samples.
        indices: int64 [B] their indices.
        finite: Each level with bool [2]: whether x_t and the prediction of x0 are finite there.
    """
    bad = ~x.flatten(1).isfinite().all(1)
    if not bad.any():
        return
    shown = ", ".join(map(str, indices[bad].tolist()[:8])) + (" …" if bad.sum() > 8 else "")
    said = f"{int(bad.sum())} of {len(x)} samples are not finite (index {shown})"
    first = next(((t, both.tolist()) for t, both in finite if not both.all()), None)
    if first is None:
        raise InputError(f"{said}: their latents are, what the codec decodes of them is not")
    level, (before, _) = first
    what = "the model's prediction at" if before else "the sampler's step to"
    raise InputError(f"{said}: {what} level {level} is the first value that is not")


def _joined(batches: list[list[State]]) -> Frames:
    """Concatenate the States of several batches, level by level."""
    columns = list(zip(*batches, strict=True))
    x_t = torch.stack([torch.cat([state.x_t for state in column]) for column in columns])
    x0 = torch.stack([torch.cat([state.x0 for state in column]) for column in columns])
    return Frames(x_t, x0, [column[0].t for column in columns])


def levels_from_noise(sampler: Sampler, denoiser: Denoises) -> list[int]:
    """The sampler's levels; raise InputError unless they fall from T to 0."""
    levels = sampler.levels(denoiser.schedule)
    falls = (
        isinstance(levels, list) and levels[-1:] == [0] and all(t > s for t, s in pairwise(levels))
    )
    if not falls or not all(isinstance(t, int) for t in levels):
        raise InputError(
            f"{sampler.spacing.class_path()} gives the levels {levels!s:.60}…: they must be "
            "whole numbers (int) that fall, and end with 0"
        )
    if levels[0] != denoiser.schedule.T and not sampler.spacing.starts_below_T:
        raise InputError(
            f"the sampler starts at level {levels[0]}, but samples start from noise at level "
            f"{denoiser.schedule.T}"
        )
    return levels


def check_frames(frames: int) -> None:
    """Raise InputError unless frames is 0 or at least 2."""
    if frames > 10_000:
        raise InputError(f"frames={frames}: a trajectory has 10,000 or fewer")
    if frames < 0 or frames == 1:
        raise InputError(f"frames={frames}: a trajectory has 2 or more (noise and sample), or 0")


def check_image(data: DataSpec, image: Tensor | None) -> None:
    """Raise InputError unless condition images [M, K, H, W], or None, fit a model's data."""
    channels = data.image_channels
    if channels and image is None:
        raise InputError(
            f"the model needs condition images of {channels} channel(s), and none are given; "
            "give condition images (condition=, --condition)"
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
