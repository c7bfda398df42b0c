"""Preprocessing of the command line, for what jsonargparse parses otherwise.

When a flag replaces the class that a config file names, jsonargparse keeps the arguments of the
same name: DiT would get the heads of a U-Net. And it drops the scale of a guidance given as a
number when --guidance.interval or another of its arguments is given.
"""

from __future__ import annotations

import inspect
import json
import math
import re
import sys
from argparse import Action
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import yaml
from lightning.pytorch import Callback

from ddpm_lightning.commands.config_file import check_keys, read_config
from ddpm_lightning.commands.paths import check_no_empty_paths
from ddpm_lightning.configurable import Configurable, plain
from ddpm_lightning.errors import InputError, nearest
from ddpm_lightning.imports import path_in_file
from ddpm_lightning.terminal.choices import (
    bases_of,
    classes,
    find_class,
    help_for,
    hint_of,
    no_class,
)
from ddpm_lightning.terminal.parser import PROGRAM

CLASS = re.compile(r"[\w.]*\b[A-Z]\w*")
"""What looks like the name of a class, or its path."""

FILE = re.compile(r"[^\[{,]*(\.py|[/\\][^\[{,]*)")
"""What looks like a file of Python code, or another path."""


def check_command(words: list[str], commands: list[str]) -> None:
    """Raise InputError unless the first word is a command or --help."""
    first, listed = [*words, ""][0], ", ".join(commands)
    if first in ("-h", "--help", *commands):
        return
    if late := [word for word in words if word in commands]:
        raise InputError(f"the command comes first: {PROGRAM} {late[0]} {first} …")
    if not first or first.startswith("-"):
        raise InputError(f"which command? One of {listed}; --help tells more")
    raise InputError(f"no command '{first}'{nearest(first, commands, '', f'; one of {listed}')}")


def complete(words: list[str], flags: Mapping[str, Action]) -> list[str]:
    """Add the flags that jsonargparse would parse otherwise; print --FLAG.help for classes.

    Config files are read here, and their texts passed on.

    Args:
        words: The command line without its command.
        flags: The command's flags, without dashes.

    Raises:
        InputError: A config file cannot be read, or a path is empty.
    """
    words = _with_listed_prompts(words)
    check_no_empty_paths(words)
    words, configs = _with_config_texts(words)
    pairs = [(name, value) for name, value in read_words(words) if name != "config"]
    for name, value in pairs:
        if value.startswith(("{", "[")):
            check_keys(value, f"--{name}")
    given, added = dict(pairs), dict[str, Any]()
    for name, (place, value) in _classes_in(configs).items():
        replaced = any(name == one or name.startswith(f"{one}.") for one in given)
        if not replaced and bases_of(hint := hint_of(name, flags)):
            own = _own_defaults(name, _class_named(name, value, hint), flags, configs[:place])
            added |= {k: v for k, v in own.items() if not _is_stated(k, configs[place:])}
    for name, value in pairs:
        parent, _, last = name.rpartition(".")
        if last == "help" and classes(hint := hint_of(parent, flags)):
            _class_named(parent, value, hint)
            print(help_for(parent, value, hint))
            sys.exit(0)
        if bases_of(hint := hint_of(name, flags)) and (cls := _class_named(name, value, hint)):
            added |= _own_defaults(name, cls, flags, configs)
        needs_class = parent in flags and _is_abstract(hint_of(parent, flags))
        if needs_class and parent not in given and not any(_configured(parent, flags, configs)):
            raise InputError(f"{parent}: which one? Give --{parent} CLASS before --{name}")
        if parent.endswith("guidance"):
            words = [re.sub(rf"^--{parent}(?==|$)", f"--{parent}.scale", word) for word in words]
            number = next(_configured(parent, flags, configs), None)
            if parent not in given and isinstance(number, int | float):
                added[f"{parent}.scale"] = number
    words = _with_braced_nulls(words, flags)
    return [*words, *(_braced(name, added[name]) for name in sorted(added.keys() - given.keys()))]


def read_words(words: list[str]) -> Iterator[tuple[str, str]]:
    """Yield flags, without dashes, and their values, empty for a flag without one."""
    for word, following in zip(words, [*words[1:], "-"], strict=False):
        flag, equals, value = word.partition("=")
        if flag.startswith("-"):
            name = flag.lstrip("-").replace(".init_args", "").removesuffix(".class_path")
            yield name, value if equals else "" if following.startswith("-") else following


def _with_listed_prompts(words: list[str]) -> list[str]:
    """Write --prompt A --prompt B as one list, because jsonargparse keeps the last alone.

    A list, and null, stay as they are.
    """
    found, rest, prompts = list[str](), iter(words), dict[str, list[str]]()
    for word in rest:
        flag, equals, value = word.partition("=")
        if not re.fullmatch(r"--([\w.]+\.)?prompt", flag):
            found.append(word)
            continue
        value = value if equals else next(rest, "")
        if value == "null" or value.startswith("["):
            found.append(f"{flag}={value}")
        else:
            prompts.setdefault(flag, []).append(value)
    return found + [f"{flag}={json.dumps(texts)}" for flag, texts in prompts.items()]


def _with_config_texts(words: list[str]) -> tuple[list[str], list[dict[str, Any]]]:
    """Read the config files that words name: words with their texts, and their settings."""
    found, configs, rest = list[str](), list[dict[str, Any]](), iter(words)
    for word in rest:
        flag, equals, value = word.partition("=")
        if flag not in ("--config", "-c"):
            found.append(word)
            continue
        text, settings = read_config(value if equals else next(rest, ""))
        found.append(f"--config={text}")
        configs.append(settings)
    return found, configs


def _braced(name: str, value: Any) -> str:
    """Write --a.b=VALUE as --a={b: VALUE}, because jsonargparse reads null in parts as text."""
    parent, _, last = name.rpartition(".")
    text = yaml.safe_dump({last: value}, default_flow_style=True, width=math.inf)
    return f"--{parent}={text.strip()}"


def _with_braced_nulls(words: list[str], flags: Mapping[str, Action]) -> list[str]:
    """Write null for an argument of a class so that it stays null."""
    text = "\0".join(words)
    for flag in set(re.findall(r"--([\w.]+\.\w+)[=\0]null(?=\0|$)", text)):
        name = flag.replace(".init_args", "")
        if bases_of(hint_of(name.rpartition(".")[0], flags)):
            text = re.sub(rf"--{flag}[=\0]null(?=\0|$)", _braced(name, None), text)
    return text.split("\0") if words else []


def _configured(name: str, flags: Mapping[str, Action], configs: list[Any]) -> Iterator[Any]:
    """Yield a setting's values in the config files, the last first, and its default."""
    places = [(settings, name) for settings in reversed(configs)]
    places += [(a.default, name.removeprefix(f)) for f, a in flags.items() if name.startswith(f)]
    for settings, path in places:
        for part in filter(None, path.split(".")):
            get: Any = getattr(settings, "get", {}.get)
            settings = (get("init_args") or {}).get(part, get(part))
        if settings is not None:
            yield settings


def _is_abstract(hint: Any) -> bool:
    """Whether every value for a hint needs the name of a class first."""
    kinds = [kind for kind in get_args(hint) or [hint] if kind is not type(None)]
    return all(kind in bases_of(hint) and inspect.isabstract(kind) for kind in kinds)


def _is_stated(name: str, configs: list[Any]) -> bool:
    return any(True for _ in _configured(name, {}, configs))


def _classes_in(configs: list[Any]) -> dict[str, tuple[int, str]]:
    """Which config file names a class for which setting last, and which class."""
    found: dict[str, tuple[int, str]] = {}

    def walk(place: int, settings: Any, name: str) -> None:
        stated = settings.get("class_path") if isinstance(settings, dict) else settings
        if (
            name
            and isinstance(stated, str)
            and (CLASS.fullmatch(stated) or FILE.fullmatch(stated))
        ):
            for key in [key for key in found if f"{key}.".startswith(f"{name}.")]:
                del found[key]
            found[name] = place, stated
        for key, value in settings.items() if isinstance(settings, dict) else ():
            walk(place, value, name if key == "init_args" else f"{name}.{key}".lstrip("."))

    for place, settings in enumerate(configs):
        walk(place, settings, "")
    return found


def _class_named(name: str, value: str, hint: Any = Configurable | Callback) -> type | None:
    """Find the class that a setting names; raise InputError if a file stands there instead."""
    if CLASS.fullmatch(value):
        try:
            found = find_class(value, hint)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
        if inspect.isabstract(found):
            raise InputError(f"{name}: {no_class(value, hint)}")
        return found
    if FILE.fullmatch(value) and (path := path_in_file(value)):
        raise InputError(f"{name}: {value} is a file; name the class: {path}")
    return None


def _own_defaults(
    name: str, new: type | None, flags: Mapping[str, Action], configs: list[Any]
) -> dict[str, Any]:
    """The defaults of a class that replaces another, without stated settings that both inherit."""
    values = _configured(name, flags, configs)
    paths = [getattr(one, "get", {"class_path": one}.get)("class_path") for one in values]
    stated = (_class_named(name, path) for path in paths if isinstance(path, str))
    old = next(stated, None)
    if new is None or old in (new, None) or not issubclass(new, Configurable | Callback):
        return {}
    bases = [base for base in new.__mro__ if base in old.__mro__ and "__init__" in vars(base)]
    shared = {argument for base in bases for argument in inspect.signature(base).parameters}
    return {
        f"{name}.{argument}": plain(parameter.default, argument)
        for argument, parameter in inspect.signature(new).parameters.items()
        if parameter.default is not parameter.empty
        and not (argument in shared and _is_stated(f"{name}.{argument}", configs))
    }
