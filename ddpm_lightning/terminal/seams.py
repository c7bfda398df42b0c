"""The classes that can be named for a setting, found from its type hint."""

from __future__ import annotations

import collections.abc
import inspect
from collections.abc import Iterable, Mapping
from typing import Any, get_args, get_origin

from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.loggers import Logger
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ddpm_lightning.configurable import Configurable

ROOTS: tuple[type, ...] = (
    LightningDataModule,
    Callback,
    Optimizer,
    LRScheduler,
    Logger,
    Configurable,
)
"""What every class that a config file can name is made from."""


def bases_of(hint: Any) -> list[type]:
    """Find the classes in a type hint; those of a factory are what it returns."""
    arguments = get_args(hint)
    if get_origin(hint) is collections.abc.Callable:
        arguments = arguments[-1:]
    if isinstance(hint, type) and not arguments:
        return [hint] if issubclass(hint, ROOTS) else []
    return [base for argument in arguments for base in bases_of(argument)]


def classes(bases: Iterable[type]) -> dict[str, type]:
    """Find the public subclasses that can be made, by name."""
    found: dict[str, type] = {}
    remaining = list(bases)
    roots = set(remaining)
    while remaining:
        cls = remaining.pop()
        remaining.extend(cls.__subclasses__())
        hidden = cls.__name__.startswith("_") or "<locals>" in cls.__qualname__
        if cls not in roots and not hidden and not inspect.isabstract(cls):
            found[cls.__name__] = cls
    return dict(sorted(found.items()))


def kind_of(cls: type) -> str:
    """Name what a class is, e.g. a Sampler, with its article."""
    bases = [base for base in reversed(cls.__mro__) if issubclass(base, ROOTS)]
    kinds = [base for base in bases if base not in ROOTS]
    plain = issubclass(cls, ROOTS[:-2]) and not issubclass(cls, LightningDataModule)
    return with_article((bases[0] if plain or not kinds else kinds[0]).__name__)


def with_article(name: str) -> str:
    """Put a or an before a name."""
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def choices(hint: Any, flag: str) -> str:
    """List the classes to choose from for a flag, with the first line about each."""
    known = classes(bases_of(hint))
    width = max(map(len, known), default=0)
    lines = [
        f"  {name:{width}}  {(inspect.getdoc(cls) or '').partition(chr(10))[0]}".rstrip()
        for name, cls in known.items()
    ]
    example = next(iter(known), "CLASS")
    return "\n".join(
        [
            f"--{flag} takes one of these, or the full path of a class of your own:",
            *lines,
            f"The arguments of one: --{flag}.help {example}",
        ]
    )


def asked_for_choices(words: list[str], hints: Mapping[str, Any]) -> str | None:
    """Answer --FLAG.help that names no class; None if nobody asked."""
    for word, following in zip(words, [*words[1:], "--"], strict=False):
        flag = word.removeprefix("--").removesuffix(".help")
        if word == f"--{flag}.help" and following.startswith("-") and bases_of(hints.get(flag)):
            return choices(hints[flag], flag)
    return None
