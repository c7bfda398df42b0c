"""The plain commands: functions whose arguments are the flags, or dictionaries of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from jsonargparse import auto_parser

from ddpm_lightning.commands.analytic_variance import analytic_variance
from ddpm_lightning.commands.compare import compare
from ddpm_lightning.commands.evaluate import evaluate
from ddpm_lightning.commands.floor import floor
from ddpm_lightning.commands.plot import PLOTS
from ddpm_lightning.commands.sample import sample
from ddpm_lightning.commands.score import score
from ddpm_lightning.commands.sweep import sweep
from ddpm_lightning.commands.words import check_command, complete
from ddpm_lightning.terminal.parser import PROGRAM, Parser, flags_of

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


def run_command(name: str, words: list[str]) -> None:
    """Run a plain command with the arguments after its name."""
    function: Any = COMMANDS[name]
    subcommands = function if isinstance(function, dict) else {}
    parser = auto_parser(
        function,
        as_positional=name == "compare",
        allow_abbrev=False,
        parser_class=Parser,
        prog=f"{PROGRAM} {name}",
        description=about(name) if subcommands else None,
    )
    command: list[str] = []
    if subcommands:
        check_command(words, list(subcommands))
        command, words = words[:1], words[1:]
    words = complete(words, flags_of(parser, *command))
    settings = parser.instantiate_classes(parser.parse_args([*command, *words]))
    if subcommands:
        function = subcommands[settings.subcommand]
        settings = settings[settings.subcommand]
    settings.pop("config", None)
    function(**settings)


def about(name: str) -> str:
    """Describe a plain command in one line, for the help."""
    command = COMMANDS[name]
    if isinstance(command, dict):
        return f"Draw a figure or a strip: {', '.join(command)}."
    return (inspect.getdoc(command) or "").partition("\n")[0]
