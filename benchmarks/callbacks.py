"""Callbacks of the benchmarks' training runs."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from typing_extensions import override

from ddpm_lightning.ema import EMA


class Averages(Callback):
    """Keep further averages of the weights, and write them at the end of training.

    Args:
        decays: Their decays.
        file: Where they are written: a dictionary from decays to state dictionaries.
    """

    def __init__(self, decays: Sequence[float], file: str) -> None:
        self.decays = tuple(decays)
        self.file = Path(file)
        self.averages: dict[float, EMA] = {}

    @override
    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        self.averages = {decay: EMA(decay) for decay in self.decays}
        for average in self.averages.values():
            average.follow(module.net)

    @override
    def on_train_batch_end(self, trainer: Trainer, module: Any, *_: Any) -> None:
        for average in self.averages.values():
            average.update(module.net, trainer.global_step - 1)

    @override
    def on_train_end(self, trainer: Trainer, module: Any) -> None:
        states: dict[float, dict[str, Tensor]] = {
            decay: {name: value.cpu() for name, value in average.net.state_dict().items()}
            for decay, average in self.averages.items()
        }
        torch.save(states, self.file)


class TrainingClock(Callback):
    """Time what training takes from its first step to its last.

    Args:
        file: Where ``seconds`` by the clock and ``cpu_seconds``, all threads together, are written
            at the end of training, as JSON.
    """

    def __init__(self, file: str) -> None:
        self.file = Path(file)
        self.start = self.cpu_start = 0.0

    @override
    def on_train_start(self, *_: Any) -> None:
        self.start, self.cpu_start = time.perf_counter(), time.process_time()

    @override
    def on_train_end(self, *_: Any) -> None:
        seconds = time.perf_counter() - self.start
        cpu_seconds = time.process_time() - self.cpu_start
        self.file.write_text(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds}))


class StepClock(Callback):
    """Processor seconds of this process, all threads together, at the end of each step.

    Args:
        file: Where they are written at the end of training, one a line.
    """

    def __init__(self, file: str) -> None:
        self.file = Path(file)
        self.ends: list[float] = []

    @override
    def on_train_batch_end(self, *_: Any) -> None:
        self.ends.append(time.process_time())

    @override
    def on_train_end(self, *_: Any) -> None:
        self.file.write_text("\n".join(map(repr, self.ends)))
