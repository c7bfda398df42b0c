"""Samplers: from noise to data."""

from ddpm_lightning.diffusion.samplers.ddim import DDIM
from ddpm_lightning.diffusion.samplers.ddpm import DDPM
from ddpm_lightning.diffusion.samplers.sampler import Sampler, State
from ddpm_lightning.diffusion.samplers.spacings import Levels, Quadratic, Spacing, Uniform

__all__ = ["DDIM", "DDPM", "Levels", "Quadratic", "Sampler", "Spacing", "State", "Uniform"]
