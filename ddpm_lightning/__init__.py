"""Diffusion models in PyTorch Lightning."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddpm_lightning.autoencoder import Autoencoder
    from ddpm_lightning.ema import EMA
    from ddpm_lightning.module import DiffusionModule
    from ddpm_lightning.muon import MuonAdamW
    from ddpm_lightning.optimization import AdamWNoBiasDecay

__all__ = ["EMA", "AdamWNoBiasDecay", "Autoencoder", "DiffusionModule", "MuonAdamW"]

MODULES = {
    "AdamWNoBiasDecay": "optimization",
    "Autoencoder": "autoencoder",
    "DiffusionModule": "module",
    "EMA": "ema",
    "MuonAdamW": "muon",
}


def __getattr__(name: str) -> Any:
    # Importing torch takes seconds, in which Ctrl-C should reach __main__.
    if name in MODULES:
        return getattr(import_module(f"ddpm_lightning.{MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
