"""What the machine refuses: room, permission, memory, a package or an account."""

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

SERVICES = {
    **dict.fromkeys(
        ("wandb", "mlflow", "comet_ml", "neptune"), "leave out --trainer.logger to go without"
    ),
    **dict.fromkeys(("requests", "urllib3"), "the network or a server fails, so try again"),
}
"""What can be done about errors of an account, a server or the network, by their package."""

MOST = 300
"""Characters of a service's message that are shown."""


def refusal_of(error: BaseException) -> str | None:
    """Return what the machine refused, with what can be done; None: it is another error.

    Args:
        error: An error that ended a command.
    """
    for one, meant in _chain(error):
        if isinstance(one, OSError) and one.errno in ADVICE:
            file = one.filename2 or one.filename or "a file"
            return f"{file}: {one.strerror}; {ADVICE[one.errno]}"
        if isinstance(one, MemoryError | torch.OutOfMemoryError) or "can't allocate" in str(one):
            reason = (str(one).splitlines() or ["out of memory"])[0]
            return f"there is not enough memory ({reason}); use a smaller batch, image or network"
        if meant and isinstance(one, ImportError) and not _is_own(one):
            return f"{one}" + (f"; install it: pip install {one.name}" if one.name else "")
        package = type(one).__module__.split(".")[0]
        if meant and package in SERVICES:
            told = " ".join(str(one).split())
            told = told if len(told) <= MOST else f"{told[:MOST]}…"  # of a whole page, perhaps
            return f"{package}: {told}; {SERVICES[package]}"
        if isinstance(one, ProcessRaisedException):  # whose text holds the child's traceback
            kind, _, message = _last_line(one).partition(": ")
            if kind.endswith("InputError"):
                return message
    return None


def _chain(error: BaseException) -> Iterator[tuple[BaseException, bool]]:
    """An error, and those that it was raised from (True) or while handling (False)."""
    seen: BaseException | None = error
    meant = True
    while seen is not None:
        yield seen, meant
        meant = meant and seen.__cause__ is not None
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)


def _is_own(error: ImportError) -> bool:
    return (error.name or "").startswith("ddpm_lightning")


def _last_line(error: BaseException) -> str:
    return ([line for line in str(error).splitlines() if line.strip()] or [""])[-1]
