"""The run folder: its last checkpoint, its lock, and the events of a start that saved nothing."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ddpm_lightning.errors import InputError

try:
    import fcntl
except ImportError:  # on Windows, where run folders are not locked
    fcntl = None  # type: ignore[assignment]

PREVIOUS = "previous.ckpt"
"""The save before last.ckpt, kept beside it for the case that last.ckpt is damaged."""

LOCK = "run.lock"
"""File in the run folder that the process of a fit holds; it says which process that is."""

PATIENCE = 10.0
"""Seconds that the children of a dead process have to end; a data loader's look every 5 s."""

LOGGED = ("metrics.json", "metrics.csv", "mlflow.db", "trackers.json")
"""Files of a run that a new start would mix with its own."""

UNSAVED = "unsaved."
"""Prefix of the events and results of a start that was stopped before its first save."""


def last_checkpoint(run_folder: str | Path) -> Path:
    """The path of a run's latest checkpoint."""
    return Path(run_folder) / "checkpoints" / "last.ckpt"


def newest_checkpoint(run_folder: str | Path) -> Path | None:
    """The checkpoint that a run goes on from: its last, else what is left; None: it saved none."""
    last = last_checkpoint(run_folder)
    if last.exists():
        return last
    left = [*last.parent.glob(PREVIOUS), *last.parent.glob("step_*.ckpt")]
    return max(left, key=lambda path: path.stat().st_mtime, default=None)


@contextmanager
def locked(run_folder: str | Path) -> Iterator[None]:
    """Hold a run folder, which need not exist, for the first process of a run.

    The system's lock vanishes with the process, however it ends; but processes that it has forked,
    such as a data loader's workers, share it, and end some seconds after a process that is killed.

    Raises InputError: Another process holds the folder.
    """
    root = Path(run_folder)
    missing = [path for path in (root, *root.parents) if not path.exists()]
    root.mkdir(parents=True, exist_ok=True)
    path = root / LOCK
    file = _lock(path)
    try:
        yield
    finally:
        if fcntl is not None:
            path.unlink(missing_ok=True)  # while it is locked: see _lock
        os.close(file)
        if fcntl is None:  # where an open file cannot be removed
            path.unlink(missing_ok=True)
        for folder in missing:
            with suppress(OSError):  # that it holds a run
                folder.rmdir()


def set_aside(run_folder: str | Path) -> list[Path]:
    """Rename events and results of a start that saved nothing, for a new one writes its own."""
    root = Path(run_folder)
    found = sorted(root.glob("events.out.tfevents.*"))
    found += [root / name for name in LOGGED if (root / name).is_file()]
    for path in found:
        # TensorBoard reads whatever has tfevents in its name.
        path.replace(path.with_name(UNSAVED + path.name.replace("tfevents", "events")))
    return found


def _lock(path: Path) -> int:
    """Open and lock a file, and write this process into it; return its descriptor."""
    end = time.monotonic() + PATIENCE
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(file, 200).decode(errors="replace").strip() or "another process"
            os.close(file)
            if _is_dead(holder) and time.monotonic() < end:
                time.sleep(0.1)
                continue
            raise InputError(
                f"{path.parent} is in use by {holder}; wait for it, or choose another folder by "
                "--trainer.default_root_dir"
            ) from error
        except OSError:
            pass  # a file system without locks
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), path.stat()):
                break
        os.close(file)  # the process before removed it between the opening and the locking
    os.ftruncate(file, 0)
    os.write(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return file


def _is_dead(holder: str) -> bool:
    """Whether "process N on HOST" is of this host, where there is no such process any more."""
    found = re.fullmatch(r"process (\d+) on (.*)", holder)
    if found is None or found[2] != socket.gethostname():
        return False
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return True
    except OSError:  # another user's
        pass
    return False
