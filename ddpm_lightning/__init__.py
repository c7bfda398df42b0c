"""Diffusion models in PyTorch Lightning."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddpm_lightning.module import DiffusionModule

__all__ = ["DiffusionModule"]


def __getattr__(name: str) -> Any:
    # Importing torch takes seconds, in which Ctrl-C should reach __main__.
    if name == "DiffusionModule":
        from ddpm_lightning.module import DiffusionModule

        return DiffusionModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
