"""Which errors are the user's to mend, in one line; others are bugs and keep their traceback."""

from __future__ import annotations

import re
import sys
from argparse import ArgumentError
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from traceback import walk_tb
from typing import Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from ddpm_lightning.errors import InputError
from ddpm_lightning.terminal.seams import asked_for_choices
from ddpm_lightning.terminal.settings import check_config_files
from ddpm_lightning.terminal.usage import explain

BUILDERS = ("jsonargparse", "lightning", "torch", "contextlib", "functools", "inspect")
"""Packages that make objects from settings and refuse these by TypeError and ValueError."""

OURS = ("ddpm_lightning.cli", "ddpm_lightning.commands.run", "ddpm_lightning.terminal.mistakes")
"""The modules through which they are called."""

WRONG_ARGUMENTS = re.compile(r"__init__\(\) (takes|missing|got) ")


LIGHTNING = {
    r"Connection closed by peer|Connection reset by peer|Broken pipe": (
        "another process of this run has ended; its own message says why"
    ),
    r"`val_check_interval` \((\d+)\) must be less than or equal to .* batches \((\d+)\)": (
        "trainer.val_check_interval {0} is more than the {1} batches of an epoch; give less, or "
        "--trainer.check_val_every_n_epoch null, which counts batches through the whole run"
    ),
    r"Early stopping conditioned on metric `(.+?)` which is not available.*: (`.*`)": (
        "EarlyStopping monitors {0}, which is not logged; these are: {1}"
    ),
}
"""Lightning's complaints about settings that it meets only when it runs."""


def users_mistake(error: BaseException | None) -> str | None:
    """Find what the user can mend among an error and its causes; None: it is a bug."""
    while error is not None:
        if isinstance(error, InputError | MisconfigurationException):
            return str(error)
        if said := _explain_lightning(error):
            return said
        error = error.__cause__
    return None


@contextmanager
def parsing(
    words: list[str], hints: Mapping[str, Any], commands: Iterable[str] = ()
) -> Iterator[None]:
    """Turn mistakes in the command line into one line; answer --FLAG.help without a class.

    Args:
        words: The command line.
        hints: Its flags and their types.
        commands: Names of its commands.

    Raises:
        InputError: The parser refuses something.
        SystemExit: The classes for a flag were asked for and have been shown.
    """
    check_config_files(words)
    if listing := asked_for_choices(words, hints):
        print(listing)
        sys.exit(0)
    try:
        yield
    except ArgumentError as error:
        raise InputError(explain(str(error), hints, commands)) from error
    except UnicodeDecodeError as error:
        raise InputError("a file given for settings is not text; is it the right one?") from error


@contextmanager
def constructing() -> Iterator[None]:
    """Turn what a constructor refuses into one line, but never a bug inside a user's class.

    Raises:
        InputError: The arguments do not fit.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        if said := users_mistake(error):
            raise InputError(said) from error
        cause = error
        while _modules(cause)[-1].startswith("jsonargparse.") and isinstance(
            cause.__cause__, TypeError | ValueError
        ):
            cause = cause.__cause__  # of what the parser makes of it
        modules = _modules(cause)
        ours = modules[-1].split(".")[0] in (*BUILDERS, "ddpm_lightning")
        if all(name.split(".")[0] in BUILDERS or name in OURS for name in modules) or (
            ours and WRONG_ARGUMENTS.search(str(cause))
        ):
            raise InputError(str(cause)) from error
        raise cause from None


def _modules(error: BaseException) -> list[str]:
    """The modules that an error went through, the one that raised it last."""
    return [frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__)]


def hints_of(parser: Any, subcommand: str | None = None) -> dict[str, Any]:
    """Find the flags of a parser, without dashes, and their types.

    Args:
        parser: A jsonargparse parser.
        subcommand: Those of this subcommand only; None: of all.
    """
    hints: dict[str, Any] = {}
    for action in parser._actions:
        for option in action.option_strings:
            hints[option.lstrip("-").removesuffix("+")] = getattr(action, "_typehint", None)
    if parser._subcommands_action is not None:
        for name, inner in parser._subcommands_action._name_parser_map.items():
            if subcommand in (None, name):
                hints |= hints_of(inner)
    return hints


def _explain_lightning(error: BaseException) -> str | None:
    """Turn what Lightning says to a user's setting while it runs into one line; None: a bug."""
    if not isinstance(error, ValueError | RuntimeError):
        return None
    text = " ".join(str(error).split())
    for pattern, answer in LIGHTNING.items():
        if match := re.search(pattern, text):
            return answer.format(*match.groups())
    return None
