"""Which packages a checkpoint may make this process import.

A checkpoint names classes, and importing a module runs it. This library's own classes are always
allowed; another package is once its user has said so: by ``--trust PACKAGE`` on the command line,
by ``trust=[...]`` in Python. A module that the process has imported already runs nothing again,
so its classes are allowed, too, as is every class that a flag or a config file names.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import yaml

from ddpm_lightning.errors import InputError

OWN = "ddpm_lightning"

CLASS_PATH = re.compile(r"([\w-]+\.)+[^\W\d]\w*")
"""A string that import would take for a class: the name of a module may be no identifier."""

FILE_ARGUMENTS = {
    *("root", "table", "weights", "folder", "path", "cache", "font_folder", "init_from", "ckpt"),
    *("default_root_dir", "save_dir", "dirpath", "name", "project", "tracking_uri", "source"),
}
"""Arguments whose strings name files or runs, which a dot does not make an import path."""

_command: ContextVar[tuple[str, ...]] = ContextVar("command", default=())
"""The words of the command that runs; empty in a program that calls this library."""


@contextmanager
def trusting(words: list[str]) -> Iterator[None]:
    """Trust, while a command runs, the packages that its --trust flags name."""
    token = _command.set(tuple(words))
    try:
        yield
    finally:
        _command.reset(token)


def trusted_by_command() -> list[str]:
    """List the packages that the --trust flags of the running command name."""
    words, found = _command.get(), list[str]()
    for word, following in zip(words, (*words[1:], ""), strict=False):
        if word == "--trust" or word.startswith("--trust="):
            value = following if word == "--trust" else word.partition("=")[2]
            found += [part for part in re.split(r"[\s,\[\]'\"]+", value) if part]
    return found


def class_paths(description: Any) -> set[str]:
    """Collect what building plain data could import: class paths, and strings that look like one.

    Every dotted name counts, whatever its key, because parsers import strings where the type of
    an argument asks for a class, and whatever a class_path is. Strings of YAML are read.
    """
    found = set[str]()
    for key, value in nodes(description):
        if key == "class_path" and "." in str(value):
            found.add(str(value))
        elif isinstance(value, str) and CLASS_PATH.fullmatch(value) and key not in FILE_ARGUMENTS:
            found.add(value)
    return found


def nodes(description: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every value in plain data with its key; YAML's aliases can nest one in itself."""
    seen = dict[int, Any]()
    remaining: list[tuple[Any, Any]] = [(None, description)]
    while remaining:
        key, one = remaining.pop()
        yield key, one
        held = yaml_in(one) if isinstance(one, str) else one
        if not isinstance(held, dict | list | tuple) or id(held) in seen:
            continue
        seen[id(held)] = held
        remaining += held.items() if isinstance(held, dict) else enumerate(held)


def yaml_in(text: str) -> Any:
    """What a parser of command lines would make of a string; None: a string."""
    try:
        settings = yaml.safe_load(text) if re.search(r"[\[{:\n-]", text) else None
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    return settings if isinstance(settings, dict | list) else None


def is_trusted(class_path: str, trust: Iterable[str] = ()) -> bool:
    """Whether a class may be imported: allowed, this library's, or its module is imported."""
    if any(class_path.startswith(f"{name}.") for name in (OWN, *trust, *trusted_by_command())):
        return True
    return class_path.rpartition(".")[0] in sys.modules


def foreign_packages(description: Any) -> list[str]:
    """List the packages that --trust has to name before a description is built elsewhere."""
    packages = {path.partition(".")[0] for path in class_paths(description)}
    return sorted(packages - {OWN, "torch", "lightning"})


def check_trust(
    where: Any, description: Any, others: Any = None, trust: Iterable[str] = ()
) -> None:
    """Raise InputError unless every class that a description names may be imported.

    Args:
        where: The file, for the message.
        description: Plain data that is to be built.
        others: Plain data that may have to be built later; named in the message as well, so that
            it is asked for once.
        trust: Packages that the user allows.
    """
    if all(is_trusted(path, trust) for path in class_paths(description)):
        return
    named = sorted(class_paths([description, others]))
    foreign = [path for path in named if not is_trusted(path, trust)]
    packages = sorted({path.partition(".")[0] for path in foreign})
    classes = f"{', '.join(foreign[:4])}{' and others' if len(foreign) > 4 else ''}"
    if command := _command.get():
        flags = [word for package in packages for word in ("--trust", package)]
        fix = f"python -m {OWN} {shlex.join([*command, *flags])}"
    else:
        modules = sorted({path.rpartition(".")[0] for path in foreign})
        fix = f"trust={packages!r} as an argument, or import {' and '.join(modules)} first"
    raise InputError(
        f"{where} names {classes}, and importing runs code of {' and '.join(packages)}, which "
        f"nobody has allowed yet; if you know where the file is from: {fix}"
    )
