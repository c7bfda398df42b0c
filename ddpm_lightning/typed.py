"""Type hints: plain data checked against them, before anything is built, and their spelling."""

from __future__ import annotations

import collections.abc
import math
from collections.abc import Callable
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from torch import Tensor
from typing_extensions import get_type_hints, is_typeddict

from ddpm_lightning.errors import InputError

Find = Callable[[Any, type, str], None]


def check_typed(value: Any, hint: Any, where: str, check_object: Find | None = None) -> None:
    """Raise InputError, naming the place, unless a value of plain data is what a hint says.

    A whole float counts as an int, an int as a float, a list as a tuple and a string as a path,
    because that is how arguments are stored; a bool is no number. Hints that plain data cannot
    decide (Any, callables, type variables) take anything.

    Args:
        value: Plain data.
        hint: A type, union, literal, list, tuple, dict or TypedDict; ``Annotated[int, range(…)]``
            limits a number.
        where: The place of the value, for the message.
        check_object: Checks the description of an object: (value, class, where).

    Raises:
        InputError: The value does not fit.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        check_typed(value, arguments[0], where, check_object)
        limits = arguments[1]
        if type(value) is not int or value not in limits:
            raise InputError(f"{where} is {value}, not {limits.start} to {limits.stop - 1}")
    elif origin in (Union, UnionType):
        _check_union(value, arguments, where, check_object)
    elif origin is Literal:
        _require(value in [one for one in arguments if type(one) is type(value)], value, where)
    elif is_typeddict(hint):
        _check_entries(value, hint, where, check_object)
    elif origin in (list, tuple, collections.abc.Sequence):
        _check_items(value, origin, arguments, where, check_object)
    elif origin is dict or hint is dict:
        _require(isinstance(value, dict), value, where, "a dictionary")
        for key, item in value.items() if arguments else ():
            check_typed(key, arguments[0], f"a key of {where}", check_object)
            check_typed(item, arguments[1], f"{where}[{key!r}]", check_object)
    elif isinstance(hint, type) and hint is not object:
        _check_type(value, hint, where, check_object)


def spelled(hint: Any) -> str:
    """Spell a type hint for a message."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if origin in (Union, UnionType):
        null = " or null" if NoneType in arguments else ""
        return ", ".join(spelled(one) for one in arguments if one is not NoneType) + null
    if isinstance(origin, type) and issubclass(origin, collections.abc.Sequence):
        return f"list of {spelled(arguments[0])}"
    return getattr(hint, "__name__", str(hint))


def kind_of(value: object) -> str:
    """Describe a value by its kind, for a message."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    return "nothing (None)" if value is None else f"a {type(value).__name__}"


def _check_type(value: Any, hint: type, where: str, check_object: Find | None) -> None:
    if hint is float:
        number = type(value) in (int, float) and not math.isnan(value)
        _require(number, value, where, "a number")
    elif hint is int:
        whole = type(value) is int or (type(value) is float and value.is_integer())
        _require(whole, value, where, "a whole number")
    elif hint in (bool, str, NoneType):
        _require(type(value) is hint, value, where, {bool: "true or false", str: "text"}.get(hint))
    elif hint is Path:
        _require(type(value) is str, value, where, "a path")
    elif hint in (list, tuple):
        _require(isinstance(value, list | tuple), value, where, "a list")
    elif hint is Tensor:
        _require(isinstance(value, Tensor), value, where, "a tensor")
    elif check_object is not None:
        check_object(value, hint, where)


def _check_union(
    value: Any, hints: tuple[Any, ...], where: str, check_object: Find | None
) -> None:
    problems = []
    for hint in hints:
        try:
            return check_typed(value, hint, where, check_object)
        except InputError as error:
            problems.append(error)
    # None is the alternative that was meant least.
    raise next((e for h, e in zip(hints, problems, strict=True) if h is not NoneType), problems[0])


def _check_entries(value: Any, hint: Any, where: str, check_object: Find | None) -> None:
    _require(isinstance(value, dict), value, where, "a dictionary")
    if missing := sorted(hint.__required_keys__ - value.keys()):
        raise InputError(f"{where} lacks {', '.join(missing)}")
    for key, kind in get_type_hints(hint, include_extras=True).items():
        if key in value:
            check_typed(value[key], kind, f"{where}[{key!r}]", check_object)


def _check_items(
    value: Any, origin: Any, hints: tuple[Any, ...], where: str, check_object: Find | None
) -> None:
    _require(isinstance(value, list | tuple), value, where, "a list")
    fixed = origin is tuple and hints[-1] is not ...
    if fixed and len(value) != len(hints):
        raise InputError(f"{where} holds {len(value)} values, not {len(hints)}")
    for k, item in enumerate(value):
        check_typed(item, hints[k] if fixed else hints[0], f"{where}[{k}]", check_object)


def _require(fits: bool, value: Any, where: str, wanted: str | None = None) -> None:
    if not fits:
        shown = (
            f"a {type(value).__name__}" if isinstance(value, dict | Tensor) else f"{value!r:.60}"
        )
        raise InputError(f"{where} is {shown}{f', not {wanted}' if wanted else ''}")
