"""Small models, runs and callbacks shared by the tests."""

from __future__ import annotations

import math
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image, ImageSequence
from scipy.linalg import sqrtm
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from ddpm_lightning import EMA, DiffusionModule
from ddpm_lightning.batch import Condition, DataSpec
from ddpm_lightning.callbacks import RunCheckpoint
from ddpm_lightning.data import Digits
from ddpm_lightning.data.data_module import DiffusionData
from ddpm_lightning.metrics import FeatureExtractor
from ddpm_lightning.networks import UNet
from ddpm_lightning.run_folder import last_checkpoint

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


def fit(
    folder: Path,
    steps: int,
    *callbacks: Callback,
    resume: bool | Path = False,
    data: Any = None,
    run: dict[str, Any] | None = None,
    **arguments: Any,
) -> DiffusionModule:
    """Train a tiny module up to a step, saving every third as the command line does.

    Args:
        folder: The run folder.
        steps: Optimizer steps in all.
        callbacks: What runs beside training, before the save.
        resume: The checkpoint to go on from; True: the folder's last.
        data: In place of the tiny data; a data module gives the module its specification.
        run: Arguments of the trainer.
        arguments: Of the module.
    """
    data = data or tiny_data()
    spec = {"data": data.spec} if isinstance(data, DiffusionData) else {}
    torch.manual_seed(0)
    module = tiny_module(**{"ema": EMA(0.9)} | spec | arguments)
    callbacks_and_save = {"callbacks": [*callbacks, RunCheckpoint(every_n_steps=3)]}
    one = trainer(folder, steps, **callbacks_and_save | (run or {}))
    path = last_checkpoint(folder) if resume is True else resume or None
    one.fit(module, data, ckpt_path=path, weights_only=True)
    return module


class Rates(Callback):
    """Keeps the learning rate of each optimizer step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.seen.append(optimizer.param_groups[0]["lr"])


class Stop(Callback):
    """Ends a run like a power cut: no callback hears of what comes after."""

    def __init__(self, hook: str, step: int) -> None:
        def stop(trainer, *_):
            if trainer.global_step == step and not trainer.sanity_checking:
                raise RuntimeError("power cut")

        setattr(self, hook, stop)


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same_weights(a: nn.Module, b: nn.Module) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    assert not [name for name in ours if not torch.equal(ours[name], theirs[name])]


def randomized(net: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter drawn anew, so that no layer is zero and no norm is the identity."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in net.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
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


def logged_fit(folder: Path, max_steps: int, *callbacks: Callback, **arguments: Any) -> Any:
    """Train a tiny module on the tiny data, with these callbacks alone, logging to TensorBoard."""
    torch.manual_seed(0)
    module = tiny_module()
    logging_trainer(folder, max_steps, list(callbacks), **arguments).fit(module, tiny_data())
    return module


def conditional_fit(folder: Path, callback: Callback, data: Any = None, **arguments: Any) -> Any:
    """The same for a step of a conditional module to which labels and guidance matter."""
    module = lively(tiny_module(conditional=True, **arguments))
    logging_trainer(folder, 1, [callback]).fit(module, data or tiny_data())
    return module


def frames_in(gif: Path | BytesIO) -> int:
    return len(list(ImageSequence.Iterator(Image.open(gif))))


def events(folder: Path) -> EventAccumulator:
    """What a run has logged to TensorBoard."""
    accumulator = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    return accumulator.Reload()


def ended(capsys: Any, code: int, *words: str) -> Any:
    """Run the command line in this process up to its exit with a code; give what it printed."""
    from ddpm_lightning.cli import main

    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(list(words))
    assert caught.value.code == code
    return capsys.readouterr()


def fail(capsys: Any, *words: str) -> str:
    """Run, expect exit code 2, and return the one line on standard error."""
    error = ended(capsys, 2, *words).err
    (line,) = [x for x in error.splitlines() if x.startswith("error: ")]
    return line


def shown(capsys: Any, *words: str) -> str:
    """Run, expect exit code 0 before anything is done, and return standard output."""
    return ended(capsys, 0, *words).out


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """The distance of features [n, d], by scipy's matrix root."""
    root = sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    traces = np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + traces)


class Coarse(FeatureExtractor):
    """Four by four brightnesses of an image: a quick extractor for colour."""

    name, alias, dim, channels = "fd_coarse", "fd", 16, (1, 3)

    def load(self):
        return nn.AdaptiveAvgPool2d(4), "0" * 64

    def features(self, images):
        return self.network(images.float() / 255).mean(dim=1).flatten(1)
