"""Settings that are null where a value is needed, which jsonargparse lets pass."""

from __future__ import annotations

from argparse import Action
from collections.abc import Mapping
from types import NoneType
from typing import Any, get_args

from ddpm_lightning.errors import InputError
from ddpm_lightning.terminal.choices import find_class
from ddpm_lightning.terminal.parser import flags_of, parser_of


def check_nulls(settings: dict[str, Any], flags: Mapping[str, Action]) -> None:
    """Raise InputError for a null in a setting that has a default and whose type has no null.

    Args:
        settings: Parsed settings as nested dictionaries, classes as class_path and init_args.
        flags: The flags of the command, without dashes.
    """
    for flag, action in flags.items():
        value: Any = settings
        for part in flag.split("."):
            value = value.get(part, "") if isinstance(value, dict) else ""
        _check(flag, value, action)
    _walk(settings, "")


def _walk(settings: dict[str, Any], name: str) -> None:
    inner = settings.get("init_args")
    if isinstance(inner, dict) and None in inner.values():
        cls = find_class(str(settings.get("class_path")))
        for argument, action in flags_of(parser_of(cls)).items() if cls else ():
            _check(f"{name}.{argument}", inner.get(argument, ""), action)
    for key, value in settings.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, dict):
                _walk(one, name if key == "init_args" else f"{name}.{key}".lstrip("."))


def _check(flag: str, value: Any, action: Action) -> None:
    hint = getattr(action, "_typehint", Any)
    if value is None and action.default is not None and NoneType not in get_args(hint):
        raise InputError(f"{flag} null: give a value, or leave it out")
