"""Which files are the images of a folder."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ddpm_lightning.errors import InputError
from ddpm_lightning.images.image_file import ENDINGS

SUFFIXES = tuple(ending for ending in ENDINGS if ending != ".gif")
"""Endings of the images that are read; a GIF is an animation."""

OTHER_SUFFIXES = (".avif", ".gif", ".heic", ".npz")
"""Endings of images that are not read, which a listing counts."""

OVERVIEW = "grid.png"
"""The overview of a folder's images, which is skipped."""


def list_images(folder: Path) -> list[Path]:
    """List the images of a folder and its subfolders, by path, without GIFs and grid.png.

    Hidden names (.ipynb_checkpoints, ._000000.png) are no images. Links are followed, except into
    a folder that they stand in. Images of other endings are counted in a warning.

    Raises InputError: The folder is missing, cannot be read or holds no image.
    """
    if not folder.is_dir():
        raise InputError(f"no folder {folder}")
    files = [file for file in regular_files(folder) if file.name != OVERVIEW]
    found = sorted(file for file in files if file.suffix.lower() in SUFFIXES)
    endings = Counter(file.suffix.lower() for file in files)
    others = ", ".join(f"{endings[one]} {one}" for one in OTHER_SUFFIXES if endings[one])
    if not found:
        but = f", but {others}" if others else ""
        raise InputError(f"{folder} holds no PNG, JPEG, WebP, BMP or TIFF image{but}")
    if others:
        warnings.warn(
            f"{folder}: {len(found)} images are read, {others} are left out",
            stacklevel=3,
        )
    return found


def regular_files(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """Walk a folder's files, without hidden ones; links are followed, but never in circles.

    Args:
        folder: The folder.
        above: Real paths of folders above it, which are not entered again.

    Raises:
        InputError: A folder cannot be read.
    """
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        entries = [*os.scandir(folder)]
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        try:
            is_folder, is_file = entry.is_dir(), entry.is_file()
        except OSError:  # a link to itself leads nowhere, like one to nothing
            continue
        if is_folder:
            yield from regular_files(folder / entry.name, (*above, real))
        elif is_file:
            yield folder / entry.name
