"""Exponential moving average of the weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ddpm_lightning.errors import InputError
from ddpm_lightning.networks.network import Network


class EMA(nn.Module):
    """A frozen copy of a network that follows it: θ' ← decay·θ' + (1 − decay)·θ.

    It is always in evaluation mode, keeps its precision when the trained network is cast to half,
    and is never swapped with the network it follows.

    Args:
        net: The network to follow; its parameters are averaged, its buffers are not.
        decay: Final decay per optimizer step, e.g. 0.9999.
        warmup: Start with min(decay, (1 + n)/(10 + n)) at update n, so that a short run's average
            is not its initialisation.
        start: Copy the weights as they are for this many optimizer steps first.
    """

    def __init__(
        self, net: Network, decay: float = 0.9999, warmup: bool = True, start: int = 0
    ) -> None:
        super().__init__()
        if start < 0:
            raise InputError(f"ema_start={start}: give 0 or more optimizer steps")
        if not 0 <= decay < 1:
            raise InputError(f"ema_decay={decay}: give a decay in [0, 1), e.g. 0.9999")
        self.net = copy.deepcopy(net).requires_grad_(False)
        if any(p.dtype in (torch.bfloat16, torch.float16) for p in self.net.parameters()):
            self.net.float()
        super().train(False)
        self.decay = decay
        self.warmup = warmup
        self.start = start

    def decay_at(self, step: int) -> float:
        """Decay of the update that follows optimizer step number ``step`` (from 0)."""
        n = step - self.start
        if n < 0:
            return 0.0
        return min(self.decay, (1 + n) / (10 + n)) if self.warmup else self.decay

    @torch.no_grad()
    def update(self, net: nn.Module, step: int) -> None:
        """Move towards the network's weights, once per optimizer step."""
        averages = list(self.net.parameters())
        weights = [
            p.detach().to(average.dtype)
            for p, average in zip(net.parameters(), averages, strict=True)
        ]
        get_ema_multi_avg_fn(self.decay_at(step))(averages, weights, torch.tensor(0))

    def train(self, mode: bool = True) -> EMA:
        """Stay in evaluation mode."""
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # bf16 cannot hold an average: 1 − 0.9999 of a weight is below its resolution.
        return super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)
