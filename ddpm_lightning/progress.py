"""Progress of long work: a bar in a terminal or a notebook, a line now and then in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from datetime import timedelta
from typing import Any

from tqdm.auto import tqdm

INTERVAL = 30.0
"""Seconds from one line to the next where there is no terminal."""


def shows_bars() -> bool:
    """Tell whether a bar can be drawn over and over: in a terminal or a notebook."""
    in_notebook = any(base.__module__ == "tqdm.notebook" for base in tqdm.__mro__)
    return in_notebook or sys.stderr.isatty()


def show_progress(work: Iterable[Any] | None = None, **settings: Any) -> Any:
    """Show the progress of work as tqdm does, or as :class:`Lines` where there is no terminal."""
    return tqdm(work, **settings) if shows_bars() else Lines(work, **settings)


class Lines:
    """The part of tqdm's interface that this package uses, a line every so many seconds.

    Args:
        work: What is iterated over; None: :meth:`update` counts.
        total: How many there are; default: the length of the work.
        desc: What is done.
        initial: How many are done already.
        disable: Print nothing.
        seconds: From one line to the next, the first included: what is quick prints nothing.
        unit: Of no matter for lines, like leave.
        leave: Of tqdm's.
    """

    def __init__(
        self,
        work: Iterable[Any] | None = None,
        total: int | None = None,
        desc: str = "",
        initial: int = 0,
        disable: bool = False,
        seconds: float = INTERVAL,
        unit: str = "",
        leave: bool = False,
    ) -> None:
        self.work = work
        self.total = len(work) if total is None and isinstance(work, Sized) else total
        self.desc = desc
        self.n = self.initial = initial
        self.disable = disable
        self.seconds = seconds
        self.start = self.last = time.monotonic()
        self.values: dict[str, Any] = {}

    def __iter__(self) -> Iterator[Any]:
        for one in self.work or ():
            yield one
            self.update()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End without a line: what the work gives is told by whoever asked for it."""

    def set_postfix(self, *, refresh: bool = True, **values: Any) -> None:
        """Give what the next lines end in; ``refresh`` is of tqdm's."""
        self.values = values

    def update(self, n: int = 1) -> None:
        """Count n more, and print a line if it is time."""
        self.n += n
        if self.is_due():
            self.last = time.monotonic()
            self.tell()

    def is_due(self) -> bool:
        """Whether the next update prints a line."""
        return not self.disable and time.monotonic() - self.last >= self.seconds

    def tell(self) -> None:
        """Print a line: what is done, the rate, the time left, and the values given."""
        rate = (self.n - self.initial) / max(1e-9, time.monotonic() - self.start)
        words = [f"{self.n} of {self.total}" if self.total else f"{self.n}"]
        words.append(f"{rate:.3g} a second")
        if self.total and rate:
            left = timedelta(seconds=round((self.total - self.n) / rate))
            words.append(f"{left} left")
        words += [f"{name} {_short(value)}" for name, value in self.values.items()]
        print(f"{self.desc}: {', '.join(words)}", file=sys.stderr, flush=True)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
