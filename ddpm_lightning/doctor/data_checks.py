"""Checks of the data: range, shape, labels, division of the batch, noise of the ranks."""

from __future__ import annotations

from typing import Any

import torch

from ddpm_lightning.data.data_module import DiffusionData
from ddpm_lightning.data.stream import Layout
from ddpm_lightning.doctor.finding import Finding, Run, failed, ok, unknown
from ddpm_lightning.randomness import Draw


def data_range(run: Run) -> Finding:
    """Whether the data has the shape that the model was built for, and fills its range."""
    x0, spec = run.batch.x0, run.module.data
    if run.batch.latents is not None:
        return ok("latents, which have no range")
    low, high = x0.min().item(), x0.max().item()
    found = f"{list(x0.shape)} from {low:.3f} to {high:.3f}, standard deviation {x0.std():.3f}"
    if tuple(x0.shape[1:]) != spec.shape:
        return failed(f"{found}; the model was built for samples of {list(spec.shape)}")
    if not bool(x0.isfinite().all()):
        return failed(f"{found}; rows {_rows(~x0.isfinite())} of the batch are not finite")
    if spec.data_range is None:
        return ok(f"{found}, unbounded")
    least, most = spec.data_range
    if low < least or high > most:
        return failed(f"{found}; sampling clips to {least:g}…{most:g}, so scale the data to that")
    if high - low <= 0.6 * (most - least):
        return failed(f"{found}; that leaves most of {least:g}…{most:g} empty, so scale the data")
    return ok(f"{found}, within {least:g}…{most:g}")


def label_ids(run: Run) -> Finding:
    """Whether every label of the batch is a class of the model."""
    label, classes = run.batch.condition.label, run.module.data.num_classes
    if classes is None:
        return ok("the model is trained without labels (conditional: false)")
    if label is None:
        return failed("the model is conditional, but the batch has no labels")
    if label.dtype != torch.int64 or label.shape != (len(run.batch.x0),):
        return failed(f"labels are {label.dtype} {list(label.shape)}, not int64 [B]")
    seen = label.unique().tolist()
    if wrong := [one for one in seen if not 0 <= one < classes]:
        return failed(f"labels {wrong[:5]} are no classes 0…{classes - 1}")
    return ok(f"{len(seen)} of {classes} classes in the first {len(label)} samples")


def divisibility(run: Run) -> Finding:
    """Whether the global batch divides over processes and accumulation."""
    size: Any = getattr(run.data, "global_batch_size", None)
    if size is None:
        return unknown(f"{type(run.data).__name__} states no global_batch_size")
    world, accumulate = run.processes, run.trainer.accumulate_grad_batches
    layout = Layout(size, 0, world, accumulate)
    layout.check()
    found = f"global_batch_size {size} = {world} processes × {accumulate} micro-batches × "
    found += f"{layout.batch} samples"
    total = len(run.data.source("train")) if isinstance(run.data, DiffusionData) else size
    if size > total:
        return failed(f"{found}, but there are {total}: a step would take each several times")
    return ok(found)


def noise_of_ranks(run: Run) -> Finding:
    """Whether two processes would noise the same sample differently."""
    half = len(run.batch.x0) // 2
    if half == 0:
        return unknown("a global batch of one sample cannot be shared by two processes")
    module = run.module
    both = []
    for part in (slice(half), slice(half, 2 * half)):
        batch = run.batch.part(part)
        module.trainer = run.trainer
        noise = module.training_noise(batch, 0)
        t, _ = module.timesteps(module.schedule, noise)
        both.append((noise(Draw.EPS, module.latent.shape), t))
    (eps, t), (other, other_t) = both
    equal = int((eps == other).flatten(1).all(1).sum())
    if equal:
        return failed(f"{equal} of {half} rows of two processes get the same noise")
    return ok(f"two processes draw other noise in all {half} rows (timesteps {_few(t)}; "
              f"{_few(other_t)})")  # fmt: skip


def _rows(wrong: torch.Tensor) -> list[int]:
    return wrong.flatten(1).any(1).nonzero()[:5, 0].tolist()


def _few(t: torch.Tensor) -> str:
    return ", ".join(map(str, t[:3].tolist())) + " …"
