"""Samples by index: image k is the same whatever the batch size or the number of processes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ddpm_lightning.diffusion.denoiser import Denoises, Guidance
from ddpm_lightning.diffusion.samplers import Sampler
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
    """

    x: Tensor
    frames: Tensor | None = None


def generate(
    denoiser: Denoises,
    sampler: Sampler,
    shape: tuple[int, ...],
    indices: Tensor,
    *,
    labels: Tensor | None = None,
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
        seed: Seed of the noise.
        batch_size: Samples at a time; changes memory and speed, not the samples.
        frames: Keep x_t at this many levels, at most one a step; 0 for none, or at least 2.
        device: Where the denoiser is.
        progress: Show a progress bar.

    Returns:
        The samples, on the CPU.
    """
    if batch_size < 1 or not len(indices):
        raise InputError(f"{len(indices)} samples in batches of {batch_size}; at least 1 of each")
    if frames == 1 or frames < 0:
        raise InputError(f"{frames} frames; a trajectory has 2 or more (noise and sample), or 0")
    levels = sampler.levels(denoiser.schedule)
    if levels[0] != denoiser.schedule.T and not sampler.spacing.starts_below_T:
        raise InputError(
            f"the sampler starts at level {levels[0]}, but samples start from noise at level "
            f"{denoiser.schedule.T}"
        )
    if labels is not None and len(labels) != len(indices):
        raise InputError(f"{len(labels)} labels for {len(indices)} samples; give one each")
    steps = len(levels) - 1
    kept = {round(i * steps / (frames - 1)) for i in range(frames)} if frames else set()
    batches = indices.split(batch_size)
    xs: list[Tensor] = []
    trajectories: list[Tensor] = []
    with tqdm(
        total=len(batches) * steps, desc="sampling", unit="step", leave=False, disable=not progress
    ) as bar:
        for i, batch in enumerate(batches):
            noise = IndexedNoise(seed, batch, device=device)
            x_T = noise(0, shape) * denoiser.schedule.prior_std
            y = None
            if labels is not None:
                y = labels[i * batch_size : i * batch_size + len(batch)].to(device)
            seen = []
            for k, state in enumerate(sampler.trajectory(denoiser, x_T, y, noise)):
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
    return Samples(x, torch.cat(trajectories, dim=1) if trajectories else None)


def check_labels(
    num_classes: int | None, labels: Tensor | list[int] | None, guidance: Guidance
) -> None:
    """Raise InputError if labels or guidance do not fit a model of num_classes (None: none)."""
    if num_classes is None:
        if labels is not None:
            raise InputError("labels given, but the model has none (conditional: false)")
        if guidance.scale != 1:
            raise InputError(
                f"guidance {guidance.scale:g} needs a model with labels (conditional: true)"
            )
    elif labels is not None:
        values = torch.as_tensor(labels)
        fits = (values >= NULL_LABEL) & (values < num_classes)
        if values.ndim != 1 or not len(values) or not bool(fits.all()):
            raise InputError(
                f"labels {values.tolist()}: give one or more from 0…{num_classes - 1} "
                "(or −1, no class)"
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
