"""Exponential moving average of the weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from typing_extensions import override

from ddpm_lightning.configurable import Configurable
from ddpm_lightning.errors import InputError
from ddpm_lightning.sharding import own_part


class EMA(Configurable, nn.Module):
    """A frozen copy of the network that follows it: θ' ← decay·θ' + (1 − decay)·θ.

    It is always in evaluation mode and in float32 or wider, and is never swapped with the network
    it follows. For another kind of average, override ``decay_at`` or ``update``.

    Args:
        decay: Final decay per optimizer step.
        warmup: Use min(decay, (1 + n)/(10 + n)) at update n, so that the average of a short run
            is not dominated by the initial weights.
        start: Number of initial optimizer steps that copy the weights (decay 0).

    Raises:
        InputError: A setting is out of range.
    """

    net: nn.Module

    def __init__(self, decay: float = 0.9999, warmup: bool = True, start: int = 0) -> None:
        super().__init__()
        if start < 0:
            raise InputError(f"EMA(start={start}): give 0 or more optimizer steps")
        if not 0 <= decay < 1:
            raise InputError(f"EMA(decay={decay}): give a decay in [0, 1), e.g. 0.9999")
        self.decay = decay
        self.warmup = warmup
        self.start = start
        super().train(False)

    def follow(self, net: nn.Module) -> None:
        """Initialise the average with a copy of this network."""
        self.net = copy.deepcopy(net).requires_grad_(False).eval()
        if any(p.dtype in (torch.bfloat16, torch.float16) for p in self.net.parameters()):
            self.net.float()

    def decay_at(self, step: int) -> float:
        """Decay of the update after optimizer step ``step`` (from 0)."""
        n = step - self.start
        if n < 0:
            return 0.0
        return min(self.decay, (1 + n) / (10 + n)) if self.warmup else self.decay

    @torch.no_grad()
    def update(self, net: nn.Module, step: int) -> None:
        """Average the parameters and copy the buffers (running statistics) after a step."""
        averages = [own_part(average) for average in self.net.parameters()]
        weights = [
            own_part(p.detach()).to(average.dtype)
            for p, average in zip(net.parameters(), averages, strict=True)
        ]
        get_ema_multi_avg_fn(self.decay_at(step))(averages, weights, torch.tensor(0))
        for own, buffer in zip(self.net.buffers(), net.buffers(), strict=True):
            own.copy_(buffer)

    @override
    def train(self, mode: bool = True) -> EMA:
        return self  # always in evaluation mode

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # Device moves only: in bf16, an update of 1 − 0.9999 of a weight rounds to nothing.
        return super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)
