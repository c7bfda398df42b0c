"""Saving so that a whole checkpoint is on the disk at every moment, and loading whole ones."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO
from typing_extensions import override

from ddpm_lightning.checkpoint import DIGESTS, KEY, read_checkpoint
from ddpm_lightning.checkpoint_structure import check_structure
from ddpm_lightning.errors import InputError
from ddpm_lightning.files import PARTIAL
from ddpm_lightning.integrity import digests_of
from ddpm_lightning.run_folder import PREVIOUS


class WholeCheckpointIO(TorchCheckpointIO):
    """Saves with digests and by renaming, and loads only what was saved.

    A save is written to a file of another name, forced onto the disk, and then renamed; what was
    last.ckpt becomes previous.ckpt if this run has written it, or read it whole, because another
    may be damaged. A save that fails leaves both as they were.
    """

    _whole: tuple[int, ...] | None = None
    """The file, as :func:`_identity` tells it, that this run has last read or written."""

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        path = Path(path)
        if KEY in checkpoint:
            own = {**checkpoint[KEY]}
            own.pop(DIGESTS, None)
            checkpoint = {**checkpoint, KEY: own}
            check_structure(checkpoint)  # because what is refused when it is read is lost
            checkpoint[KEY] = own | {DIGESTS: digests_of(checkpoint)}
        partial = path.with_name(path.name + PARTIAL)
        with _one_error(path, checkpoint.get("global_step")):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with partial.open("wb") as file:
                    torch.save(checkpoint, file)
                    file.flush()
                    os.fsync(file.fileno())
                is_last = path.name == "last.ckpt"
                if is_last and path.exists() and _identity(path) == self._whole:
                    _keep(path, path.with_name(PREVIOUS))
                partial.replace(path)
                if is_last:
                    self._whole = _identity(path)
                _sync_folder(path.parent)
            except BaseException:
                with suppress(OSError):
                    partial.unlink()  # it would keep the room that the next save needs
                raise

    @override
    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        # Not memory-mapped, because a run goes on to change the optimizer's tensors in place.
        checkpoint = read_checkpoint(path, "cpu", weights=True, mmap=False)
        self._whole = _identity(Path(path))
        return checkpoint


def install(trainer: Trainer) -> None:
    """Make a trainer save and load by WholeCheckpointIO, unless it was given a plugin."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = WholeCheckpointIO()


def _identity(path: Path) -> tuple[int, ...]:
    """What tells a file from any other, whatever their names."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _keep(path: Path, previous: Path) -> None:
    """Give a file a second name in place of the file that had it."""
    link = previous.with_name(previous.name + PARTIAL)
    try:
        link.unlink(missing_ok=True)
        os.link(path, link)
        link.replace(previous)
    except OSError:  # a file system without links
        path.replace(previous)


def _sync_folder(folder: Path) -> None:
    """Force a folder's names onto the disk, where folders can be opened."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _one_error(path: Path, step: int | None) -> Iterator[None]:
    """Raise InputError in place of the errors of a disk, saying what is saved still."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        disk = error
        while not isinstance(disk, OSError) and (cause := disk.__cause__ or disk.__context__):
            disk = cause  # type: ignore[assignment]
        if not isinstance(disk, OSError) and "write" not in str(error):
            raise
        reason = getattr(disk, "strerror", None) or str(disk).partition("\n")[0]
        raise InputError(
            f"step {step} could not be saved as {path}: {reason}; {_still_saved(path)}"
        ) from error


def _still_saved(path: Path) -> str:
    for saved in (path, path.with_name("last.ckpt"), path.with_name(PREVIOUS)):
        with suppress(InputError):
            step = read_checkpoint(saved)["global_step"]
            return f"step {step} is saved still: go on from {saved} by --ckpt_path"
    return "no step is saved yet: start again where there is room"
