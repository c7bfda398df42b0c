"""What a benchmark prints: a row a figure, its limit, and the versions; it fails below a limit."""

from __future__ import annotations

import math
import os
import platform
import sys
from dataclasses import dataclass, field
from importlib.metadata import version

import torch

from benchmarks.timing import Spread

PACKAGES = ("torch", "torchvision", "lightning", "numpy", "pillow")


@dataclass(frozen=True)
class Row:
    """One figure.

    Args:
        name: What was measured.
        value: The figure with its spread.
        at_least: The least that it may be.
        at_most: The most that it may be.
        note: What stands behind it in the table.
        failure: Why it could not be measured; empty: it was.
    """

    name: str
    value: Spread
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""
    failure: str = ""

    @property
    def holds(self) -> bool:
        """Whether it was measured and the median is within its limits; a NaN never is."""
        if self.failure:
            return False
        above = self.at_least is None or self.value.median >= self.at_least
        return above and (self.at_most is None or self.value.median <= self.at_most)

    @property
    def limit(self) -> str:
        """Its limits in words."""
        parts = [f"≥ {self.at_least:g}"] if self.at_least is not None else []
        return " ".join(parts + ([f"≤ {self.at_most:g}"] if self.at_most is not None else []))


@dataclass
class Report:
    """The rows of one benchmark.

    Args:
        title: What the table is about.
        rows: Its figures so far.
    """

    title: str
    rows: list[Row] = field(default_factory=list)

    def add(
        self,
        name: str,
        value: Spread,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
        note: str = "",
    ) -> None:
        """Add a figure and print it at once, since the next may take minutes."""
        row = Row(name, value, at_least, at_most, note)
        self.rows.append(row)
        print(f"  … {name}: {value}", file=sys.stderr, flush=True)

    def fail(self, name: str, error: Exception | str) -> None:
        """Add what could not be measured, so that the rest still can."""
        reason = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        reason = " ".join(reason.replace("|", "/").split())[:300]
        self.rows.append(Row(name, Spread.of([math.nan]), failure=reason))
        print(f"  … {name}: FAILED: {reason}", file=sys.stderr, flush=True)

    def finish(self) -> int:
        """Print the table in Markdown; return the exit code, 1 where a limit does not hold."""
        print(f"\n{self.title}\n\n| what | median (quartiles) | limit | |\n|---|---|---|---|")
        for row in self.rows:
            if row.failure:
                print(f"| {row.name} | FAILED: {row.failure} | | |")
                continue
            held = "" if not row.limit else "holds" if row.holds else "DOES NOT HOLD"
            print(f"| {row.name} | {row.value} | {row.limit} | {' '.join((held, row.note))} |")
        print(f"\n{machine()}")
        return 0 if all(row.holds for row in self.rows) else 1


def machine() -> str:
    """Versions, cores and load, in one line."""
    found = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"Python {platform.python_version()}, {found}; {processor()}, "
        f"{torch.get_num_threads()} threads{gpu}, load average {os.getloadavg()[0]:.1f}"
    )


def processor() -> str:
    """What decides most about the time of a step on a CPU: its cores and vector instructions."""
    return f"{os.cpu_count()} cores with {torch.backends.cpu.get_cpu_capability()}"
