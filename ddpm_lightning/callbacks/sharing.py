"""Work on samples 0…n−1 shared among processes by index."""

from __future__ import annotations

import torch
from einops import rearrange
from lightning.pytorch import Trainer
from torch import Tensor


def share(n: int, trainer: Trainer) -> Tensor:
    """Give this process its indices: rank, rank + world, …; int64 [ceil(n / world)].

    Every process gets equally many, so that all make the same number of network calls; surplus
    indices ≥ n are worked on and dropped by :func:`gather`.
    """
    count = -(-n // trainer.world_size)
    return trainer.global_rank + trainer.world_size * torch.arange(count)


def gather(rows: Tensor, n: int, trainer: Trainer) -> Tensor:
    """Put the processes' rows [ceil(n / world), ...] in index order: [n, ...] on the CPU."""
    if trainer.world_size > 1:
        gathered = trainer.strategy.all_gather(rows.to(trainer.strategy.root_device).contiguous())
        rows = rearrange(gathered, "world row ... -> (row world) ...")
    return rows[:n].cpu()


def of_all_ranks(tensor: Tensor, trainer: Trainer) -> Tensor:
    """Collect a tensor of every process: [world, ...] on the CPU."""
    if trainer.world_size > 1:
        return trainer.strategy.all_gather(tensor).cpu()
    return tensor[None].cpu()


def of_this_rank(stored: Tensor, trainer: Trainer) -> Tensor:
    """Give a process its part of sums from :func:`of_all_ranks`, so that they add up the same.

    Of another number of processes than then, the first one gets them all.
    """
    if len(stored) == trainer.world_size:
        return stored[trainer.global_rank]
    return stored.sum(0) if trainer.is_global_zero else torch.zeros_like(stored[0])


def shows_progress(trainer: Trainer) -> bool:
    """Tell whether this process shows progress bars: the first one, unless they are off."""
    return trainer.is_global_zero and trainer.progress_bar_callback is not None
