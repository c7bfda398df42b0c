"""The folder, or the .npz, that the sample command fills; a stopped command goes on in it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm_lightning.commands.edits import Edit
from ddpm_lightning.errors import InputError
from ddpm_lightning.evaluation.sample_set import SETTINGS, claim, fill, made_by, release
from ddpm_lightning.files import check_folder, check_new_file, check_new_folder
from ddpm_lightning.images import UniformFolder, from_uint8, write_npz
from ddpm_lightning.plots.pictures import Pictures, Scatter
from ddpm_lightning.processes import Processes
from ddpm_lightning.sampling import Samples

Draw = Callable[[Tensor, int], Samples]
"""Draws the samples of indices int64 [m], with so many frames of their trajectories."""


def folder_of(out: Path, frames: int) -> Path:
    """The folder that the samples are drawn into: ``out``, or one that becomes an .npz.

    Raises InputError: An .npz cannot hold the frames.
    """
    if out.suffix.lower() != ".npz":
        return out
    if frames:
        raise InputError(f"{out} holds samples alone; leave out --grid.frames, or name a folder")
    return out.with_name(f"{out.name}.samples")


def check_place(out: Path, folder: Path) -> None:
    """Raise InputError where nothing can be written, or where other files are."""
    if folder != out:
        check_new_file(out, (".npz",))
    if (folder / SETTINGS).is_file():  # which are compared once the checkpoint is read
        check_folder(folder)
    else:
        check_new_folder(folder)


def check_drawn(out: Path, pictures: Pictures) -> None:
    """Raise InputError where points are asked for in an .npz, which holds images."""
    if out.suffix.lower() == ".npz" and isinstance(pictures, Scatter):
        raise InputError(
            f"{out} would hold images, and this model draws points; name a folder, which gets "
            f"them as samples.npy: --out {out.with_suffix('')}"
        )


def digest_of(edit: Edit | None, condition: Tensor | None) -> str | None:
    """The sha256 of the images that samples are made from, or None without such.

    Args:
        edit: Names its files.
        condition: [M, K, H, W] condition images.

    Raises:
        InputError: A file is missing.
    """
    digest = hashlib.sha256()
    if condition is not None:
        digest.update(condition.contiguous().numpy().data)
    elif edit is None:
        return None
    else:
        for file in edit.files:
            if not file.is_file():
                raise InputError(f"no image at {file}")
            digest.update(file.read_bytes())
    return digest.hexdigest()


def filled(
    folder: Path,
    stated: dict[str, Any],
    batch_size: int,
    draw: Draw,
    pictures: Pictures | None,
    origin: dict[str, Any],
) -> Samples:
    """Draw samples into a folder, but for those that are there already.

    Trajectories, and points, are kept in one file and so are drawn again.

    Args:
        folder: New, empty, or of a command that was stopped.
        stated: The command and all that decides about the samples, as plain data.
        batch_size: Samples at a time.
        draw: Draws them.
        pictures: Writes them; None: they become an .npz and are not read again.
        origin: Checkpoint and step of the model, for the PNG files.

    Returns:
        The samples as the files hold them, on the first process and for pictures; else none.

    Raises:
        InputError: The folder is of another command.
    """
    n, frames = stated["n"], stated["grid"]["frames"]
    processes, inputs = Processes.current(), list[Tensor | None]()
    if pictures is not None and (frames or isinstance(pictures, Scatter)):
        return _drawn_at_once(folder, stated, batch_size, draw, pictures, origin)

    def draw_batch(indices: Tensor) -> Tensor:
        samples = draw(indices, 0)
        inputs.append(samples.inputs)
        return samples.x

    fill(folder, stated, n, batch_size, draw_batch, origin)
    if not processes.first or pictures is None:
        return Samples(torch.empty(0))
    if not inputs and stated["edit"] is not None:  # the stop came after the last sample
        inputs.append(draw(torch.arange(1), 0).inputs)
    images = UniformFolder(folder, n)
    return Samples(from_uint8(images.read(images.files)), None, inputs[-1] if inputs else None)


def pack(folder: Path, out: Path, n: int, labels: Tensor | None) -> None:
    """Turn a folder of n samples into an .npz, with their labels int64 [n] if known."""
    write_npz(out, UniformFolder(folder, n), labels)
    shutil.rmtree(folder)


def _drawn_at_once(
    folder: Path,
    stated: dict[str, Any],
    batch_size: int,
    draw: Draw,
    pictures: Pictures,
    origin: dict[str, Any],
) -> Samples:
    n, frames = stated["n"], stated["grid"]["frames"]
    processes = Processes.current()
    if processes.first:
        claim(folder, stated)
    share = processes.share(n, batch_size)
    if not len(share):
        return Samples(torch.empty(0))
    try:
        samples = draw(share, frames).gathered(n, batch_size)
    except BaseException:
        if processes.first:
            release(folder)
        raise
    if processes.first:
        pictures.write(folder, samples.x, made_by(stated, origin))
    return samples
