"""How a command ends whose output nobody reads any more, as in list_configs | head."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper, UnsupportedOperation

CODE = 128 + 13
"""Exit code of programs that SIGPIPE ends."""


@contextmanager
def ended_by_closed_pipe(advice: str = "") -> Iterator[None]:
    """End without a traceback once the reader of standard output or error has gone.

    Args:
        advice: A line for standard error; by default there is none, as in other programs.

    Raises:
        SystemExit: With the code of SIGPIPE.
    """
    try:
        try:
            yield
            advice = ""  # because all is done but for what is not printed yet
        finally:
            _flush_all()  # here, because Python prints what fails at its exit
    except BrokenPipeError:
        closed = [stream for stream in _streams() if _is_closed(stream)]
        if not closed:  # it was another pipe
            raise
        with open(os.devnull, "w") as nowhere:
            for stream in closed:
                os.dup2(nowhere.fileno(), stream.fileno())
        if advice:
            print(advice, file=sys.stderr)
        sys.exit(CODE)


def _streams() -> list[TextIOWrapper]:
    return [one for one in (sys.stdout, sys.stderr) if isinstance(one, TextIOWrapper)]


def _flush_all() -> None:
    for stream in _streams():
        stream.flush()


def _is_closed(stream: TextIOWrapper) -> bool:
    """Whether a stream is a pipe without a reader; by the system, because some do not buffer."""
    poll = select.poll()
    try:
        poll.register(stream, 0)  # errors alone
    except UnsupportedOperation:  # a stream in memory
        return False
    return bool(poll.poll(0))
