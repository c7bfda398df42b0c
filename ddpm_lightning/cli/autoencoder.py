"""fit, validate and test of autoencoders, and which module a command line trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningArgumentParser

from ddpm_lightning.autoencoder import Autoencoder
from ddpm_lightning.callbacks import ReconstructionGrid
from ddpm_lightning.cli.training import DiffusionCLI
from ddpm_lightning.commands.config_file import read_config
from ddpm_lightning.commands.given_checkpoint import config_of_checkpoint
from ddpm_lightning.commands.words import read_words
from ddpm_lightning.errors import InputError
from ddpm_lightning.module import DiffusionModule
from ddpm_lightning.terminal.parser import PROGRAM

MODULES: tuple[str, ...] = (DiffusionModule.__name__, Autoencoder.__name__)
"""What ``lightning_module:`` of a config, or --lightning_module, may name."""


class AutoencoderCLI(DiffusionCLI):
    """fit, validate and test of an Autoencoder, as of a diffusion model."""

    base = Autoencoder
    blocks: ClassVar[dict[str, tuple[type[Callback], ...]]] = {"grid": (ReconstructionGrid,)}

    def add_parts(self, parser: LightningArgumentParser) -> None:
        """An autoencoder has nothing else."""

    def before_instantiate_classes(self) -> None:
        """Refuse to sample from an autoencoder."""
        if self.subcommand == "predict":
            raise InputError("predict samples, and an autoencoder has nothing to sample from")
        super().before_instantiate_classes()

    def next_command(self, last: Path) -> str:
        """Train a diffusion model in its latents."""
        return (
            f"Train in its latents: {PROGRAM} fit --config CONFIG --model.codec AutoencoderCodec "
            f"--model.codec.ckpt {last}"
        )


def trains_autoencoder(words: list[str]) -> bool:
    """Whether a command line, or a config that it names, says ``lightning_module: Autoencoder``.

    Raises InputError: It names neither module.
    """
    found: Any = None
    for name, value in read_words([*config_of_checkpoint(words), *words]):
        if name in ("config", "c"):
            found = read_config(value)[1].get("lightning_module", found)
        elif name == "lightning_module":
            found = value
    if found not in (None, *MODULES):
        raise InputError(f"lightning_module {found!r}: give {' or '.join(MODULES)}")
    return found == Autoencoder.__name__
