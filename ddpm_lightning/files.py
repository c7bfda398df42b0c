"""Files that are whole or not there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PARTIAL = ".part"
"""Ending of a file that is being written; a killed process may leave it behind."""


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a path to write to that becomes the file at the end; a stop leaves the file as it was.

    Args:
        path: The file; its folder is made if it is missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL)
    yield partial
    partial.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write plain data as JSON, in which every number is finite."""
    with whole(path) as partial:
        partial.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
