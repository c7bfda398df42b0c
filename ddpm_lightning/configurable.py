"""Objects that state how they were made, as plain data, and are rebuilt from it.

A description is what a config file says: ``{"class_path": ..., "init_args": {...}}``. Checkpoints
store descriptions and never objects, so they load in a fresh process with ``weights_only=True``.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from ddpm_lightning.errors import InputError


class _InitSignature:
    """Keeps ``help(cls)`` showing the arguments of ``__init__`` although ``__new__`` is ours."""

    def __get__(self, instance: object, owner: type) -> inspect.Signature:
        parameters = list(inspect.signature(owner.__init__).parameters.values())  # type: ignore[misc]
        return inspect.Signature(parameters[1:])


class Configurable:
    """Base of every part that a config file can name: it remembers its own arguments."""

    __signature__ = _InitSignature()
    _arguments: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Configurable:  # noqa: D102
        self = super().__new__(cls)
        # Wrong arguments are left to __init__, whose TypeError is the clear one.
        # object.__setattr__, because frozen dataclasses and unborn nn.Modules refuse the plain one.
        object.__setattr__(self, "_arguments", _bind(cls, args, kwargs))
        return self

    def describe(self) -> dict[str, Any]:
        """State the class and the arguments this object was built with, as plain data.

        Returns:
            ``{"class_path": str, "init_args": dict}``, defaults included.

        Raises:
            InputError: An argument is neither plain data nor itself configurable.
        """
        cls = type(self)
        class_path = f"{cls.__module__}.{cls.__qualname__}"
        return {
            "class_path": class_path,
            "init_args": {
                name: _plain(value, f"{class_path}({name}=...)")
                for name, value in self._arguments.items()
            },
        }


def build(description: Any) -> Any:
    """Rebuild what :meth:`Configurable.describe` stated; plain values pass through.

    Only subclasses of :class:`Configurable` are instantiated, whatever a file asks for.

    Raises:
        InputError: The class cannot be imported, is not configurable or refuses its arguments.
    """
    if isinstance(description, dict) and "class_path" in description:
        cls = configurable_class(description["class_path"])
        init_args = {k: build(v) for k, v in description.get("init_args", {}).items()}
        try:
            return cls(**init_args)
        except TypeError as error:
            raise InputError(f"{description['class_path']} does not fit its description: {error}")
    if isinstance(description, list):
        return [build(value) for value in description]
    return description


def configurable_class(class_path: str) -> type[Configurable]:
    """Import the configurable class of that path, e.g. ``ddpm_lightning.networks.unet.UNet``."""
    module_name, _, name = class_path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"cannot import {class_path}: {error}. If the class is your own, run from the folder "
            "of its module or install its package; a class defined in a notebook or a script "
            "must move to a module of its own."
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, Configurable)):
        raise InputError(f"{class_path} is not a class of this library's kinds; refusing to run it")
    return cls


def _bind(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    signature = inspect.signature(cls)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError:
        return {}
    bound.apply_defaults()
    arguments = dict(bound.arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            arguments.update(arguments.pop(name))
        elif parameter.kind is parameter.VAR_POSITIONAL and not arguments[name]:
            del arguments[name]
    return arguments


def _plain(value: Any, where: str) -> Any:
    if isinstance(value, Configurable):
        return value.describe()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item, where) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item, where) for key, item in value.items()}
    raise InputError(
        f"{where} is a {type(value).__name__}, which a checkpoint cannot state as plain data; "
        "pass numbers, strings, lists or objects of this library's kinds"
    )
