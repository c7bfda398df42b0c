"""What is wrong with an import path that a person has given, and the one that was meant."""

from __future__ import annotations

import os
import pkgutil
import sys
from difflib import get_close_matches
from pathlib import Path
from pydoc import ErrorDuringImport, locate
from traceback import walk_tb
from types import FrameType, ModuleType
from typing import Any

from ddpm_lightning.errors import InputError

NEAR = 0.75
"""How alike two names are at least, of 1, for the one to be suggested for the other."""


def located(path: str) -> Any:
    """Import what a dotted path names; None if there is no such thing.

    Raises InputError: A module of the path fails when it is imported.
    """
    try:
        return locate(path)
    except ErrorDuringImport as error:
        cause = error.value or error
        if not (failure := failed_import(cause)):
            raise cause from None
        raise InputError(failure) from error


def path_in_file(value: str) -> str:
    """Spell the import path of a class whose module was given as a file; empty if it was not."""
    path = Path(value)
    file = path.with_suffix(".py")
    if path.suffix != ".py" and not file.is_file():
        return ""
    name = "CLASS" if path.suffix in ("", ".py") else path.suffix[1:]
    *folders, last = Path(os.path.relpath(file)).with_suffix("").parts
    if ".." in folders:
        return f"{last}.{name}, from the folder {file.resolve().parent}"
    return ".".join([*folders, *[last] * (last != "__init__"), name])


def missing_methods(name: str, cls: Any) -> str:
    """Say which methods an abstract class lacks."""
    lacks = ", ".join(f"{one}()" for one in sorted(cls.__abstractmethods__))
    return f"{name} is abstract: it lacks {lacks}"


def near_path(path: str) -> str:
    """Suggest the nearest class or module for an import path that is wrong, for a message.

    Imports nothing: it looks into the part of the path that was imported.

    Args:
        path: Dotted, e.g. my_idea.schedule.Circl.

    Returns:
        "; did you mean …?", or what there is; empty if no part of the path was imported, or
        nothing is wrong with it.
    """
    modules = {name: one for name, one in sys.modules.items() if isinstance(one, ModuleType)}
    parents = [name for name in modules if path.startswith(f"{name}.")]
    if not parents:
        return ""
    parent = modules[max(parents, key=len)]
    parts = path.removeprefix(f"{parent.__name__}.").split(".")
    unknown, last = parts[0], parts[-1]
    if unknown in vars(parent):
        return ""
    known = {one: one for one in _submodules(parent)}
    for name in sorted(modules):  # a class's shortest path first
        if f"{name}.".startswith(f"{parent.__name__}."):
            below = name.removeprefix(parent.__name__).lstrip(".")
            found = _public_classes(modules[name])
            known = {cls: f"{below}.{cls}".lstrip(".") for cls in found} | known
    near = [last] if last in known else get_close_matches(unknown, known, 1, NEAR)
    if near:
        return f"; did you mean {parent.__name__}.{known[near[0]]}?"
    return f"; it has {', '.join(sorted(known.values()))}" if 0 < len(known) <= 20 else ""


def import_advice(error: BaseException) -> str:
    """Say what to do about a class or a module that is not there; empty for another error."""
    if isinstance(error, AttributeError) and isinstance(error.obj, ModuleType):
        return near_path(f"{error.obj.__name__}.{error.name}")
    if isinstance(error, ModuleNotFoundError):
        return near_path(f"{error.name}") or (
            "; if the class is your own, run from the folder of its module or install its package"
        )
    return ""


def failed_import(error: BaseException) -> str:
    """Describe the failure of a module while it is imported, with the module's file and line.

    Args:
        error: What the import raised.

    Returns:
        One line; empty for an error of another kind, and for a module of this library.
    """
    frames = [*walk_tb(error.__traceback__)]
    named = [_package(frame) for frame, _ in frames if frame.f_code.co_name == "<module>"]
    if named[:1] == [__name__.partition(".")[0]]:
        return ""
    if isinstance(error, SyntaxError) and str(error.filename).endswith(".py"):
        file, line, cause = error.filename, error.lineno, error.msg
    elif named:
        own = [(frame, line) for frame, line in frames if _package(frame) == named[0]]
        file, line, cause = own[-1][0].f_code.co_filename, own[-1][1], str(error)
    else:
        return ""
    return f"{file}, line {line}, fails when it is imported: {type(error).__name__}: {cause}"


def _submodules(module: ModuleType) -> list[str]:
    found = pkgutil.iter_modules(vars(module).get("__path__", ()))
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


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]
