"""The exception for mistakes that a user can correct, and the name that was meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from itertools import accumulate


class InputError(ValueError):
    """Bad input: a file, a flag, a checkpoint or a shape.

    The message names the mistake, its place and the fix. The command line prints it on one line,
    without a traceback.
    """


def at_least(least: float, owner: object = None, /, **values: float | None) -> None:
    """Raise InputError, naming the owner's class, unless every value given is ≥ ``least``."""
    for name, value in values.items():
        if value is not None and not value >= least:
            raise InputError(f"{_named(owner, name, value)}: give {least:g} or more")


def above(bound: float, owner: object = None, /, **values: float | None) -> None:
    """Raise InputError, naming the owner's class, unless every value given is > ``bound``."""
    for name, value in values.items():
        if value is not None and not value > bound:
            raise InputError(f"{_named(owner, name, value)}: give a number above {bound:g}")


def nearest(name: str, known: Iterable[str], dashes: str = "", otherwise: str = "") -> str:
    """Suggest the nearest known name, up to the first unknown part of a dotted one."""
    names = sorted({part for one in known for part in prefixes(one)})
    unknown = next((part for part in prefixes(name) if part not in names), name)
    # One of two words, as in image_size for size, is nearer than what is spelt alike.
    near = [one for one in names if one.endswith(f"_{unknown}") or unknown.endswith(f"_{one}")]
    near = near or get_close_matches(unknown, names, 1)
    near = near or [one for one in names if one.endswith(f".{unknown}")]
    return f"; did you mean {dashes}{near[0]}?" if near else otherwise


def prefixes(name: str) -> list[str]:
    """List the beginnings of a dotted name: a, a.b, a.b.c."""
    return list(accumulate(name.split("."), "{}.{}".format))


def _named(owner: object, name: str, value: float) -> str:
    return f"{name}={value}" if owner is None else f"{type(owner).__name__}({name}={value})"
