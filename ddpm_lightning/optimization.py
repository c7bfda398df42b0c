"""Optimizer and learning rate, per optimizer step."""

from __future__ import annotations

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn
from torch.optim.lr_scheduler import LinearLR, LRScheduler, ReduceLROnPlateau, SequentialLR

from ddpm_lightning.errors import InputError


def make_optimizer(net: nn.Module, optimizer: OptimizerCallable) -> torch.optim.Optimizer:
    """Build the optimizer of a network's parameters; its refusal becomes an InputError."""
    try:
        return optimizer(net.parameters())
    except (TypeError, ValueError) as error:
        raise InputError(f"the optimizer cannot be made: {error}") from error


def make_lr_schedule(
    optimizer: torch.optim.Optimizer, warmup_steps: int, after: LRSchedulerCallable | None
) -> LRScheduler | None:
    """Build the learning rate schedule: linear warm-up from 0, then another schedule.

    Args:
        optimizer: Its learning rate is reached after the warm-up.
        warmup_steps: Steps of the warm-up; 0 or 1 is none.
        after: The schedule after the warm-up; None keeps the rate constant.

    Returns:
        The schedule, to be stepped per optimizer step; None: the rate is constant.

    Raises:
        InputError: The schedule needs a metric (ReduceLROnPlateau).
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
    """Refuse a fused optimizer with clipping under mixed precision: torch fails at step 1."""
    mixed = str(trainer.precision).endswith("-mixed")
    if optimizer.defaults.get("fused") and trainer.gradient_clip_val and mixed:
        raise InputError(
            "a fused optimizer cannot clip gradients under mixed precision; use fused: false "
            "(or foreach: true), or leave out gradient_clip_val"
        )
