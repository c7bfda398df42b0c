"""The command line: LightningCLI for training, plain commands for what works on a checkpoint."""

# ruff: noqa: F401 (exports)

import os

# LightningCLI calls jsonargparse by the names of earlier versions; that is not for our users.
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

from ddpm_lightning.cli.command_line import main
