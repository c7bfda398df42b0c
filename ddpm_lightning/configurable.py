"""Objects that describe themselves as plain data, and are rebuilt from their description.

A description is as in a config file: ``{"class_path": ..., "init_args": {...}}``. Checkpoints
store descriptions instead of objects, so they load with ``weights_only=True``.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import warnings
from pathlib import Path
from typing import Any

from typing_extensions import Self, get_type_hints

from ddpm_lightning.errors import InputError
from ddpm_lightning.imports import failed_import, near_path
from ddpm_lightning.typed import check_typed


class _InitSignature:
    """The signature of ``__init__``, because help() would show that of Configurable.__new__."""

    def __get__(self, instance: object, owner: type) -> inspect.Signature:
        if owner.__init__ is object.__init__:  # type: ignore[misc]
            return inspect.Signature()
        parameters = list(inspect.signature(owner.__init__).parameters.values())  # type: ignore[misc]
        return inspect.Signature(parameters[1:])


class Configurable:
    """Base of every class that a config file can name: it stores its own arguments."""

    __signature__ = _InitSignature()
    _arguments: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Configurable:  # noqa: D102
        if cls.__init__ is object.__init__ and (args or kwargs):
            # object.__init__ does not refuse them where __new__ is overridden.
            raise TypeError(f"{cls.__name__}() takes no arguments")
        self = super().__new__(cls)
        # object's, because frozen dataclasses and nn.Modules before __init__ refuse their own.
        object.__setattr__(self, "_arguments", _bind(cls, args, kwargs))
        return self

    def describe(self, skip: tuple[str, ...] = ()) -> dict[str, Any]:
        """Describe this object as ``{"class_path": str, "init_args": dict}``, with defaults.

        Args:
            skip: Arguments to leave out.

        Raises:
            InputError: An argument is neither plain data nor itself configurable.
        """
        class_path = self.class_path()
        if class_path.startswith("__main__.") or "<locals>" in class_path:
            warnings.warn(
                f"{class_path} is defined in a script, a notebook or a function: checkpoints with "
                "it load nowhere else; move it to a module of its own",
                stacklevel=2,
            )
        return {"class_path": class_path, "init_args": self.plain_arguments(skip)}

    def plain_arguments(self, skip: tuple[str, ...] = ()) -> dict[str, Any]:
        """The arguments this object was built with as plain data, without those to skip."""
        self._refuse_positional()
        return {
            name: plain(value, f"{self.class_path()}({name}=...)")
            for name, value in self._arguments.items()
            if name not in skip
        }

    def state_defaults(self, base: type) -> None:
        """Add a base class's defaults to the arguments of a class that passes its **settings on.

        Args:
            base: The class whose constructor takes the settings.
        """
        parameters = inspect.signature(base).parameters.items()
        self._arguments = {name: one.default for name, one in parameters} | self._arguments

    def _refuse_positional(self) -> None:
        if any(name.startswith("*") for name in self._arguments):
            raise InputError(
                f"{self.class_path()}: pass the arguments by keyword, so that they can be stored"
            )

    def replace(self, **changes: Any) -> Self:
        """Build a copy of this object with some arguments changed."""
        parameters = inspect.signature(type(self)).parameters.values()
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
        for name in changes:
            if name not in self._arguments and not takes_any:
                raise InputError(f"{self.class_path()} takes no argument {name!r}")
        self._refuse_positional()
        return type(self)(**self._arguments | changes)

    def changed(self) -> dict[str, Any]:
        """The arguments that differ from their defaults, in the order of the signature."""
        parameters: dict[str, inspect.Parameter] = {}
        for cls in reversed(type(self).__mro__):  # base classes, too, for what **kwargs pass on
            if "__init__" in vars(cls):
                parameters |= inspect.signature(vars(cls)["__init__"]).parameters

        def differs(name: str, value: Any) -> bool:
            parameter = parameters.get(name)
            if parameter is None or parameter.default is parameter.empty:
                return True
            try:
                return plain(value, name) != plain(parameter.default, name)
            except InputError:  # not plain data, e.g. a dataclass
                return bool(value != parameter.default)

        return {name: value for name, value in self._arguments.items() if differs(name, value)}

    @classmethod
    def class_path(cls) -> str:
        """The import path by the outermost package that exports it, which outlives file moves."""
        parts = cls.__module__.split(".")
        for n in range(1, len(parts)):
            package = ".".join(parts[:n])
            if getattr(sys.modules.get(package), cls.__qualname__, None) is cls:
                return f"{package}.{cls.__qualname__}"
        return f"{cls.__module__}.{cls.__qualname__}"


def build(description: Any) -> Any:
    """Rebuild an object from its description, at any depth; plain values pass through.

    For security, only subclasses of :class:`Configurable` are instantiated. Whoever builds what a
    file says asks :func:`ddpm_lightning.trust.check_trust` first, because classes are imported.
    """
    if isinstance(description, dict) and "class_path" in description:
        path, arguments = description["class_path"], description.get("init_args") or {}
        cls = configurable_class(path)
        if description.keys() > {"class_path", "init_args"} or not isinstance(arguments, dict):
            raise InputError(f"{path} does not fit its description: it has other entries")
        check_arguments(cls, arguments)
        arguments = {name: build(value) for name, value in arguments.items()}
        try:
            return cls(**arguments)
        except InputError:
            raise
        except Exception as error:  # whatever a class makes of arguments that it does not expect
            raise InputError(f"{path} does not fit its description: {error}") from error
    if isinstance(description, list):
        return [build(value) for value in description]
    return description


def with_download(description: Any, download: bool) -> Any:
    """Set ``download`` in every part of a description whose class takes it, at any depth.

    The classes are imported, so they must be trusted.
    """
    if isinstance(description, list):
        return [with_download(item, download) for item in description]
    if not isinstance(description, dict):
        return description
    found = {key: with_download(value, download) for key, value in description.items()}
    if "class_path" in found and isinstance(arguments := found.get("init_args", {}), dict):
        taken = inspect.signature(configurable_class(found["class_path"])).parameters
        if "download" in arguments or "download" in taken:
            found["init_args"] = arguments | {"download": download}
    return found


def check_arguments(cls: type, arguments: dict[str, Any], where: str = "") -> None:
    """Raise InputError unless plain arguments are of the types that a class's signature states.

    Args:
        cls: The class. A default is right whatever its type; unknown names are left to the call.
        arguments: The arguments as plain data, objects as descriptions.
        where: What to put before an argument's name, for the message.
    """
    try:
        hints = get_type_hints(cls.__init__, include_extras=True)  # type: ignore[misc]
        parameters = inspect.signature(cls).parameters
    except (NameError, TypeError, ValueError, AttributeError):
        return  # hints that only a type checker can resolve
    for name, value in arguments.items():
        if name not in hints or name not in parameters:
            continue
        default = parameters[name].default
        try:
            stated: Any = default if default is inspect.Parameter.empty else plain(default, name)
        except InputError:
            stated = inspect.Parameter.empty
        if repr(value) != repr(stated):  # because NaN is not equal to NaN
            check_typed(value, hints[name], f"{where or f'{cls.__name__}.'}{name}", _check_object)


def _check_object(value: Any, cls: type, where: str) -> None:
    if not issubclass(cls, Configurable):
        return
    if not isinstance(value, dict) or not isinstance(value.get("class_path"), str):
        raise InputError(f"{where} is {value!r:.60}, not the description of a {cls.__name__}")
    if not issubclass(configurable_class(value["class_path"]), cls):
        raise InputError(f"{where} is a {value['class_path']}, not a {cls.__name__}")


def configurable_class(class_path: str) -> type[Configurable]:
    """Import a configurable class by its path, e.g. ``ddpm_lightning.networks.UNet``."""
    module_name, _, name = str(class_path).rpartition(".")
    try:
        cls = getattr(importlib.import_module(module_name), name)
    except Exception as error:  # also what the module does when it is imported
        reason = failed_import(error) or (
            f"{error}. If the class is your own, run from the folder "
            "of its module or install its package; a class defined in a notebook or a script "
            f"must move to a module of its own{near_path(str(class_path))}"
        )
        raise InputError(f"cannot import {class_path}: {reason}") from error
    if not (isinstance(cls, type) and issubclass(cls, Configurable)):
        raise InputError(
            f"{class_path} is not a class of this library's kinds; refusing to run it"
        )
    return cls


def plain(value: Any, where: str) -> Any:
    """Convert a value and the configurable objects in it to plain data; errors name ``where``."""
    if isinstance(value, Configurable):
        return value.describe()
    if value is None:
        return value
    # Subclasses (numpy's float64, an enum) are converted, because weights_only refuses them.
    for kind in (bool, int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [plain(item, where) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item, where) for key, item in value.items()}
    raise InputError(
        f"{where} is a {type(value).__name__}, which a checkpoint cannot store as plain data; "
        "pass numbers, strings, lists or objects of this library's kinds"
    )


def _bind(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Name the arguments of a call, defaults included."""
    signature = inspect.signature(cls)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError:
        return {}  # __init__ is called next and raises the clearer TypeError
    bound.apply_defaults()
    arguments = dict(bound.arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            arguments.update(arguments.pop(name))
        elif parameter.kind is parameter.VAR_POSITIONAL:
            values = arguments.pop(name)
            arguments |= {f"*{name}": values} if values else {}
    return arguments
