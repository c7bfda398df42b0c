"""Altered input, in all its kinds: what the library makes of it, counted.

``python -m tests.fuzz --cases 2000 --seed 0`` runs them in this process. A kind is a function that
makes one case from a random generator, registered by :func:`kind` in a file of this folder; the
cases' names are printed where something is wrong, and a seed gives the same cases again. They are
drawn by a seeded generator and not by hypothesis, because an altered file is drawn faster than it
is shrunk, and every case is told apart by its name.
"""

from __future__ import annotations

import random
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from importlib import import_module
from io import StringIO
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from ddpm_lightning.cli import main
from ddpm_lightning.errors import InputError

SECONDS = 60
"""A case that takes longer hangs."""


@dataclass(frozen=True)
class Case:
    """One altered input.

    Args:
        name: What was altered and how it is used.
        use: Uses it; returns whether the result is that of the unaltered input.
        may_differ: The alteration is another valid input, not damage: its result is its own.
        planted: Modules that the input names and nobody allowed.
    """

    name: str
    use: Callable[[], bool]
    may_differ: bool = False
    planted: frozenset[str] = frozenset()


Maker = Callable[[random.Random, Path], Case]

KINDS: dict[str, Callable[[Path], Maker]] = {}
"""By name: from a folder of its own to a function that makes one case in another folder."""


def kind(name: str) -> Callable[[Callable[[Path], Maker]], Callable[[Path], Maker]]:
    """Register what prepares a kind of cases in a folder, and returns the maker of one."""

    def register(prepare: Callable[[Path], Maker]) -> Callable[[Path], Maker]:
        KINDS[name] = prepare
        return prepare

    return register


@dataclass
class Tally:
    """What became of the cases."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def add(self, outcome: str, case: Case, detail: str = "") -> None:
        """Count a case; the outcomes in capitals are faults."""
        self.counts[outcome] += 1
        if outcome.isupper():
            self.wrong.append(f"{outcome}: {case.name}\n{detail}")

    def __str__(self) -> str:
        faults = ("TRACEBACK", "FOREIGN IMPORT", "SILENTLY DIFFERENT", "MANY LINES")
        shown = {"cases": sum(self.counts.values())}
        shown |= {name: self.counts[name] for name in sorted(self.counts) if not name.isupper()}
        shown |= {name.lower(): self.counts[name] for name in faults}
        return "\n".join(f"{name:32} {count}" for name, count in shown.items())


def command(*words: str) -> None:
    """Run a command line in this process; its one line of refusal becomes an InputError."""
    told = StringIO()
    with redirect_stdout(StringIO()), redirect_stderr(told):
        try:
            main(words)
        except SystemExit as error:
            lines = [line for line in told.getvalue().splitlines() if "error: " in line]
            if (error.code, len(lines)) != (2, 1):
                raise RuntimeError(told.getvalue()) from error
            raise InputError(lines[0]) from error


_imported: set[str] = set()
_listening = False


def _audit(event: str, arguments: Any) -> None:
    if event == "import" and _listening:
        _imported.add(str(arguments[0]))


@contextmanager
def _imports() -> Iterator[set[str]]:
    """Collect the names of modules that are imported meanwhile."""
    global _listening
    _imported.clear()
    _listening = True
    try:
        yield _imported
    finally:
        _listening = False


@contextmanager
def _limited(seconds: int) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError(f"not done in {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def judge(case: Case, tally: Tally) -> None:
    """Use one case and count what became of it."""
    with _imports() as imported:
        try:
            with _limited(SECONDS):
                equal = case.use()
            detail = "" if equal or case.may_differ else "SILENTLY DIFFERENT"
            accepted = "accepted, equal result" if equal else "accepted, another valid input"
            tally.add(detail or accepted, case)
        except (InputError, MisconfigurationException) as error:
            tally.add("MANY LINES" if "\n" in str(error) else "refused", case, str(error))
        except KeyboardInterrupt:
            raise
        except BaseException:
            tally.add("TRACEBACK", case, traceback.format_exc())
        if foreign := sorted(case.planted & imported):
            tally.add("FOREIGN IMPORT", case, ", ".join(foreign))


def fuzz(cases: int, seed: int, folder: Path, only: list[str] | None = None) -> Tally:
    """Run so many cases, of each kind in turn.

    Args:
        cases: Their number in all.
        seed: Seed of the alterations.
        folder: Where files are made.
        only: Names of kinds; None: all.
    """
    for module in iter_modules(__path__):
        if not module.name.startswith("_"):
            import_module(f"{__name__}.{module.name}")  # which registers its kinds
    if not hasattr(fuzz, "hooked"):
        sys.addaudithook(_audit)  # which cannot be removed
        fuzz.hooked = True  # type: ignore[attr-defined]
    tally, makers = Tally(), {}
    for name in only or sorted(KINDS):
        (folder / name).mkdir(parents=True)
        makers[name] = KINDS[name](folder / name)
    for number in range(cases):
        name = list(makers)[number % len(makers)]
        # Each case has a generator of its own, so that one case can be made again alone.
        rng = random.Random(f"{seed} {number}")
        place = folder / "case"
        try:
            judge(makers[name](rng, place), tally)
        except KeyboardInterrupt:
            break  # what was counted so far is worth showing
    return tally
