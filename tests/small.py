"""Small models and runs shared by the tests."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from ddpm_lightning import DiffusionModule
from ddpm_lightning.callbacks import RunCheckpoint
from ddpm_lightning.data import Digits
from ddpm_lightning.networks import UNet

TinyUNet = partial(
    UNet, channels=8, multipliers=[1, 2], blocks=1, attention_levels=[1], groups=4, dropout=0.1
)


def tiny_module(**arguments: Any) -> DiffusionModule:
    arguments = {"shape": [1, 8, 8], "num_classes": 10, "net": TinyUNet} | arguments
    return DiffusionModule(**arguments)


def tiny_data(**arguments: Any) -> Digits:
    return Digits(**{"global_batch_size": 8, "subset": 64} | arguments)


def trainer(folder: Path, max_steps: int, **arguments: Any) -> Trainer:
    """A silent CPU trainer that checkpoints into the folder as the command line does."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "callbacks": [RunCheckpoint(every_n_steps=3)],
        "limit_val_batches": 0,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(default_root_dir=folder, max_steps=max_steps, **defaults | arguments)
