"""Where a program waits for the GPU, and what it copies to it and from it."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

WAITS = "called a synchronizing"
"""In the warnings of torch.cuda.set_sync_debug_mode."""

Trace = list[dict[str, Any]]
"""Events of a profile, as Chrome's tracing format has them."""


@contextmanager
def places(device: torch.device) -> Iterator[Counter[str]]:
    """Count the lines at which Python waits for the GPU: ``finite.py:118``."""
    found: Counter[str] = Counter()
    if device.type != "cuda":
        yield found
        return
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for one in seen:
        if WAITS in str(one.message):
            found[f"{Path(one.filename).name}:{one.lineno}"] += 1


def told(found: Mapping[str, int]) -> str:
    """Name the places, the most frequent first."""
    shown = sorted(found.items(), key=lambda item: -item[1])[:8]
    return ", ".join(f"{place} ×{count}" for place, count in shown)


@contextmanager
def profiled(trace: Trace) -> Iterator[None]:
    """Append what the profiler sees on CPU and GPU."""
    with torch.profiler.profile() as profiler:
        yield
    with TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))
        trace += json.loads(file.read_text())["traceEvents"]


def per_step(trace: Trace, steps: int) -> dict[str, float]:
    """Reduce a profile to counts a step, and the share of time in which the GPU computes."""
    complete = [one for one in trace if one.get("ph") == "X"]
    waits = [one for one in complete if one["name"].endswith("Synchronize")]
    kernels = [one for one in complete if one.get("cat") == "kernel"]
    copies = [one for one in complete if one.get("cat") == "gpu_memcpy"]
    found = {"waits seen by the profiler": len(waits) / steps, "kernels": len(kernels) / steps}
    for way in ("HtoD", "DtoH"):
        those = [one for one in copies if way in one["name"]]
        found[f"copies {way}"] = len(those) / steps
        found[f"KiB {way}"] = sum(one["args"].get("bytes", 0) for one in those) / steps / 1024
    pageable = [one for one in copies if "Pageable" in one["name"]]
    found["copies of pageable memory"] = len(pageable) / steps
    if kernels:
        first = min(one["ts"] for one in kernels)
        last = max(one["ts"] + one["dur"] for one in kernels)
        found["share of time with a kernel"] = _covered(kernels) / (last - first)
    return found


def _covered(events: Trace) -> float:
    """Length of the union of the events' spans."""
    total, end = 0.0, float("-inf")
    for one in sorted(events, key=lambda one: one["ts"]):
        stop = one["ts"] + one["dur"]
        total += max(0.0, stop - max(one["ts"], end))
        end = max(end, stop)
    return total


class Watched(Callback):
    """Watches some training steps of fit: first for waits, then by the profiler.

    Attributes:
        waits: Waits by place, of the first ``steps``.
        trace: The profile of as many more.

    Args:
        device: The GPU.
        first: Steps before.
        steps: Steps of each kind.
    """

    def __init__(self, device: torch.device, first: int, steps: int) -> None:
        self.device = device
        self.first = first
        self.steps = steps
        self.waits: Counter[str] = Counter()
        self.trace: Trace = []
        self._stack = ExitStack()

    @property
    def last(self) -> int:
        """The step after which nothing is watched any more."""
        return self.first + 2 * self.steps

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Begin and end at the end of a step."""
        step = trainer.global_step
        if step == self.first:
            self.waits = self._stack.enter_context(places(self.device))
        if step == self.first + self.steps:
            self._stack.close()
            self._stack.enter_context(profiled(self.trace))
        if step == self.last:
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            self._stack.close()
