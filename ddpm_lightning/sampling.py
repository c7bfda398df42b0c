"""Samples by index: image k is the same whatever the batch size or the number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ddpm_lightning.diffusion.denoiser import Denoises, Guidance, as_guidance, given
from ddpm_lightning.diffusion.samplers import Sampler, State
from ddpm_lightning.diffusion.schedule import Schedule
from ddpm_lightning.errors import InputError
from ddpm_lightning.networks.network import NULL_LABEL
from ddpm_lightning.randomness import IndexedNoise


@dataclass(frozen=True, eq=False)
class Samples:
    """Generated data and, if asked for, how it came about.

    Args:
        x: float32 [n, ...] samples.
        frames: float32 [F, n, ...] x_t at F levels evenly spread over the steps, noise first;
            None unless asked for.
        inputs: float32 [M, ...] what an edit started from; None where nothing was given.
    """

    x: Tensor
    frames: Tensor | None = None
    inputs: Tensor | None = None


def sampling_tag(
    sampler: Sampler, schedule: Schedule, guidance: float | Guidance, ema: bool
) -> str:
    """Name how samples come about, for tags and files: ddim50_guidance1.5_ema."""
    weights = "ema" if ema else "raw"
    return "_".join(filter(None, (sampler.tag(schedule), as_guidance(guidance).tag, weights)))


@dataclass(frozen=True, eq=False)
class Way:
    """How samples come about: from noise by a sampler, or by an edit of given data.

    Args:
        steps: Number of steps.
        trajectory: From the noise of some samples and their labels to the States on the way, one
            more than steps.
        inputs: [M, ...] what an edit starts from, or None.
    """

    steps: int
    trajectory: Callable[[IndexedNoise, Tensor | None], Iterator[State]]
    inputs: Tensor | None = None


def generate(
    denoiser: Denoises,
    sampler: Sampler,
    shape: tuple[int, ...],
    indices: Tensor,
    *,
    labels: Tensor | None = None,
    condition: Tensor | None = None,
    seed: int = 0,
    batch_size: int = 256,
    frames: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> Samples:
    """Sample the images of these indices.

    Args:
        denoiser: The model.
        sampler: How to go from noise to data.
        shape: [C, ...] of one sample.
        indices: int64 [n]; the noise of a sample depends on (seed, index) alone.
        labels: int64 [n] class labels, or None for unconditional samples.
        condition: [M, K, ...] images given beside x_t, repeated along the index; None for none.
        seed: Seed of the noise.
        batch_size: Samples at a time; changes memory and speed, not the samples.
        frames: Keep x_t at this many levels, at most one a step; 0 for none, or at least 2.
        device: Where the denoiser is.
        progress: Show a progress bar.

    Returns:
        The samples, on the CPU.
    """

    def trajectory(noise: IndexedNoise, y: Tensor | None) -> Iterator[State]:
        x_T = noise(0, shape) * denoiser.schedule.prior_std
        beside = None
        if condition is not None:
            beside = condition[torch.as_tensor(noise.indices) % len(condition)].to(device)
        return sampler.trajectory(given(denoiser, beside), x_T, y, noise)

    way = Way(len(levels_from_noise(sampler, denoiser)) - 1, trajectory)
    return follow(
        way,
        indices,
        labels=labels,
        seed=seed,
        batch_size=batch_size,
        frames=frames,
        device=device,
        progress=progress,
    )


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


def follow(
    way: Way,
    indices: Tensor,
    *,
    labels: Tensor | None = None,
    seed: int = 0,
    batch_size: int = 256,
    frames: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> Samples:
    """Go a way for the samples of these indices; arguments as for :func:`generate`."""
    if batch_size < 1 or not len(indices):
        raise InputError(f"{len(indices)} samples in batches of {batch_size}; at least 1 of each")
    if frames == 1 or frames < 0:
        raise InputError(f"{frames} frames; a trajectory has 2 or more (noise and sample), or 0")
    if labels is not None and len(labels) != len(indices):
        raise InputError(f"{len(labels)} labels for {len(indices)} samples; give one each")
    steps = way.steps
    kept = {round(i * steps / (frames - 1)) for i in range(frames)} if frames else set()
    batches = indices.split(batch_size)
    xs: list[Tensor] = []
    trajectories: list[Tensor] = []
    with tqdm(
        total=len(batches) * steps, desc="sampling", unit="step", leave=False, disable=not progress
    ) as bar:
        for i, batch in enumerate(batches):
            noise = IndexedNoise(seed, batch, device=device)
            y = None
            if labels is not None:
                y = labels[i * batch_size : i * batch_size + len(batch)].to(device)
            seen = []
            for k, state in enumerate(way.trajectory(noise, y)):
                if k in kept:
                    seen.append(state.x_t.float().cpu())
                bar.update(k > 0)
            xs.append(state.x_t.float().cpu())
            if seen:
                trajectories.append(torch.stack(seen))
    x = torch.cat(xs)
    if not bool(x.isfinite().all()):
        raise InputError(
            "the samples are not finite: the network has diverged, or the sampler leaves the "
            "data's range; use an earlier checkpoint, a smaller learning rate, or a clip"
        )
    inputs = None if way.inputs is None else way.inputs.cpu()
    return Samples(x, torch.cat(trajectories, dim=1) if trajectories else None, inputs)


def check_labels(
    num_classes: int | None,
    labels: Tensor | list[int] | None,
    guidance: Guidance,
    label_dropout: float = 1.0,
) -> None:
    """Raise InputError if labels or guidance do not fit a model.

    Args:
        num_classes: Classes that it knows; None: it takes no labels.
        labels: What is asked for.
        guidance: How strongly.
        label_dropout: Share of labels that its training dropped; without any it never learned
            what "no class" is.
    """
    if num_classes is None:
        if labels is not None:
            raise InputError("labels given, but the model has none (conditional: false)")
        if guidance.scale != 1:
            raise InputError(
                f"guidance {guidance.scale:g} needs a model with labels (conditional: true)"
            )
        return
    unlabelled = labels is not None and bool((torch.as_tensor(labels) == NULL_LABEL).any())
    if label_dropout == 0 and (guidance.scale != 1 or unlabelled):
        raise InputError(
            "the model was trained with label_dropout 0 and does not know what no class is: give "
            "labels, and no guidance"
        )
    if labels is not None:
        values = torch.as_tensor(labels)
        fits = (values >= NULL_LABEL) & (values < num_classes)
        if values.ndim != 1 or not len(values) or not bool(fits.all()):
            raise InputError(
                f"labels {values.tolist()}: give one or more from 0…{num_classes - 1} "
                "(or −1, no class)"
            )


def check_condition(channels: int, shape: tuple[int, ...], condition: Tensor | None) -> None:
    """Raise InputError unless the images given beside x_t are those that a model asks for.

    Args:
        channels: Channels that the model is given beside x_t; 0 for none.
        shape: [C, ...] of the model's data.
        condition: [M, channels, ...] of the data's size, or None.
    """
    if channels and condition is None:
        raise InputError(
            f"the model makes images out of given ones of {channels} channel(s), and none are "
            "given; give condition images (condition=, --condition)"
        )
    if condition is not None and not channels:
        raise InputError(
            "condition images given, but the model takes none; leave them out (condition=, "
            "--condition)"
        )
    wanted = (channels, *shape[1:])
    if condition is not None and (not len(condition) or tuple(condition.shape[1:]) != wanted):
        raise InputError(
            f"condition images of shape {list(condition.shape)}; the model takes one or more of "
            f"{list(wanted)}"
        )


def labels_of(
    indices: Tensor, num_classes: int | None, labels: Tensor | list[int] | None
) -> Tensor | None:
    """Labels repeated along the index: int64 [n]; by default one class after the other."""
    if num_classes is None:
        return None
    if labels is None:
        return indices % num_classes
    return torch.as_tensor(labels).long()[indices % len(labels)]
