"""Small models and runs shared by the tests."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from ddpm_lightning import DiffusionModule
from ddpm_lightning.batch import Condition, DataSpec
from ddpm_lightning.callbacks import RunCheckpoint
from ddpm_lightning.data import Digits
from ddpm_lightning.networks import UNet

TinyUNet = partial(
    UNet, channels=8, multipliers=[1, 2], blocks=1, attention_levels=[1], groups=4, dropout=0.1
)


def tiny_module(**arguments: Any) -> DiffusionModule:
    arguments = {"data": image_spec(num_classes=10), "net": TinyUNet} | arguments
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


def randomized(net: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter drawn anew, so that no layer is zero and no norm is the identity."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in net.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.data = noise / math.sqrt(parameter[0].numel())
        else:
            parameter.data = 0.3 * noise + (1.0 if name.endswith("weight") else 0.0)
    return net


def inputs(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator, dtype=dtype)
    return x, torch.linspace(0, 999, shape[0], dtype=dtype)


def image_spec(channels: int = 1, size: int = 8, **facts: Any) -> DataSpec:
    return DataSpec((channels, size, size), **facts)


def labels(*values: int) -> Condition:
    return Condition(label=torch.tensor(values))


def lively(module: DiffusionModule) -> DiffusionModule:
    """Weights and their average drawn anew, and kept: labels and guidance matter from step 0."""
    torch.manual_seed(0)
    for parameter in [*module.net.parameters(), *module.ema.net.parameters()]:
        parameter.data.normal_(std=0.15)
    module.optimizer = partial(torch.optim.SGD, lr=0.0)
    return module


def logging_trainer(folder: Path, max_steps: int, callbacks: list, **arguments: Any) -> Trainer:
    """The same, with these callbacks alone, logging to TensorBoard."""
    logger = TensorBoardLogger(folder, name="", version="")
    return trainer(folder, max_steps, callbacks=callbacks, logger=logger, **arguments)


def events(folder: Path) -> EventAccumulator:
    """What a run has logged to TensorBoard."""
    accumulator = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    return accumulator.Reload()
