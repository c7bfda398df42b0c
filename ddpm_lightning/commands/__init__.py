"""The plain commands, which work on a checkpoint."""

from ddpm_lightning.commands.edits import Interpolate, RePaint, SDEdit

__all__ = ["Interpolate", "RePaint", "SDEdit"]
