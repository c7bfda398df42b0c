"""Optimizer and learning rate, per optimizer step."""

from __future__ import annotations

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn
from torch.optim.lr_scheduler import LinearLR, LRScheduler, ReduceLROnPlateau, SequentialLR

from ddpm_lightning.errors import InputError


def make_optimizer(net: nn.Module, optimizer: OptimizerCallable) -> torch.optim.Optimizer:
    """Make the optimizer of a network's parameters.

    Raises:
        InputError: It refuses its settings.
    """
    try:
        return optimizer(net.parameters())
    except (TypeError, ValueError) as error:
        raise InputError(f"the optimizer cannot be made: {error}") from error


def make_lr_schedule(
    optimizer: torch.optim.Optimizer, warmup_steps: int, after: LRSchedulerCallable | None
) -> LRScheduler | None:
    """Raise the learning rate linearly from 0 over the warm-up, then follow a schedule.

    Args:
        optimizer: Its learning rate is the one that is reached.
        warmup_steps: Steps of the warm-up; 0 or 1 is none.
        after: The schedule after the warm-up; None keeps the rate constant.

    Returns:
        A schedule to be stepped per optimizer step, or None where nothing changes.

    Raises:
        InputError: The schedule waits for a metric.
    """
    parts: list[LRScheduler] = []
    if warmup_steps > 1:
        warm_up = LinearLR(optimizer, start_factor=1 / warmup_steps, total_iters=warmup_steps - 1)
        parts.append(warm_up)
    if after is not None:
        schedule = after(optimizer)
        if isinstance(schedule, ReduceLROnPlateau):
            raise InputError("lr_schedule: ReduceLROnPlateau waits for a metric; use another")
        parts.append(schedule)
    if len(parts) == 2:
        return SequentialLR(optimizer, parts, milestones=[warmup_steps])
    return parts[0] if parts else None


def refuse_fused_clipping(optimizer: torch.optim.Optimizer, trainer: Trainer) -> None:
    """Refuse fused, clipped and mixed precision together, before torch does in the first step."""
    mixed = str(trainer.precision).endswith("-mixed")
    if optimizer.defaults.get("fused") and trainer.gradient_clip_val and mixed:
        raise InputError(
            "a fused optimizer cannot clip gradients under mixed precision; use fused: false "
            "(or foreach: true), or leave out gradient_clip_val"
        )
