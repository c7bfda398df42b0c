"""A command with fit's flags that trains for a trial."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.cli import LightningArgumentParser

from ddpm_lightning.cli.training import DiffusionCLI
from ddpm_lightning.module import DiffusionModule
from ddpm_lightning.terminal.parser import PROGRAM


class TrialCLI(DiffusionCLI):
    """A command with fit's flags that trains for a trial, and leaves the run folder alone.

    Args:
        module_class: The module to train.
        args: The words after the command.

    Attributes:
        exit_code: Of the process.
    """

    name: str
    description: str

    def __init__(self, module_class: type[DiffusionModule], args: list[str]) -> None:
        self.exit_code = 0
        super().__init__(module_class, ["fit", *args])

    def setup_parser(self, *args: Any) -> None:
        """Name the parser of fit's flags after this command."""
        super().setup_parser(*args)
        self._subcommand_parsers["fit"].prog = f"{PROGRAM} {self.name}"

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Describe the command, and add its own flags."""
        super().add_arguments_to_parser(parser)
        parser.description = self.description
        self.add_flags(parser)

    @staticmethod
    def add_flags(parser: Any) -> None:
        """Add the flags of the command itself."""

    def hold(self, run_folder: str) -> None:
        """Leave the folder to whoever trains in it."""

    def begin_logs(self, step: int | None) -> None:
        """Leave what is logged as it is."""

    def before_instantiate_classes(self) -> None:
        """Accept a folder that holds a run."""

    def before_fit(self) -> None:
        """Say nothing of the time that a run would take."""

    def after_fit(self) -> None:
        """Say nothing of a run, for there was none."""
