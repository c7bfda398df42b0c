"""Diffusion models in PyTorch Lightning."""

from ddpm_lightning.module import DiffusionModule

__all__ = ["DiffusionModule"]
