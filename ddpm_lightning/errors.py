"""The exception for mistakes that a user can correct, and the names that were meant."""

from __future__ import annotations

import pkgutil
import sys
from difflib import get_close_matches
from types import ModuleType


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


def near_path(path: str) -> str:
    """Suggest the nearest class or module for an import path that is wrong, for a message.

    Imports nothing: it looks into the part of the path that was imported.

    Returns:
        "; did you mean …?", or what there is; empty if no part of the path was imported, or
        nothing is wrong with it.
    """
    parents = [name for name in sys.modules if path.startswith(f"{name}.")]
    if not parents:
        return ""
    parent = sys.modules[max(parents, key=len)]
    unknown = path.removeprefix(f"{parent.__name__}.").partition(".")[0]
    if hasattr(parent, unknown):
        return ""
    known = {one: one for one in _submodules(parent)}
    for name in sorted(sys.modules):  # a class's shortest path first
        if f"{name}.".startswith(f"{parent.__name__}."):
            below = name.removeprefix(parent.__name__).lstrip(".")
            found = _public_classes(sys.modules[name])
            known = {cls: f"{below}.{cls}".lstrip(".") for cls in found} | known
    if near := get_close_matches(unknown, known, 1):
        return f"; did you mean {parent.__name__}.{known[near[0]]}?"
    return f"; it has {', '.join(sorted(known.values()))}" if 0 < len(known) <= 20 else ""


def near_attribute(error: BaseException) -> str:
    """Suggest the nearest class or module for what a module has not got; empty for the rest."""
    if isinstance(error, AttributeError) and isinstance(error.obj, ModuleType):
        return near_path(f"{error.obj.__name__}.{error.name}")
    return ""


def _submodules(module: ModuleType) -> list[str]:
    found = pkgutil.iter_modules(getattr(module, "__path__", ()))
    return [one.name for one in found if not one.name.startswith("_")]


def _public_classes(module: ModuleType) -> list[str]:
    """The classes that a module defines, or shows from a module below it."""
    return [
        name
        for name, value in vars(module).items()
        if isinstance(value, type)
        and not name.startswith("_")
        and f"{value.__module__}.".startswith(f"{module.__name__}.")
    ]


def _named(owner: object, name: str, value: float) -> str:
    return f"{name}={value}" if owner is None else f"{type(owner).__name__}({name}={value})"
