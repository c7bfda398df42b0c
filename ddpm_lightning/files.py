"""Atomic file writes, JSON without NaN, and checks that a folder is writable."""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ddpm_lightning.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PARTIAL = ".part"
"""Suffix of a file that is being written; a killed process may leave it behind."""


CLUTTER = (".DS_Store", "Thumbs.db", "desktop.ini")
"""Files that file managers leave in a folder: with nothing else it is empty."""


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path that is renamed to ``path`` at the end.

    If writing fails the file there, if any, stays as it is, and nothing of the new one is left.

    Raises OSError: With the name of the file, which a full disk alone does not tell.
    """
    partial = path.with_name(path.name + PARTIAL)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a lock file, which need not exist; wait while another process holds it.

    The system releases it with the process, however that ends. The file stays.
    """
    with path.open("a") as file:
        if fcntl is not None:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def json_value(value: Any) -> Any:
    """Make plain data valid JSON: NaN becomes null, ±inf a string, tuples lists."""
    if isinstance(value, dict):
        return {key: json_value(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def write_json(path: Path, value: Any, indent: int | None = 2) -> None:
    """Write plain data, with finite numbers only, as JSON; on one line without an indent."""
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(value, indent=indent, allow_nan=False) + "\n", "utf-8")


def is_address(path: str) -> bool:
    """Whether a path names another file system, as s3://bucket/folder does; C:/ is a drive."""
    return re.match(r"[A-Za-z0-9]{2,}:/", path) is not None


def check_folder(folder: Path) -> None:
    """Raise InputError unless files can be written into a folder, which need not exist yet.

    It writes a file and removes it and the folders it made, because permission bits are not
    enough to know.
    """
    missing = []
    try:
        missing = [path for path in (folder, *folder.parents) if not os.path.exists(path)]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        files = [path for path in (folder, *folder.parents) if os.path.isfile(path)]
        reason = f"{files[0]} is a file" if files else error.strerror
        raise InputError(
            f"nothing can be written into {folder}: {reason}; choose another folder"
        ) from error
    finally:
        for path in missing:
            with suppress(OSError):
                path.rmdir()


def contents(folder: Path) -> list[Path]:
    """List what is in a folder, without the files that file managers leave in any they show."""
    return [path for path in folder.iterdir() if path.name not in CLUTTER]


def check_new_folder(folder: Path) -> None:
    """Raise InputError unless files can be written into a folder that is new or empty."""
    if os.path.isdir(folder) and contents(folder):
        raise InputError(
            f"{folder} is not an empty folder; images of two runs would mix, choose another"
        )
    check_folder(folder)


def check_new_file(path: Path, suffixes: tuple[str, ...]) -> None:
    """Raise InputError unless a file is new, has one of these suffixes and can be written."""
    if path.suffix.lower() not in suffixes:
        raise InputError(f"{path}: name a file that ends in {' or '.join(suffixes)}")
    if path.exists():
        raise InputError(f"{path} exists already; choose another name, or remove it")
    check_folder(path.parent)
