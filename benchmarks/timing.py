"""Two ways of doing the same, timed in turn, so that other work on the machine falls on both."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from ddpm_lightning.progress import show_progress


@dataclass(frozen=True)
class Seconds:
    """What each round of one way took.

    Args:
        wall: Seconds by the clock, one a round.
        cpu: Seconds of processor time, one a round: of this process, all its threads together,
            and of those that it has started and waited for.
    """

    wall: list[float]
    cpu: list[float]


@dataclass(frozen=True)
class Spread:
    """A number that was measured several times.

    Args:
        median: The middle one.
        low: The lower quartile.
        high: The upper quartile.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise at least one value."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    def __str__(self) -> str:
        median, low, high = map(_number, (self.median, self.low, self.high))
        return median if low == high else f"{median} ({low} to {high})"


def _number(value: float) -> str:
    """Write three digits, but every digit of a large number."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def in_turn(
    ways: Mapping[str, Callable[[], object]], rounds: int, warm: int = 1
) -> dict[str, Seconds]:
    """Run every way once a round, in an order that turns around from round to round.

    It shows how many runs are done where that takes long.

    Args:
        ways: What to run, by name.
        rounds: How often each is timed.
        warm: How often each runs untimed before.
    """
    seconds = {name: Seconds([], []) for name in ways}
    total = (warm + rounds) * len(ways)
    with show_progress(total=total, desc="runs timed", leave=False) as bar:
        for run in ways.values():
            for _ in range(warm):
                run()
                bar.update()
        for i in range(rounds):
            for name in list(ways)[:: 1 if i % 2 == 0 else -1]:
                wait_for_gpu()
                clock, processor = time.perf_counter(), processor_seconds()
                ways[name]()
                wait_for_gpu()
                seconds[name].wall.append(time.perf_counter() - clock)
                seconds[name].cpu.append(processor_seconds() - processor)
                bar.update()
    return seconds


def processor_seconds() -> float:
    """Processor time so far, of this process and of those that it has waited for."""
    waited = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + waited.ru_utime + waited.ru_stime


def wait_for_gpu() -> None:
    """Return when all that was queued on the GPU is done, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ratio(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Divide round by round, so that a slow minute of the machine cancels."""
    return Spread.of([a / b for a, b in zip(above, below, strict=True)])
