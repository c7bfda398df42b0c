"""What the machine refuses: room, permission, memory, a package, a compiler or an account."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import torch
from torch.multiprocessing.spawn import ProcessRaisedException

ROOM = "make room, and go on: a run by --ckpt_path last, samples by the same command"

ADVICE = {
    errno.ENOSPC: ROOM,
    errno.EDQUOT: ROOM,
    errno.EROFS: "name another folder",
    errno.EACCES: "ask for the permission, or name another folder",
    errno.EPERM: "ask for the permission, or name another folder",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EIO: "the disk or the network fails",
    errno.ESTALE: "the disk or the network fails",
    errno.EFBIG: "name a folder on another file system",
    errno.EMFILE: "raise the number of open files: ulimit -n 4096",
}
"""What a user can do about an OSError, by its number."""

SERVICES = ("wandb", "mlflow", "comet_ml", "neptune", "requests", "urllib3")
"""Packages whose errors are of an account, a server or the network."""


def refusal_of(error: BaseException) -> str | None:
    """Return what the machine refused, with what can be done; None: it is another error.

    Args:
        error: An error that ended a command.
    """
    for one in _chain(error):
        if isinstance(one, OSError) and one.errno in ADVICE:
            file = one.filename2 or one.filename or "a file"
            return f"{file}: {one.strerror}; {ADVICE[one.errno]}"
        if isinstance(one, MemoryError | torch.OutOfMemoryError) or "can't allocate" in str(one):
            reason = (str(one).splitlines() or ["out of memory"])[0]
            return f"there is not enough memory ({reason}); use a smaller batch, image or network"
        if isinstance(one, ImportError) and not (one.name or "").startswith("ddpm_lightning"):
            return f"{one}" + (f"; install it: pip install {one.name}" if one.name else "")
        package = type(one).__module__.split(".")[0]
        if package in SERVICES:
            return f"{package}: {_last_line(one)}; leave out --trainer.logger to go without"
        if "InvalidCxxCompiler" in f"{type(one).__name__} {one}":
            return "torch.compile finds no C++ compiler; install g++, or use --model.compile false"
        if isinstance(one, ProcessRaisedException):  # whose text holds the child's traceback
            kind, _, message = _last_line(one).partition(": ")
            if kind.endswith("InputError"):
                return message
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that it was raised from or while handling."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)


def _last_line(error: BaseException) -> str:
    return ([line for line in str(error).splitlines() if line.strip()] or [""])[-1]
