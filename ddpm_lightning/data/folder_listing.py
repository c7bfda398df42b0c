"""Which files of a folder are images, of which class and split, with which caption."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from ddpm_lightning.data.collection import Collection, numbered
from ddpm_lightning.data.data_module import Split
from ddpm_lightning.errors import InputError
from ddpm_lightning.images.image_file import ENDINGS, KINDS
from ddpm_lightning.images.listing import OVERVIEW, regular_files

SPLITS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""Names of folders that are splits, in lower case."""

METADATA = ("metadata.csv", "metadata.jsonl")
"""Names of files that list images, as Hugging Face's imagefolder has them."""

SHOWN = 5
"""Names that a message shows."""


@dataclass(frozen=True, eq=False)
class FolderCollection(Collection):
    """The image files of a folder, named by their paths in it."""

    root: Path = Path()

    @override
    def read(self, place: int) -> bytes:
        try:
            # Not by a Path, because making one takes as long as reading a small file.
            with open(os.path.join(self.root, self.names[place]), "rb", buffering=0) as file:
                return file.read()
        except ValueError as error:  # a zero byte, or what no file system can encode
            raise InputError(f"no name of a file ({error})") from error


class _Entry(NamedTuple):
    name: str
    split: Split
    label: str | int | None
    text: str


def list_folder(root: Path, classes: bool = True, flag: str = "") -> FolderCollection:
    """List the images of a folder.

    Files directly in the folder have no class; those in its folders, at any depth, are of the
    class of the outermost one. Folders of the names in SPLITS, of either case, are splits, each
    laid out so; without a folder train everything else is for training. Where there is a
    metadata.csv or metadata.jsonl, in the folder or in a split's, the images are those that it
    lists: file_name, and where it has them label and text. Otherwise a grid.png is skipped.

    Args:
        root: The folder.
        classes: False: read no classes, whatever the folders are called.
        flag: The flag that names the folder, for messages; empty where it is named without one.

    Raises:
        InputError: The folder is missing or holds no image, images lie beside class folders, or a
            metadata file is damaged.
    """
    flag = f" ({flag})" if flag else ""
    if not root.is_dir():
        raise InputError(f"no folder {root.absolute()}; name one that is there{flag}")
    files = sorted(path.relative_to(root).as_posix() for path in regular_files(root))
    files = [name for name in files if PurePosixPath(name).name != OVERVIEW]
    images = [name for name in files if name.lower().endswith(ENDINGS)]
    listed = [name for name in files if PurePosixPath(name).name in METADATA]
    listed = [name for name in listed if str(PurePosixPath(name).parent).lower() in (".", *SPLITS)]
    if listed:
        entries = [entry for name in listed for entry in _listed(root, name)]
    else:
        entries = [_Entry(name, _split(name), _class(name), "") for name in images]
    if not entries and not listed:
        held = _endings(files)
        held = f"; it holds {held}" if held else ""
        raise InputError(f"{root.absolute()} holds no {KINDS} image{held}{flag}")
    _check(root, entries, images, files, listed)
    if not classes:
        entries = [entry._replace(label=None) for entry in entries]
    unlabelled = [entry.name for entry in entries if entry.label is None]
    if unlabelled and len(unlabelled) < len(entries):
        raise InputError(
            f"{root}: {len(unlabelled)} images have no class ({_some(unlabelled)}) and "
            f"{len(entries) - len(unlabelled)} have one; move them into class folders (or state "
            "their label), or leave the classes out (--data.classes false; check: --classes false)"
        )
    return _collected(root, entries)


def _collected(root: Path, entries: list[_Entry]) -> FolderCollection:
    labels, classes = numbered([entry.label for entry in entries])
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(repr((entry, _stamp(root / entry.name))).encode())
    splits = np.array([entry.split for entry in entries])
    names: tuple[Split, ...] = ("train", "val", "test")
    parts = {name: np.flatnonzero(splits == name) for name in names}
    return FolderCollection(
        names=[entry.name for entry in entries],
        labels=labels,
        classes=classes,
        parts={name: rows for name, rows in parts.items() if len(rows) or name == "train"},
        fingerprint=digest.hexdigest(),
        texts=[entry.text for entry in entries] if any(entry.text for entry in entries) else (),
        root=root,
    )


def _stamp(path: Path) -> tuple[int, int]:
    """Size and time of change; (0, 0) where there is no such file, or can be none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _split(name: str) -> Split:
    first, _, rest = name.partition("/")
    return SPLITS.get(first.lower(), "train") if rest else "train"


def _class(name: str) -> str | None:
    """The outermost folder that is no split."""
    folders = PurePosixPath(name).parts[:-1]
    inner = folders[1:] if folders and folders[0].lower() in SPLITS else folders
    return inner[0] if inner else None


def _listed(root: Path, name: str) -> Iterator[_Entry]:
    """Read a metadata file."""
    folder = PurePosixPath(name).parent
    for line, row in _rows(root / name):
        where = f"{root / name}, line {line}"
        file = row.get("file_name")
        if not isinstance(file, str) or not file:
            raise InputError(f"{where}: no file_name, but {', '.join(map(str, row)) or 'nothing'}")
        inside = PurePosixPath(file)
        if inside.is_absolute() or ".." in inside.parts:
            raise InputError(f"{where}: {file} lies outside the folder; name files inside it")
        label, text = row.get("label"), row.get("text")
        if not isinstance(label, str | int | None) or isinstance(label, bool):
            raise InputError(f"{where}: label {label!r:.40} is neither a number nor a name")
        path = (folder / inside).as_posix()
        yield _Entry(path, _split(path), None if label == "" else label, str(text or ""))


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a metadata file, with their lines."""
    try:
        text = path.read_text("utf-8-sig")  # not its splitlines(), which cut at U+2028, too
        if path.suffix == ".csv":
            reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
            yield from ((reader.line_num, row) for row in reader)
            return
        for line, content in enumerate(text.split("\n"), start=1):
            if content.strip():
                row = json.loads(content)
                yield line, row if isinstance(row, dict) else {}
    except (OSError, UnicodeError, csv.Error, json.JSONDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def _endings(files: list[str]) -> str:
    """Count the files that are no images, by ending."""
    others = Counter(PurePosixPath(name).suffix.lower() for name in files)
    return ", ".join(
        f"{count} {ending or 'without ending'}"
        for ending, count in sorted(others.items())
        if ending not in ENDINGS
    )


def _check(
    root: Path, entries: list[_Entry], images: list[str], files: list[str], listed: list[str]
) -> None:
    """Refuse an empty folder and names that stand twice; warn of what is left out."""
    others = Counter(PurePosixPath(name).suffix.lower() for name in files)
    if not entries:
        raise InputError(
            f"{root}: {', '.join(listed)} lists no image; add rows with a file_name, or remove it"
        )
    twice = [name for name, count in Counter(one.name for one in entries).items() if count > 1]
    if twice:
        raise InputError(f"{root}: listed more than once: {_some(twice)}")
    if not any(entry.split == "train" for entry in entries):
        raise InputError(f"{root}: all images are in val or test, none is left for training")
    if listed and (rest := sorted({*images} - {entry.name for entry in entries})):
        rank_zero_warn(f"{root}: {', '.join(listed)} does not list {len(rest)} images, which are "
                       f"left out ({_some(rest)})")  # fmt: skip
    foreign = {ending: n for ending, n in others.items() if ending in FOREIGN}
    if foreign:
        counts = ", ".join(f"{count} {ending}" for ending, count in foreign.items())
        rank_zero_warn(f"{root}: left out, because no reader is here: {counts}")


FOREIGN = (".avif", ".heic", ".heif", ".npz", ".jp2", ".svg", ".psd", ".tga", ".ppm", ".pgm")
"""Endings of images that are not read."""


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + ", …" * (len(names) > SHOWN)
