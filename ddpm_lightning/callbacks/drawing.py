"""Callbacks that draw pictures into a folder of the run."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from ddpm_lightning.callbacks.periodic import Periodic
from ddpm_lightning.errors import InputError


class Drawing(Periodic):
    """Draws every so many optimizer steps, into a folder that no other callback draws into.

    Args:
        every_n_steps: Optimizer steps from one picture to the next.
        name: Folder inside the run folder and tag in the loggers.

    Raises:
        InputError: The folder is not inside the run folder; in setup: another callback has it.
    """

    def __init__(self, every_n_steps: int, name: str) -> None:
        super().__init__(every_n_steps)
        folder = Path(name)
        if folder.is_absolute() or ".." in folder.parts or not folder.parts:
            raise InputError(
                f"{type(self).__name__}(name={name!r}): name a folder inside the run folder"
            )
        self.name = name

    def folder(self, trainer: Trainer) -> Path:
        """The folder that the pictures are written into."""
        return Path(trainer.default_root_dir) / self.name

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for other in trainer.callbacks:  # type: ignore[attr-defined]
            if other is self or not isinstance(other, Drawing):
                continue
            if Path(other.name) == Path(self.name):
                raise InputError(
                    f"{type(self).__name__} and {type(other).__name__} both draw into "
                    f"{self.name!r}; give one of them another name (of the block grid: "
                    "--grid.name NAME)"
                )
