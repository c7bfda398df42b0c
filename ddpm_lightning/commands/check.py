"""The check command: what a folder of images consists of, before training on it."""

from __future__ import annotations

import shlex
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from ddpm_lightning.data.decoded_files import in_words
from ddpm_lightning.data.folder_listing import SHOWN, list_folder
from ddpm_lightning.data.survey import Survey
from ddpm_lightning.errors import InputError, at_least
from ddpm_lightning.files import check_folder
from ddpm_lightning.images import from_uint8, grid, write_png
from ddpm_lightning.images.decoding import Decoding
from ddpm_lightning.images.duplicates import METHOD
from ddpm_lightning.loaded import fastest_device
from ddpm_lightning.terminal.parser import PROGRAM

SIZES = (64, 32, 16)
"""Sizes that check proposes: the largest that most images have; without a GPU at most 32."""

CLASSES = 100
"""Classes that are shown."""

SHEET = 64
"""Images of the contact sheet."""


def check(
    folder: Path,
    out: Path | None = None,
    size: int | None = None,
    classes: bool = True,
    near: bool = True,
    workers: int = 2,
) -> None:
    """Say what a folder of images consists of, and the fit command for it.

    Every file is decoded: counts, formats, modes, sizes, classes and splits, what cannot be used,
    exact duplicates (the same pixels) and near ones (difference hashes of 64 bits, confirmed by
    thumbnails). A contact sheet shows the images as training would see them.

    Args:
        folder: The folder.
        out: PNG file for the contact sheet, written anew; default: runs/check/NAME.png.
        size: Height and width to train at; default: 64, 32 or 16, by the images' own; without a
            GPU at most 32.
        classes: Whether folders or labels are classes.
        near: Look for near duplicates, too.
        workers: Processes that decode.

    Raises:
        InputError: The folder is missing, or holds no image, or ``out`` cannot be written.
    """
    at_least(1, size=size)
    at_least(0, workers=workers)
    out = out or Path("runs/check") / f"{folder.resolve().name}.png"
    if out.suffix.lower() != ".png":
        raise InputError(f"--out {out}: name a file that ends in .png")
    check_folder(out.parent)  # before all files are decoded
    collection = list_folder(folder, classes)
    survey = Survey.of(collection, workers)
    for line in _report(survey, near):
        print(line)
    if not survey.looks:
        return
    on_cpu = fastest_device() == "cpu"
    on_gpu = f"--config folder --data.size {size or _proposed(survey, SIZES)}"
    size = size or _proposed(survey, SIZES[1:] if on_cpu else SIZES)
    channels = 1 if survey.grey else 3
    write_png(out, _sheet(survey, channels, size))
    print(f"contact sheet: {out} ({min(SHEET, len(survey.looks))} images at {size}×{size})")
    settings = [] if classes else ["--data.classes", "false"]
    config = "folder_small" if on_cpu else "folder"
    why = f" (a small network, since there is no GPU here; with one: {on_gpu})" * on_cpu
    command = _command(survey, config, folder, channels, size, settings)
    print(f"train on it{why}:\n  {command}")


def _report(survey: Survey, near: bool) -> Iterator[str]:
    """Describe a survey, line by line."""
    collection, looks = survey.collection, survey.looks
    used = [one.place for one in looks]
    parts = ", ".join(
        f"{np.isin(rows, used).sum():,} {name}" for name, rows in collection.parts.items()
    )
    total = sum(one.length for one in looks) / 1e6
    yield f"images: {len(looks):,} of {len(collection):,} can be used, {total:,.1f} MB ({parts})"
    if looks:
        yield f"formats: {_counted(Counter(one.kind for one in looks))}"
        yield f"modes: {_counted(Counter(one.mode for one in looks))}"
        yield f"sizes (width × height): {_sizes(survey)}"
    odd = {
        "with transparency (laid on white, see --data.background)": "transparent",
        "with several frames (the first is taken)": "frames",
    }
    for words, name in odd.items():
        if count := sum(int(getattr(one, name)) > (name == "frames") for one in looks):
            yield f"{words}: {count:,}"
    if collection.classes:
        counts = np.bincount(collection.labels[used], minlength=len(collection.classes))
        names = enumerate(zip(collection.classes, counts, strict=True))
        each = [f"{number} {name} ({count:,})" for number, (name, count) in names]
        more = f", and {len(each) - CLASSES} more" * (len(each) > CLASSES)
        yield f"classes: {len(each)}, by number: {', '.join(each[:CLASSES])}{more}"
    else:
        yield "classes: none"
    if collection.texts:
        texts = sum(bool(text) for text in collection.texts)
        yield f"texts: {texts:,} of {len(collection.texts):,} images (captions)"
    yield f"exact duplicates: {_groups(survey.copies)}"
    if near:
        yield f"near duplicates ({METHOD}): {_groups(survey.similar)}"
    if survey.bad:
        yield in_words(survey.bad)


def _counted(counts: Counter[str], most: int = 8) -> str:
    shown = ", ".join(f"{count:,} {name}" for name, count in counts.most_common(most))
    return shown + f", and {len(counts) - most} more" * (len(counts) > most)


def _sizes(survey: Survey) -> str:
    sizes = Counter(f"{one.width}×{one.height}" for one in survey.looks)
    if len(sizes) == 1:
        return _counted(sizes)
    by_area = sorted(survey.looks, key=lambda one: one.width * one.height)
    low, middle, high = by_area[0], by_area[len(by_area) // 2], by_area[-1]
    return (
        f"{_counted(sizes, 4)}; smallest {low.width}×{low.height}, median {middle.width}×"
        f"{middle.height}, largest {high.width}×{high.height}"
    )


def _groups(groups: list[list[str]]) -> str:
    if not groups:
        return "none"
    shown = "; ".join(" = ".join(group[:SHOWN]) for group in groups[:SHOWN])
    extra = sum(len(group) - 1 for group in groups)
    return f"{extra:,} in {len(groups):,} groups: {shown}{'; …' * (len(groups) > SHOWN)}"


def _proposed(survey: Survey, sizes: Sequence[int]) -> int:
    """The largest size that half of the images have."""
    median = float(np.median([min(one.width, one.height) for one in survey.looks]))
    return next((size for size in sizes if size <= median), sizes[-1])


def _sheet(survey: Survey, channels: int, size: int) -> torch.Tensor:
    """Lay out images, evenly spread over the collection, as they are trained on."""
    spread = np.linspace(0, len(survey.looks) - 1, min(SHEET, len(survey.looks)))
    decoding = Decoding(channels, (size, size))
    places = [survey.looks[k].place for k in spread.round().astype(int)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images = [decoding(survey.collection.read(place)) for place in places]
    return grid(from_uint8(torch.stack(images)))


def _command(
    survey: Survey, config: str, folder: Path, channels: int, size: int, settings: list[str]
) -> str:
    name = folder.resolve().name or "folder"
    words = ["fit", "--config", config, "--data.root", str(folder)]
    words += ["--data.size", str(size), *settings]
    if channels == 1:
        words += ["--data.channels", "1"]
    if survey.collection.classes:
        words += ["--model.conditional", "true"]
    if survey.bad:
        words += ["--data.bad_files", "skip"]
    return f"{PROGRAM} {shlex.join([*words, '--trainer.default_root_dir', f'runs/{name}'])}"
