"""Processes that share the work of one command, as torchrun or :func:`start` runs them.

They exchange numbers on the CPU by gloo, whatever the device that they compute on: what a command
collects (samples, features, terms) is on the CPU already.
"""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import connection, get_context, parent_process
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from ddpm_lightning.errors import InputError

STATED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables of a process that torchrun or :func:`start` runs."""

FAILURES = "ddpm_lightning/failures"
"""Key of the common store that counts the processes which failed."""

PATIENCE = timedelta(days=7)
"""How long to wait for another process: it may compute for hours, and its end is noticed."""


GRACE = 30
"""Seconds that a process waits to be ended, after another has failed."""


class PeerLost(Exception):
    """Another process has ended; whoever ended it, or runs the processes, says why."""


@dataclass(frozen=True)
class Processes:
    """The processes that share the work, as one of them sees them.

    Args:
        rank: Number of this process.
        count: Number of processes.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def current(cls) -> Processes:
        """The joined processes; one alone unless :func:`joined` found others."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes what all have made."""
        return self.rank == 0

    def batches(self, n: int, batch_size: int) -> list[Tensor]:
        """Split the indices 0…n − 1 into batches, int64 [B] each.

        They are those of one process, so that every result is, to the last bit, the one of one
        process, unless there are too few for all processes to have one.
        """
        return list(torch.arange(n).split(min(batch_size, -(-n // self.count))))

    def share(self, n: int, batch_size: int) -> Tensor:
        """The indices of this process, int64 [m]: every ``count``-th batch; m may be 0."""
        return self._shares(n, batch_size)[self.rank]

    def gather(self, rows: Tensor, n: int, batch_size: int) -> Tensor:
        """Put the rows of all shares in the order of their indices, on the first process.

        Args:
            rows: [m, ...] of this process's share, on the CPU.
            n: Number of indices.
            batch_size: As for :meth:`share`.

        Returns:
            [n, ...] on the first process, [0, ...] on the others.
        """
        if self.count == 1:
            return rows
        if not self.first:
            if len(rows):
                with _peers():
                    dist.send(rows.contiguous(), 0)
            return rows[:0]
        every = rows.new_empty(n, *rows.shape[1:])
        for rank, indices in enumerate(self._shares(n, batch_size)):
            part = rows
            if rank and len(indices):
                part = rows.new_empty(len(indices), *rows.shape[1:])
                with _peers():
                    dist.recv(part, rank)
            if len(indices):
                every[indices] = part
        return every

    def agreed(self, choice: bool) -> bool:
        """The first process's choice, on every process."""
        if self.count == 1:
            return choice
        message = torch.tensor(choice)
        with _peers():
            dist.broadcast(message, 0)
        return bool(message)

    def all_agree(self, answer: bool) -> bool:
        """Whether the answers of all processes are yes, on every process."""
        if self.count == 1:
            return answer
        message = torch.tensor(int(answer))
        with _peers():
            dist.all_reduce(message, dist.ReduceOp.MIN)
        return bool(message)

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            with _peers():
                dist.barrier()

    def _shares(self, n: int, batch_size: int) -> list[Tensor]:
        batches = self.batches(n, batch_size)
        nothing = torch.arange(0)
        return [torch.cat([nothing, *batches[rank :: self.count]]) for rank in range(self.count)]


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the processes of torchrun or :func:`start`; a process run otherwise stays alone.

    The first process alone prints. If processes fail, the first to do so alone raises its error,
    and the others end without a word.
    """
    if not all(map(os.environ.get, STATED)) or int(os.environ["WORLD_SIZE"]) < 2:
        yield Processes()
        return
    store, rank, count = next(rendezvous("env://", timeout=timedelta(minutes=5)))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=PATIENCE)
    try:
        with open(os.devnull, "w") as nowhere, _quiet(nowhere if rank else None):
            yield Processes(rank, count)
    except PeerLost:
        _end_after_others()
    except BaseException as error:
        ended_well = isinstance(error, SystemExit) and not error.code
        if not ended_well and not _fails_first(store):
            _end_after_others()
        raise
    finally:
        dist.destroy_process_group()


def leave_at_exit() -> None:
    """Leave the processes of a training run before Python ends.

    Lightning does so for NCCL alone. A thread of gloo that still holds a tensor when Python ends
    aborts the process ("terminate called without an active exception", exit code 134) after all
    has been done and saved (pytorch issue 190489).
    """
    if dist.is_available() and dist.is_initialized() and dist.get_backend() == "gloo":
        atexit.unregister(_leave)
        atexit.register(_leave)


def _leave() -> None:
    if dist.is_initialized():
        gc.collect()  # because the threads end with the last reference, one of which is DDP's
        dist.destroy_process_group()


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end what runs by SystemExit and a line, so that nothing half-written is left.

    The exit code is 143. Only the main thread of a process can do so; elsewhere nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    owner = os.getpid()

    def end(*_: Any) -> None:
        if os.getpid() != owner:  # a child that was forked meanwhile ends as children do
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        os.write(2, b"\nstopped by SIGTERM\n")  # not print, which may be interrupted in itself
        sys.exit(128 + signal.SIGTERM)

    previous = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        # Python knows no handler that was set in C; that of the system is the nearest.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if previous is None else previous)


def choose_gpu(device: str, count: int) -> None:
    """Let every process of this machine compute on a GPU of its own, if on GPUs at all.

    Raises InputError: There are fewer GPUs than processes, or ``device`` names one for all.
    """
    name, _, number = device.partition(":")
    if count == 1 or name not in ("auto", "cuda") or not torch.cuda.is_available():
        return
    local, gpus = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if number:
        raise InputError(f"--device {device} is one GPU for {count} processes; give --device cuda")
    if int(os.environ.get("LOCAL_WORLD_SIZE", count)) > gpus:
        raise InputError(
            f"{count} processes, but this machine has {gpus} GPU(s), one for each; give --devices "
            f"{gpus}, or --device cpu"
        )
    torch.cuda.set_device(local)


def start(count: int, target: Callable[[list[str]], Any], words: list[str]) -> None:
    """Run ``target(words)`` in so many processes of this machine, which :func:`joined` joins.

    Raises InputError: A process was ended by a signal. SystemExit: With the largest exit code of
    those that failed, one of which printed why.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = get_context("spawn")
    workers = [
        context.Process(target=_work, args=(rank, count, store.port, target, words))
        for rank in range(count)
    ]
    try:
        for worker in workers:
            worker.start()
        running = list(workers)
        while running and not any(worker.exitcode for worker in workers):
            connection.wait([worker.sentinel for worker in running])
            running = [worker for worker in workers if worker.exitcode is None]
    finally:
        for worker in workers:
            if worker.pid is not None:
                worker.terminate()
                worker.join()
    _report([worker.exitcode or 0 for worker in workers], store)


def _report(codes: Sequence[int], store: dist.Store) -> None:
    """End this process as the processes it started have ended."""
    if not any(codes):
        return
    if store.add(FAILURES, 0) == 0:  # no process could say why, or end the line of its bar
        print(file=sys.stderr)
        # SIGTERM comes from here, to the processes that were left.
        rank = min(
            range(len(codes)), key=lambda rank: (codes[rank] == -signal.SIGTERM, codes[rank])
        )
        why = f"was ended by signal {-codes[rank]}" if codes[rank] < 0 else "ended too early"
        raise InputError(
            f"process {rank + 1} of {len(codes)} {why}, so the others were ended, too; if memory "
            "is short, give fewer --devices or a smaller --batch_size"
        )
    sys.exit(max(*codes, 1))


def _work(
    rank: int, count: int, port: int, target: Callable[[list[str]], Any], words: list[str]
) -> None:
    """What a started process runs: the environment as torchrun makes it, then the target."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started it stops it
    starter = parent_process()
    assert starter is not None

    def end_with_starter() -> None:
        starter.join()
        os._exit(1)

    threading.Thread(target=end_with_starter, daemon=True).start()
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    os.environ.update({name: str(number) for name, number in numbers.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"  # the starting process has the store
    torch.set_num_threads(max(1, torch.get_num_threads() // count))
    target(words)


def _fails_first(store: dist.Store) -> bool:
    """Count a failure; whether it is the first. Without a store, all others are gone."""
    with suppress(RuntimeError):
        return store.add(FAILURES, 1) == 1
    return False


def _end_after_others() -> NoReturn:
    """Let the process that failed end first, because its exit code is that of all."""
    time.sleep(GRACE)  # within which torchrun or start() ends this one
    sys.exit(1)


@contextmanager
def _quiet(nowhere: Any) -> Iterator[None]:
    """Print nothing and show no warnings, where there is a file to print into instead."""
    if nowhere is None:
        yield
        return
    with redirect_stdout(nowhere), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _peers() -> Iterator[None]:
    """Turn the errors of an exchange into PeerLost."""
    try:
        yield
    except RuntimeError as error:
        raise PeerLost from error
