"""completion: a script for the shell."""

from __future__ import annotations

import re
import sys
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser

from ddpm_lightning.cli.doctor import DoctorCLI
from ddpm_lightning.cli.find_lr import FindLRCLI
from ddpm_lightning.cli.training import COMPLETION, DiffusionCLI
from ddpm_lightning.cli.trial import TrialCLI
from ddpm_lightning.commands.completion import completion_script
from ddpm_lightning.commands.list_configs import shipped_configs
from ddpm_lightning.commands.run import COMMANDS, parser_of_command
from ddpm_lightning.module import DiffusionModule
from ddpm_lightning.terminal.choices import classes, hint_of
from ddpm_lightning.terminal.parser import PROGRAM, Parser, flags_of

TRIALS: dict[str, type[TrialCLI]] = {"doctor": DoctorCLI, "find_lr": FindLRCLI}
"""Commands with fit's flags that leave no run."""


class CompletionCLI(DiffusionCLI):
    """completion: prints a script for the shell from the parsers of all commands.

    Args:
        module_class: The module whose arguments are flags.
        args: The words after the command.
    """

    def __init__(self, module_class: type[DiffusionModule], args: list[str]) -> None:
        Parser(prog=f"{PROGRAM} completion", description=COMPLETION).parse_args(args)
        super().__init__(module_class, [])

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Print the script and end, because nothing is to be built."""
        parsers: dict[str, Any] = {**self._subcommand_parsers}
        parsers |= {name: parser_of_command(name) for name in COMMANDS}
        known = {name: flags_of(one) for name, one in parsers.items()}
        for name, trial in TRIALS.items():
            trial.add_flags(own := Parser())
            known[name] = known["fit"] | flags_of(own)
        known["completion"] = {}
        words, values = dict[str, list[str]](), dict[str, list[str]]()
        for command, flags in known.items():
            names = [flag for flag in sorted(flags) if re.fullmatch(r"[\w.]{2,}", flag)]
            words[command] = [f"--{flag}" for flag in names]
            for flag in names:
                values.setdefault(f"--{flag}", []).extend(classes(hint_of(flag, flags)))
        words |= {name: [*one] for name, one in COMMANDS.items() if isinstance(one, dict)}
        print(completion_script(words, values, [*shipped_configs()]))
        sys.exit(0)
