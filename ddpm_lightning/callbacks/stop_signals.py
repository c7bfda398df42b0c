"""SIGTERM, Ctrl-C and SLURM's signal as a request to stop after the optimizer step."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from typing_extensions import override

AGAIN = 1.0
"""Seconds after which a signal is a second one. Launchers, `timeout` and terminals send the same
one twice: to the group of processes, and to the process itself."""


class Stopped(SystemExit):
    """The end of a process that a signal has stopped: exit code 128 + its number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class StopSignals(_SignalConnector):
    """Handlers of SIGTERM and SIGINT, in place of Lightning's; under SLURM also of SIGUSR1.

    That is the signal of ``sbatch --signal=USR1@90``, or the one that the trainer's
    SLURMEnvironment names. Lightning requeues the job then; here the job's script does.

    While ``defers`` is set, the first signal is only noted, because a save is exact between
    optimizer steps alone; otherwise it ends the process. A second one ends it at once. The handler
    calls nothing of torch.distributed: a broadcast there, as Lightning's does, meets the
    all-reduce of another process.

    Args:
        trainer: The trainer.
    """

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(trainer)
        self.defers = False
        self._request: int | None = None
        self._since = 0.0

    @override
    def register_signal_handlers(self) -> None:
        environment = self.trainer._accelerator_connector.cluster_environment
        numbers: set[int] = {signal.SIGTERM, signal.SIGINT}
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            numbers.add(environment.requeue_signal or signal.SIGTERM)  # none on Windows
        for number in numbers:
            self._original_handlers.setdefault(number, signal.getsignal(number))
            self._register_signal(number, self._handle)

    def agreed(self) -> int | None:
        """Return the signal that any process was sent, on all; called by all between two steps."""
        own = self._request or 0
        if self.trainer.world_size > 1:
            strategy: Any = self.trainer.strategy
            request = torch.tensor(own, device=strategy.root_device)
            own = int(strategy.reduce(request, reduce_op="max"))
        return own or None

    def _handle(self, number: int, _: FrameType | None) -> None:
        now, first = time.monotonic(), self._request is None
        if first:
            self._request, self._since = number, now
        if not self.defers:
            launcher: Any = self.trainer.strategy.launcher
            if first and launcher is not None:
                launcher.kill(number)
            if first:
                raise Stopped(number)
        elif first and self.trainer.is_global_zero:
            # Not print, which may be interrupted in the middle of itself.
            os.write(2, b"\nstopping after this step; once more: at once\n")
        if now - self._since > AGAIN:
            os._exit(128 + number)
