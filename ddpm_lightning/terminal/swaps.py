"""A class given on the command line starts from its own defaults, not from another's settings.

The parser keeps, of the class that a config file names, every argument that the new class has by
the same name: DiT would get the heads of a U-Net. Arguments that the two inherit from a common
base mean the same, and stay.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from pydoc import locate
from typing import Any

from ddpm_lightning.configurable import Configurable, plain

FLAG = re.compile(r"--([\w.]+)(?:=(.*))?$", re.DOTALL)
CLASS = re.compile(r"[\w.]*\b[A-Z]\w*")


def with_own_defaults(args: Sequence[str], parse: Callable[[Sequence[str]], Any]) -> list[str]:
    """Add flags that give a class its own defaults where it took over another's settings.

    Args:
        args: The words of the command line.
        parse: Parses words to the configuration of their subcommand.
    """
    keys = list(_classes(args))
    if not keys or any(re.fullmatch(r"-h|--\S*help", word) for word in args):
        return list(args)
    words = [word for word in args if not word.startswith("--print_config")]
    config = parse(words)
    flags = [match[1] for word in words if (match := FLAG.match(word))]
    added = []
    for key in keys:
        before, now = _part(parse(_without(words, key)), key), _part(config, key)
        given = {flag.removeprefix(f"{key}.").removeprefix("init_args.") for flag in flags}
        for name, default in _taken_over(before, now).items():
            if name not in given:
                added.append(f"--{key}.{name}={json.dumps(default)}")
    return [*args, *added]


def _classes(args: Sequence[str]) -> Iterator[str]:
    """The flags of the model's parts that are given something like a class."""
    for word, following in zip_longest(args, args[1:], fillvalue=""):
        match = FLAG.match(word)
        if match and match[1].startswith("model."):
            value = following if match[2] is None else match[2]
            if CLASS.fullmatch(value):
                yield match[1].removesuffix(".class_path")


def _taken_over(before: Any, now: Any) -> dict[str, Any]:
    """Arguments of a class that have the value of another class's, and its own defaults."""
    old, new = _configurable(before), _configurable(now)
    if old is None or new is None or old is new:
        return {}
    found: dict[str, Any] = {}
    for name, parameter in inspect.signature(new).parameters.items():
        value = now["init_args"].get(name)
        if parameter.default is parameter.empty or name in _shared(new, old):
            continue
        default = plain(parameter.default, name)
        if value == before["init_args"].get(name, _NOTHING) and _plain(value) != default:
            found[name] = default
    return found


_NOTHING = object()


def _part(config: Any, key: str) -> Any:
    """Look up what a flag names; a class's arguments stand under init_args in the config."""
    for name in key.split("."):
        if config is None or not hasattr(config, "get"):
            return None
        inner = config.get("init_args")
        if name not in config and inner is not None:
            config = inner
        config = config.get(name)
    return config


def _configurable(part: Any) -> type[Configurable] | None:
    cls = locate(part["class_path"]) if hasattr(part, "get") and part.get("class_path") else None
    fits = isinstance(cls, type) and issubclass(cls, Configurable) and part.get("init_args")
    return cls if fits else None  # type: ignore[return-value]


def _without(args: Sequence[str], key: str) -> list[str]:
    """Leave out a flag, those below it, and their values."""
    kept: list[str] = []
    value_follows = False
    for word in args:
        if value_follows and not word.startswith("-"):
            value_follows = False
            continue
        match = FLAG.match(word)
        own = match is not None and (match[1] == key or match[1].startswith(f"{key}."))
        value_follows = own and match is not None and match[2] is None
        if not own:
            kept.append(word)
    return kept


def _shared(a: type, b: type) -> set[str]:
    """Arguments of the constructors that both classes inherit."""
    bases = [base for base in a.__mro__ if base in b.__mro__ and "__init__" in vars(base)]
    return {name for base in bases for name in inspect.signature(base).parameters}


def _plain(value: Any) -> Any:
    return value.as_dict() if hasattr(value, "as_dict") else value
