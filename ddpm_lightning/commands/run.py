"""The plain commands: functions whose arguments are the flags, or several by subcommand."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from jsonargparse import ArgumentParser, auto_parser

from ddpm_lightning.commands.analytic_variance import analytic_variance
from ddpm_lightning.commands.compare import compare
from ddpm_lightning.commands.evaluate import evaluate
from ddpm_lightning.commands.floor import floor
from ddpm_lightning.commands.plot import PLOTS
from ddpm_lightning.commands.sample import sample
from ddpm_lightning.commands.score import score
from ddpm_lightning.commands.sweep import sweep
from ddpm_lightning.terminal.mistakes import constructing, hints_of, parsing

PROGRAM = "python -m ddpm_lightning"

COMMANDS: dict[str, Callable[..., None] | dict[str, Callable[..., None]]] = {
    "sample": sample,
    "evaluate": evaluate,
    "score": score,
    "sweep": sweep,
    "floor": floor,
    "compare": compare,
    "analytic_variance": analytic_variance,
    "plot": PLOTS,
}
"""Plain commands."""


class CommandParser(ArgumentParser):
    """Calls the program by what a user types, in the help of a class, too."""

    def __init__(self, *args: Any, prog: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, prog=prog or PROGRAM, **kwargs)


def run_command(name: str, words: list[str]) -> None:
    """Run a plain command.

    Raises:
        InputError: The words are wrong, or the command refuses what they ask for.
    """
    function: Any = COMMANDS[name]
    subcommands = function if isinstance(function, dict) else {}
    parser = auto_parser(
        function,
        as_positional=name == "compare",
        exit_on_error=False,
        allow_abbrev=False,
        parser_class=CommandParser,
        prog=f"{PROGRAM} {name}",
        description=about(name) if subcommands else None,
    )
    with parsing(
        words, hints_of(parser, words[0] if subcommands and words else None), subcommands
    ):
        settings = parser.parse_args(words)
    with constructing():
        settings = parser.instantiate_classes(settings)
    if subcommands:
        function = subcommands[settings.subcommand]
        settings = settings[settings.subcommand]
    settings.pop("config", None)
    function(**settings)


def about(name: str) -> str:
    """Say in one line what a plain command does."""
    command = COMMANDS[name]
    if isinstance(command, dict):
        return f"Draw a figure or a strip: {', '.join(command)}."
    return (inspect.getdoc(command) or "").partition("\n")[0]
