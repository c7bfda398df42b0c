"""Means of the loss terms over the global batch of an optimizer step."""

from __future__ import annotations

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor


class StepMeans:
    """Sums of the loss terms over the micro-batches of a step, and their means over all processes.

    Lightning's own log keeps the last micro-batch of the first process, and writes it after the
    callbacks have saved the step.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, terms: dict[str, Tensor]) -> None:
        """Add a micro-batch: [B] numbers of each term."""
        for name, term in terms.items():
            self._sums[name] = self._sums.get(name, 0) + term.detach().float().sum()
        self._count += len(next(iter(terms.values())))

    def own(self) -> dict[str, Tensor]:
        """Return the means over the micro-batches of this process."""
        return {name: total / self._count for name, total in self._sums.items()}

    def reduce(self, strategy: Strategy) -> dict[str, float]:
        """Return the means over all micro-batches and processes; one collective call."""
        sums = list(self._sums.values())
        if not sums:  # a training_step of one's own
            return {}
        both = torch.stack([*sums, torch.full_like(sums[0], self._count)])
        *totals, count = strategy.reduce(both, reduce_op="sum").tolist()
        return {name: total / count for name, total in zip(self._sums, totals, strict=True)}

    def clear(self) -> None:
        """Begin the next step."""
        self._sums, self._count = {}, 0
