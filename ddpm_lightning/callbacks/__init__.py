"""What happens beside training: pictures, metrics, checkpoints."""

from ddpm_lightning.callbacks.fast_kernels import FastKernels
from ddpm_lightning.callbacks.generative_metrics import GenerativeMetrics
from ddpm_lightning.callbacks.hyper_parameters import HyperParameters
from ddpm_lightning.callbacks.likelihood import Likelihood
from ddpm_lightning.callbacks.loss_by_timestep import LossByTimestep
from ddpm_lightning.callbacks.marginals import Marginals
from ddpm_lightning.callbacks.point_metrics import PointMetrics
from ddpm_lightning.callbacks.reconstruction_grid import ReconstructionGrid
from ddpm_lightning.callbacks.run_checkpoint import RunCheckpoint
from ddpm_lightning.callbacks.sample_grid import SampleGrid
from ddpm_lightning.callbacks.step_progress_bar import StepLines, StepProgressBar
from ddpm_lightning.callbacks.training_monitor import TrainingMonitor

__all__ = [
    "FastKernels",
    "GenerativeMetrics",
    "HyperParameters",
    "Likelihood",
    "LossByTimestep",
    "Marginals",
    "PointMetrics",
    "ReconstructionGrid",
    "RunCheckpoint",
    "SampleGrid",
    "StepLines",
    "StepProgressBar",
    "TrainingMonitor",
]
