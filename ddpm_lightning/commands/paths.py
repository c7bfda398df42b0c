"""Paths among settings: ~ and $VAR are expanded once, here, so that all who use a path agree.

Lightning expands ~ in the folder of a run, TensorBoard's logger $VAR as well, and the file system
neither: one run would be written into two folders.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from ddpm_lightning.errors import InputError
from ddpm_lightning.files import is_address

NAMES = re.compile(
    r"(.*_)?(dir|dirpath|root|folder|path|file|cache|weights|ckpt|config|out|samples|condition|"
    r"image|mask|first|second|table|init_from|from)"
)
"""The last part of the names of settings that are paths."""

VARIABLE = re.compile(r"\$(?:\$|([A-Za-z_]\w*)|\{([^}]*)\})")
"""A variable in a path, or $$, which stands for a $ itself."""


def is_path(name: str) -> bool:
    """Whether a setting of this dotted name is a path."""
    last = name.rpartition(".")[2]
    return last != "class_path" and NAMES.fullmatch(last) is not None


def check_no_empty_paths(words: list[str]) -> None:
    """Raise InputError for ``--ckpt_path=``, which an unset variable of the shell leaves."""
    for word, following in zip(words, [*words[1:], "-"], strict=False):
        flag, equals, value = word.partition("=")
        empty = value == "" if equals else following == ""
        if flag.startswith("--") and empty and is_path(flag[2:]):
            raise InputError(
                f"{flag} is empty (a variable of the shell that is not set?); give a path, or "
                f"leave out {flag}"
            )


def expanded(path: str, name: str) -> str:
    """Expand ~, ~user and $VAR in a path; $$ is a $.

    Args:
        path: As it was given.
        name: Name of the setting, for messages.

    Raises:
        InputError: A variable is not set or empty, or there is no such home folder.
    """
    if is_address(path) and ".logger" not in name:
        raise InputError(
            f"{name} {path} is an address, and files are read and written on this machine's own "
            "file systems; mount it, or copy the files"
        )

    def value(one: re.Match[str]) -> str:
        if one[0] == "$$":
            return "$"
        variable = one[1] or one[2]
        if not (found := os.environ.get(variable)):
            raise InputError(
                f"{name} {path}: the variable {variable} is not set; set it, write out the path, "
                "or write $$ for a $ of a name"
            )
        return found

    found = os.path.expanduser(VARIABLE.sub(value, path))
    if found.startswith("~"):
        raise InputError(
            f"{name} {path}: there is no home folder {found.partition('/')[0]}; write out the "
            f"path (./{found} for a file of that name)"
        )
    return found


def expand_paths(settings: Any, name: str = "") -> None:
    """Expand the paths among parsed settings, in place, at any depth.

    Args:
        settings: A namespace or dictionary.
        name: Its dotted name; empty for all settings.

    Raises:
        InputError: A path is empty or cannot be expanded.
    """
    for key, value in _items(settings):
        full = f"{name}.{key}".lstrip(".") if key != "init_args" else name
        if isinstance(value, list):
            settings[key] = [_expanded(one, full) for one in value]
        settings[key] = _expanded(settings[key], full)


def _items(settings: Any) -> Iterator[tuple[str, Any]]:
    yield from list(settings.items() if isinstance(settings, dict) else vars(settings).items())


def _expanded(value: Any, name: str) -> Any:
    if isinstance(value, dict | Namespace):
        expand_paths(value, name)
    elif isinstance(value, Path):
        return Path(expanded(str(value), name))
    elif isinstance(value, str) and is_path(name):
        if not value:
            raise InputError(f"{name} is empty; give a path, or null")
        return expanded(value, name)
    return value
