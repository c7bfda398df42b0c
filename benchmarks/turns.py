"""Steps of fit, timed in turn with other loops."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, Trainer

from benchmarks.loops import Step
from benchmarks.timing import Seconds, wait_for_gpu


class Turns(Callback):
    """Times n steps of fit, then as many of every other loop, in turn.

    Args:
        others: The other loops.
        n: Steps a turn.
        warm: Steps before the first, of all.
    """

    def __init__(self, others: dict[str, Step], n: int, warm: int) -> None:
        self.others = others
        self.n = n
        self.warm = warm
        self.seconds = {name: Seconds([], []) for name in ("fit", *others)}
        self._since = 0.0, 0.0

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """At the end of a turn of fit, give the others theirs."""
        step = trainer.global_step - self.warm
        if step < 0 or step % self.n:
            return
        if step:
            self._keep("fit")
        for name, run in self.others.items():
            for _warm in range(0 if step else self.warm):
                run()
            self._start()
            for _turn in range(self.n if step else 0):
                run()
            if step:
                self._keep(name)
        self._start()

    def _start(self) -> None:
        wait_for_gpu()
        self._since = time.perf_counter(), time.process_time()

    def _keep(self, name: str) -> None:
        wait_for_gpu()
        clock, process = self._since
        self.seconds[name].wall.append((time.perf_counter() - clock) / self.n)
        self.seconds[name].cpu.append((time.process_time() - process) / self.n)
