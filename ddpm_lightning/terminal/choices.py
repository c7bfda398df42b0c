"""The classes that a flag accepts, their help, and did-you-mean suggestions."""

from __future__ import annotations

import inspect
import sys
from abc import ABC
from argparse import Action
from collections.abc import Callable, Mapping
from typing import Any, Union, get_args, get_origin

from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.loggers import Logger
from torch.optim.lr_scheduler import LRScheduler, Optimizer

from ddpm_lightning.configurable import Configurable
from ddpm_lightning.errors import InputError, nearest, prefixes
from ddpm_lightning.imports import located, missing_methods, near_path
from ddpm_lightning.terminal.parser import flags_of, parser_of

ROOTS = (Configurable, LightningDataModule, Callback, Logger, Optimizer, LRScheduler)


def bases_of(hint: Any) -> list[type]:
    """List the classes in a type hint; for a factory, those that it returns."""
    is_factory = get_origin(hint) is Callable
    arguments = get_args(hint)[-1 if is_factory else 0 :]
    if isinstance(hint, type) and not arguments:
        return [hint] if issubclass(hint, ROOTS) else []
    return [base for argument in arguments for base in bases_of(argument)]


def classes(hint: Any) -> dict[str, type]:
    """List the concrete classes for a type hint, by name; of this library only exported ones."""
    found, remaining = {}, bases_of(hint)
    while remaining:
        cls = remaining.pop()
        remaining.extend(cls.__subclasses__())
        shown = [getattr(sys.modules.get(n), cls.__name__, 0) for n in prefixes(cls.__module__)]
        private = cls.__module__.startswith("ddpm_lightning.") and cls not in shown[:-1]
        abstract = inspect.isabstract(cls) or ABC in cls.__bases__ or cls in ROOTS
        if not (private or abstract or cls.__name__.startswith("_")):
            found[cls.__name__] = cls
    return dict(sorted(found.items()))


def find_class(name: str, hint: Any = Union[ROOTS]) -> type | None:  # noqa: UP007
    """Find a class by its name among those for a type hint, or by its import path."""
    found = classes(hint).get(name) or located(name)
    return found if isinstance(found, type) else None


def hint_of(flag: str, flags: Mapping[str, Action]) -> Any:
    """Return the type hint of a flag, or of an argument of a class that a flag accepts."""
    parent, _, name = flag.rpartition(".")
    if flag in flags or not parent:
        return getattr(flags.get(flag), "_typehint", None)
    owners = (cls for cls in classes(hint_of(parent, flags)).values() if _may_take(cls, name))
    parsers = map(parser_of, owners)
    return next((hint_of(name, flags_of(one)) for one in parsers if name in flags_of(one)), None)


def _may_take(cls: type, name: str) -> bool:
    """Whether a class can have an argument; its parser, which takes longer, knows for certain."""
    parameters = inspect.signature(cls).parameters.values()
    return any(one.name == name or one.kind is one.VAR_KEYWORD for one in parameters)


def help_for(flag: str, name: str, hint: Any) -> str:
    """Return the text of --FLAG.help: the classes to choose from, or the arguments of one."""
    known = classes(hint)
    name = name or (min(known) if len(known) == 1 else "")
    if cls := find_class(name, hint):
        return parser_of(cls, hint, flag).format_help()
    if name:
        raise InputError(f"{flag}: {no_class(name, hint)}")
    about = [f"  {one:16}  {inspect.getdoc(cls) or ''}" for one, cls in known.items()]
    lines = [f"--{flag} takes one of these, or the full path of a class of your own:", *about]
    lines.append(f"The arguments of one: --{flag}.help {min(known)}")
    return "\n".join(line.split("\n")[0] for line in lines)


def no_class(name: str, hint: Any) -> str:
    """Return the message that a name is no class for a type hint, with the nearest one."""
    known = classes(hint)
    try:
        other = find_class(name)
    except InputError as error:  # its module fails when it is imported
        return str(error)
    listed = f"; choose one of {', '.join(known)}" if len(known) <= 20 else "; .help lists them"
    if other is None:
        return f"no class '{name}'{near_path(name) or nearest(name, known, otherwise=listed)}"
    if inspect.isabstract(other) and issubclass(other, tuple(bases_of(hint))):
        return missing_methods(name, other)
    kinds = [one.__name__ for one in other.__mro__ if issubclass(one, ROOTS) and one not in ROOTS]
    wanted = " or a ".join(one.__name__ for one in bases_of(hint))
    return f"{name} is {f'a {kinds[-1]}, ' if kinds else ''}not a {wanted}{listed}"
