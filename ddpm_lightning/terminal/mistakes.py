"""User mistakes as one-line messages; any other error is a bug and keeps its traceback."""

from __future__ import annotations

import re
from collections.abc import Sequence
from traceback import walk_tb
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from ddpm_lightning.errors import InputError, near_attribute
from ddpm_lightning.terminal.choices import bases_of, hint_of, nearest, no_class
from ddpm_lightning.terminal.parser import ParseError, flags_of

CALLERS = ("ddpm_lightning.cli.", "ddpm_lightning.commands.run")
LIBRARIES = {"jsonargparse", "lightning", "torch", "contextlib", "functools", "inspect"}
LIST = 'a list is one word in brackets, e.g. "[1,2]"'
KEY = re.compile(r'Parser key "([^"]+)"')
VALUE = re.compile(r"(?:value:|string:|Import path) (?:NestedArg.*val=)?'?(.+?)'?\)?(?: does.*)?$")


def causes_of(error: BaseException) -> list[BaseException]:
    """Follow the chain of an error of jsonargparse to its innermost cause, the last."""
    *_, (frame, _) = walk_tb(error.__traceback__)
    if "jsonargparse." not in frame.f_globals["__name__"] and not isinstance(error, ParseError):
        return [error]
    # It chains a union's first error only, but its frame holds all: the furthest one was meant.
    alternatives = frame.f_locals.get("exceptions") or [error.__cause__]
    chains = [causes_of(one) for one in alternatives if one is not None]
    chains.sort(key=lambda chain: (len(chain), len([*walk_tb(chain[-1].__traceback__)])))
    return [error, *(chains[-1] if chains else [])]


def users_mistake(error: Exception) -> str | None:
    """Return the message for a mistake that the user can correct; None: it is a bug."""
    cause = (causes := causes_of(error))[-1]
    for one in (cause, cause.__cause__):
        if isinstance(one, InputError | MisconfigurationException):
            return str(one)
    if any(isinstance(one, ParseError) for one in causes):
        return _explain(causes)
    # An error with nothing but libraries on the stack is a refused setting, too.
    modules = [frame.f_globals["__name__"] for frame, _ in walk_tb(cause.__traceback__)]
    settings = all(name.startswith(CALLERS) or name.split(".")[0] in LIBRARIES for name in modules)
    settings |= modules[-1].startswith("jsonargparse.")  # which passes them to a class
    refused = isinstance(cause, ImportError | RuntimeError | TypeError | ValueError)
    return str(cause) if refused and settings else None


def _explain(causes: list[BaseException]) -> str:
    """Name the setting that the parser refuses, the reason, and the nearest valid one."""
    parser = [one.parser for one in causes if isinstance(one, ParseError)][-1]
    matches = [KEY.match(str(one)) for one in causes if not isinstance(one, ParseError)]
    keys = [match[1] for match in matches if match][0 if parser.component else -1 :]
    cause, where, text = causes[-1], ".".join(keys), " ".join(str(causes[-1]).split())
    owner = parser.component.__name__ if parser.component else ""
    flags = flags_of(getattr(cause, "subcommand_parser", parser))
    if isinstance(cause, KeyError):  # quotes the group or subcommand, and the setting
        *group, name = text.split("'")[1::2]
        if owner:
            known = nearest(name, flags, otherwise=f"; it has {', '.join(sorted(flags))}")
            return f"{where}: {owner} has no argument '{name}'{known}"
        path = name if hasattr(cause, "subcommand_parser") else ".".join([*group, name])
        return f"no setting {path}{nearest(path, flags, otherwise='; --help lists them')}"
    if missing := text.partition("arguments are required: ")[2]:
        options = flags_of(parser, missing.partition(".")[0])
        names = [name.rpartition(".")[2] for name in missing.split(", ")]
        flag = f"--{where}." if owner else "--"
        return f"missing: {', '.join(flag * (name in options) + name for name in names)}"
    if word := text.partition("recognized arguments: ")[2].partition(" ")[0].partition("=")[0]:
        if word.startswith("-"):
            return f"no flag {word}{nearest(word.lstrip('-'), flags, '--', '; --help lists them')}"
        config = f"did you mean --config {word}?" if word.endswith(".yaml") else ""
        return f"unexpected '{word}'; {config or LIST}"
    where += f" of {owner}" if len(keys) > 1 else ""
    hint = hint_of(keys[-1], flags) if keys else None
    value = VALUE.search(text.partition(" Subclass types ")[0])
    if hint is None or value is None:
        return (f"{where}: {text}" if keys else text) + near_attribute(cause)
    if bases_of(hint) and float not in get_args(hint):
        return f"{where}: {no_class(value[1], hint)}"
    listed = f"; {LIST}" if "list" in _spelled(hint) else ""
    return f"{where}: expected {_spelled(hint)}, got {value[1]:.60}{listed}"


def _spelled(hint: Any) -> str:
    """Spell a type hint for a message."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if origin in (Union, UnionType):
        null = " or null" if NoneType in arguments else ""
        return ", ".join(_spelled(one) for one in arguments if one is not NoneType) + null
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return f"list of {_spelled(arguments[0])}"
    return getattr(hint, "__name__", str(hint))
