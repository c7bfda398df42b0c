"""How far one value walks: the files that a checkpoint passes through in a command."""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import ddpm_lightning
from ddpm_lightning.cli import main

PREFIX = f"{Path(ddpm_lightning.__file__).parent}/"
SAMPLER = ["--sampler", "DDIM", "--sampler.steps", "2"]

_watched: list[tuple[Path, list[str]]] = []


def _on_open(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _watched and isinstance(arguments[0], str | Path):
        path, reads = _watched[-1]
        if Path(arguments[0]).name == path.name and Path(arguments[0]).resolve() == path:
            places = [frame.filename for frame in traceback.extract_stack()]
            ours = [place for place in places if place.startswith(PREFIX)]
            reads.append(ours[-1])


sys.addaudithook(_on_open)  # which nothing can remove, so it works while a file is watched


@contextmanager
def reads_of(path: Path) -> Iterator[list[str]]:
    """Collect from where a file is opened."""
    reads: list[str] = []
    _watched.append((path.resolve(), reads))
    try:
        yield reads
    finally:
        _watched.pop()


@contextmanager
def files_given(path: Path) -> Iterator[set[str]]:
    """Collect the package's files with a function that is given this path, or its Loaded.

    As an argument; the parsers' words and the dictionaries of results, which hold the path among
    other things, do not count.
    """
    files: set[str] = set()

    def is_it(value: Any) -> bool:
        return type(value).__name__ == "Loaded" or (
            isinstance(value, str | Path) and str(value) == str(path)
        )

    def trace(frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(PREFIX):
            return
        arguments = inspect.getargvalues(frame)
        values = [arguments.locals[name] for name in arguments.args]
        values += arguments.locals.get(arguments.varargs, ())
        values += arguments.locals.get(arguments.keywords, {}).values()
        if any(map(is_it, values)):
            files.add(code.co_filename.removeprefix(PREFIX))

    sys.setprofile(trace)
    try:
        yield files
    finally:
        sys.setprofile(None)


ONCE = 2
"""Openings of a file that is read once: of the zip's table of contents, and of the content."""


@pytest.mark.slow
def test_evaluate_reads_a_checkpoint_once_and_in_few_files(tiny_checkpoint, tmp_path):
    words = [f"--ckpt={tiny_checkpoint}", f"--out={tmp_path / 'scores'}", "--n=20", *SAMPLER]
    with files_given(tiny_checkpoint) as files, reads_of(tiny_checkpoint) as reads:
        main(["evaluate", *words])
    print(len(files), *sorted(files), sep="\n")
    assert 1 < len(files) <= 10
    assert len(reads) == ONCE


def test_sample_reads_a_checkpoint_once(tiny_checkpoint, tmp_path):
    words = [f"--ckpt={tiny_checkpoint}", f"--out={tmp_path / 'out'}", "--n=4", *SAMPLER]
    with reads_of(tiny_checkpoint) as reads:
        main(["sample", *words])
    assert len(reads) == ONCE
