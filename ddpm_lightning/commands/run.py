"""The plain commands: functions whose arguments are the flags, or dictionaries of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from jsonargparse import auto_parser

from ddpm_lightning.commands.analytic_variance import analytic_variance
from ddpm_lightning.commands.check import check
from ddpm_lightning.commands.compare import compare
from ddpm_lightning.commands.convert import convert
from ddpm_lightning.commands.encode import encode
from ddpm_lightning.commands.evaluate import evaluate
from ddpm_lightning.commands.export import export
from ddpm_lightning.commands.find_steps import find_steps
from ddpm_lightning.commands.floor import floor
from ddpm_lightning.commands.given_checkpoint import add_trust
from ddpm_lightning.commands.init import init
from ddpm_lightning.commands.list_configs import list_configs
from ddpm_lightning.commands.nulls import check_nulls
from ddpm_lightning.commands.paths import expand_paths
from ddpm_lightning.commands.plot import PLOTS
from ddpm_lightning.commands.sample import sample
from ddpm_lightning.commands.score import score
from ddpm_lightning.commands.sweep import sweep
from ddpm_lightning.commands.words import check_command, complete
from ddpm_lightning.errors import InputError
from ddpm_lightning.files import atomic_write
from ddpm_lightning.memory import check_integers
from ddpm_lightning.processes import Processes, choose_gpu, ended_by_sigterm, joined, start
from ddpm_lightning.terminal.parser import PROGRAM, Parser, flags_of

COMMANDS: dict[str, Callable[..., None] | dict[str, Callable[..., None]]] = {
    "check": check,
    "sample": sample,
    "evaluate": evaluate,
    "score": score,
    "sweep": sweep,
    "floor": floor,
    "compare": compare,
    "analytic_variance": analytic_variance,
    "find_steps": find_steps,
    "encode": encode,
    "plot": PLOTS,
    "export": export,
    "convert": convert,
    "list_configs": list_configs,
    "init": init,
}

SHARED = ("sample", "evaluate", "score", "sweep", "floor", "analytic_variance")
"""Commands whose work several processes share."""

RESERVED = {"source": "from"}
"""Flags whose names Python does not allow for an argument, by that argument."""

DEVICES = """Processes of this machine that share the work, on GPUs one each; the command starts
them itself (under torchrun leave it out). The results are those of one process."""


def run_command(name: str, words: list[str], main: Callable[[list[str]], None]) -> None:
    """Run a plain command.

    Args:
        name: Of the command.
        words: The arguments after its name.
        main: What runs a command line; processes that the command starts run it, too.
    """
    with joined() as processes, ExitStack() as stack:
        if processes.count == 1:  # several are ended by who has started them
            stack.enter_context(ended_by_sigterm())
        function, settings, config = _parsed(name, words)
        devices = settings.pop("devices", 1)
        if devices < 1:
            raise InputError(f"--devices {devices}: give 1 or more")
        if processes.count == 1 and devices > 1:
            start(devices, main, [name, *words])
            return
        _check(processes, devices)
        if name in SHARED or processes.first:
            choose_gpu(settings.get("device") or "cpu", processes.count)
            function(**settings)
            if name == "sample" and processes.first:
                _keep(config, settings["out"])


def _keep(config: str, out: Path) -> None:
    """Write the settings of a command beside what it made, for --config; without their place."""
    path = out / "config.yaml" if out.is_dir() else out.with_name(f"{out.name}.yaml")
    with atomic_write(path) as partial:
        partial.write_text(config, "utf-8")


def _check(processes: Processes, devices: int) -> None:
    if devices not in (1, processes.count):
        raise InputError(
            f"--devices {devices}, but torchrun has started {processes.count} processes; leave "
            "--devices out"
        )


def parser_of_command(name: str) -> Parser:
    """Build the parser of a plain command."""
    function: Any = COMMANDS[name]
    subcommands = function if isinstance(function, dict) else {}
    parser: Any = auto_parser(
        function,
        as_positional=name in ("compare", "check", "init"),
        allow_abbrev=False,
        parser_class=Parser,
        prog=f"{PROGRAM} {name}",
        description=about(name) if subcommands else None,
    )
    if name in SHARED:
        parser.add_argument("--devices", type=int, default=1, help=" ".join(DEVICES.split()))
    for one, called in (subcommands or {"": function}).items():
        if "ckpt" in inspect.signature(called).parameters:
            listed: Any = parser._subcommands_action
            add_trust(listed.choices[one] if subcommands else parser)
    actions: Any = parser._actions
    for action in actions:
        if flag := RESERVED.get(action.dest):
            action.option_strings[:] = [f"--{flag}"]
            parser._option_string_actions[f"--{flag}"] = action
    return parser


def _parsed(name: str, words: list[str]) -> tuple[Callable[..., None], dict[str, Any], str]:
    """Find a command's function, in its arguments the settings for it, and these as YAML."""
    function: Any = COMMANDS[name]
    subcommands = function if isinstance(function, dict) else {}
    parser = parser_of_command(name)
    command: list[str] = []
    if subcommands:
        check_command(words, list(subcommands))
        command, words = words[:1], words[1:]
    words = complete(words, flags_of(parser, *command))
    settings = parser.parse_args([*command, *words])
    expand_paths(settings)
    plain = settings.as_dict()
    check_nulls(plain, {} if subcommands else flags_of(parser))
    check_integers(plain)
    stated = settings.clone()
    for place in ("out", "devices", "config"):
        stated.pop(place, None)
    config = parser.dump(stated, skip_validation=True)
    settings = parser.instantiate_classes(settings)
    if subcommands:
        function = subcommands[settings.subcommand]
        settings = settings[settings.subcommand]
    settings.pop("config", None)
    return function, dict(settings), config


def about(name: str) -> str:
    """Describe a plain command in one line, for the help."""
    command = COMMANDS[name]
    if isinstance(command, dict):
        return f"Draw a figure or a strip: {', '.join(command)}."
    return (inspect.getdoc(command) or "").partition("\n")[0]
