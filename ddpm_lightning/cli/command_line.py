"""The command line: which class or function runs a command, and how it ends."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence
from io import TextIOWrapper

from ddpm_lightning.autoencoder import Autoencoder
from ddpm_lightning.cli.autoencoder import AutoencoderCLI, trains_autoencoder
from ddpm_lightning.cli.completion import TRIALS, CompletionCLI
from ddpm_lightning.cli.training import DESCRIPTIONS, DiffusionCLI
from ddpm_lightning.closed_pipe import ended_by_closed_pipe
from ddpm_lightning.commands.machine import refusal_of
from ddpm_lightning.commands.run import COMMANDS, run_command
from ddpm_lightning.commands.words import check_command
from ddpm_lightning.errors import InputError
from ddpm_lightning.module import DiffusionModule
from ddpm_lightning.terminal.mistakes import causes_of, users_mistake
from ddpm_lightning.terminal.parser import PROGRAM
from ddpm_lightning.trust import trusting

TRAINING = (*DESCRIPTIONS, *TRIALS)
"""Commands with fit's flags."""

# The EMA is in evaluation mode on purpose, and Lightning's use of torch's trees is its own.
warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode")
warnings.filterwarnings("ignore", r".*treespec, LeafSpec.*")
# The progress line shows the loss of every step, and what is logged is the user's choice.
warnings.filterwarnings("ignore", r"The number of training batches .* is smaller than the logging")
logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
    lambda record: "litlogger" not in record.msg and "litmodels" not in record.msg
)


def main(
    args: Sequence[str] | None = None, module_class: type[DiffusionModule] = DiffusionModule
) -> None:
    """Run the command line.

    Args:
        args: The words after the program's name; None takes the process's own.
        module_class: The module to train, for a program of your own around a subclass.

    Raises:
        SystemExit: Code 2 and one line on standard error for bad input, code 130 after Ctrl-C, 143
            after SIGTERM, 141 where the reader of the output has gone.
    """
    given = sys.argv if args is None else [PROGRAM, *args]
    if given[1:2] == ["--"]:  # where the flags of torchrun end
        del given[1]
    if given[1:] and not given[1].startswith("-"):
        given[1] = given[1].replace("-", "_")  # list-configs is list_configs
    words = given[1:]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a locale may lack −, ± or ×
            stream.reconfigure(errors="replace")
    with ended_by_closed_pipe():
        _run(words, None if args is None else words, module_class)


def _run(words: list[str], args: list[str] | None, module_class: type[DiffusionModule]) -> None:
    """Run a command; ``args`` is None where LightningCLI is to read the process's own words."""
    try:
        check_command(words, [*DESCRIPTIONS, *TRIALS, "completion", *COMMANDS])
        with trusting(words):
            encodes = words[0] in TRAINING and trains_autoencoder(words[1:])
            if encodes and words[0] in TRIALS:
                raise InputError(f"{words[0]} is of diffusion models, not of autoencoders")
            if words[0] in TRIALS:
                sys.exit(TRIALS[words[0]](module_class, words[1:]).exit_code)
            elif words[0] == "completion":
                CompletionCLI(module_class, words[1:])
            elif words[0] in COMMANDS:
                run_command(words[0], words[1:], main)
            elif encodes:
                AutoencoderCLI(Autoencoder, args)
            else:
                DiffusionCLI(module_class, args)
    except KeyboardInterrupt:
        print("\nstopped by Ctrl-C", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        mistake = users_mistake(error) or refusal_of(error)
        if mistake is not None:
            print(f"error: {' '.join(mistake.split())}", file=sys.stderr)
            sys.exit(2)
        if (cause := causes_of(error)[-1]) is not error:
            raise cause from None  # without what the parser makes of it
        raise
