"""What a run gives its loggers beside numbers: pictures, hyper-parameters, checkpoints."""

from ddpm_lightning.trackers.registry import TRACKERS, in_run_folder, remember_runs
from ddpm_lightning.trackers.tracker import Tracker
from ddpm_lightning.trackers.trainer import show, show_samples, trackers_of

__all__ = [
    "TRACKERS",
    "Tracker",
    "in_run_folder",
    "remember_runs",
    "show",
    "show_samples",
    "trackers_of",
]
