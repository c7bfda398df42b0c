"""Samplers: from noise to data."""

# ruff: noqa: F401 (exports)

from ddpm_lightning.diffusion.samplers.adaptive_ode import AdaptiveODE
from ddpm_lightning.diffusion.samplers.ddim import DDIM
from ddpm_lightning.diffusion.samplers.ddpm import DDPM
from ddpm_lightning.diffusion.samplers.dpm_solver import DPMSolverPP, DPMSolverPPSDE
from ddpm_lightning.diffusion.samplers.euler import Euler
from ddpm_lightning.diffusion.samplers.heun import Heun
from ddpm_lightning.diffusion.samplers.inversion import encode
from ddpm_lightning.diffusion.samplers.lms import LMS
from ddpm_lightning.diffusion.samplers.optimized import OptimizedSpacing
from ddpm_lightning.diffusion.samplers.predictor_corrector import (
    Corrector,
    Langevin,
    LangevinBySigma,
    PredictorCorrector,
)
from ddpm_lightning.diffusion.samplers.reverse_diffusion import ReverseDiffusion
from ddpm_lightning.diffusion.samplers.sampler import Sampler, SingleStep, State
from ddpm_lightning.diffusion.samplers.spacings import (
    DDIMQuadratic,
    KarrasSpacing,
    Levels,
    LogSNRSpacing,
    PowerSpacing,
    QuadraticSpacing,
    Spacing,
    UniformSpacing,
)
from ddpm_lightning.diffusion.samplers.unipc import UniPC
