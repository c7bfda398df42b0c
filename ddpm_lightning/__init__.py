"""Diffusion models in PyTorch Lightning."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddpm_lightning.ema import EMA
    from ddpm_lightning.module import DiffusionModule

__all__ = ["EMA", "DiffusionModule"]


def __getattr__(name: str) -> Any:
    # Importing torch takes seconds, in which Ctrl-C should reach __main__.
    if name == "DiffusionModule":
        return import_module("ddpm_lightning.module").DiffusionModule
    if name == "EMA":
        return import_module("ddpm_lightning.ema").EMA
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
