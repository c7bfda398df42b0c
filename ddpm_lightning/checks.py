"""What is checked before any work: seeds, speeds, places for results."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path

from ddpm_lightning.errors import InputError

LARGEST_SEED = 2**64 - 1
"""The key of the noise has 64 bits."""


def check_seed(seed: int) -> None:
    """Raise InputError unless noise can be drawn with this seed."""
    if not 0 <= seed <= LARGEST_SEED:
        raise InputError(f"seed={seed}: it is not negative and below 2**64")


def check_frames(frames: int) -> None:
    """Raise InputError unless this many frames show the way from noise to sample, or none."""
    if frames < 0 or frames == 1:
        raise InputError(f"frames={frames}: a trajectory has 2 or more (noise and sample), or 0")


def check_fps(fps: float) -> None:
    """Raise InputError unless a GIF, which counts hundredths of a second, can be so fast."""
    if not 0.002 <= fps <= 50:
        raise InputError(f"fps={fps:g}: a GIF shows 0.002 to 50 frames a second")


def check_folder(folder: Path) -> None:
    """Raise InputError unless files can be written into a folder, which may be missing yet.

    Tried for real, for permissions do not tell all; nothing stays behind.
    """
    missing = []
    try:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        files = [path for path in (folder, *folder.parents) if path.is_file()]
        reason = f"{files[0]} is a file" if files else error.strerror
        raise InputError(
            f"nothing can be written into {folder}: {reason}; choose another folder"
        ) from error
    finally:
        for path in missing:
            with suppress(OSError):
                path.rmdir()


def check_new_folder(folder: Path) -> None:
    """Raise InputError unless files can be written into a folder that is new or empty."""
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(
            f"{folder} is not an empty folder; images of two runs would mix, choose another"
        )
    check_folder(folder)


def check_new_file(path: Path, suffixes: tuple[str, ...]) -> None:
    """Raise InputError unless this is a new file of such a kind that can be written."""
    if path.suffix.lower() not in suffixes:
        raise InputError(f"{path}: name a file that ends in {' or '.join(suffixes)}")
    if path.exists():
        raise InputError(f"{path} exists already; choose another name, or remove it")
    check_folder(path.parent)
