"""Folders of loggers on other file systems, such as s3://bucket/folder."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from lightning.fabric.utilities.cloud_io import get_filesystem

from ddpm_lightning.errors import InputError
from ddpm_lightning.files import atomic_write, is_address


def write_text(path: str, text: str) -> None:
    """Write a file at a path, or at an address that fsspec knows."""
    if is_address(path):
        with get_filesystem(path).open(path, "w", encoding="utf-8") as file:
            file.write(text)
        return
    with atomic_write(Path(path)) as partial:
        partial.write_text(text, "utf-8")


def check_address(folder: str) -> None:
    """Raise InputError unless a file can be written into a folder at an address of fsspec.

    It writes a file and removes it. A path of this machine passes.
    """
    if not is_address(folder):
        return
    probe = f"{folder}/.probe-{uuid4().hex}"
    try:
        files = get_filesystem(folder)
        files.makedirs(folder, exist_ok=True)
        files.pipe_file(probe, b"")
        with suppress(FileNotFoundError):  # some list a new file only later
            files.rm_file(probe)
    except Exception as error:  # of any library of any file system
        raise InputError(
            f"nothing can be written into {folder}: {error or type(error).__name__}; choose a "
            "folder of this machine, or make that one writable"
        ) from error
