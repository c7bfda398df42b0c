"""The images that a conditioned model is given: what sample --condition does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ddpm_lightning.data.conditioned import Task, condition_source
from ddpm_lightning.errors import InputError
from ddpm_lightning.module import DiffusionModule
from ddpm_lightning.pictures.image_folder import SUFFIXES
from ddpm_lightning.trained import DataPlace, data_of


@dataclass(frozen=True, eq=False)
class Conditions:
    """Condition images for samples 0…n − 1, repeated along the index.

    Args:
        images: float32 [M, K, H, W] as the network sees them.
        task: What made them.
        shape: [C, H, W] of the data.
        truth: [M, C, H, W] images that they were made from, or None.
        labels: int64 [M] classes of these, or None.
    """

    images: Tensor
    task: Task
    shape: tuple[int, ...]
    truth: Tensor | None = None
    labels: Tensor | None = None

    def bands(self, n: int) -> dict[str, Tensor]:
        """What a grid of n samples shows above each and, if it is known, below."""
        rows = torch.arange(n) % len(self.images)
        bands = {"above": self.task.shown(self.images, self.shape)[rows]}
        return bands if self.truth is None else bands | {"below": self.truth[rows]}

    def agreement(self, x: Tensor) -> str:
        """Say how well samples [n, C, H, W] agree with their conditions and the truth.

        Empty where the truth is not known, for then the task may have had other chances.
        """
        if self.truth is None:
            return ""
        rows = torch.arange(len(x)) % len(self.images)
        images, truth = self.images[rows], self.truth[rows]
        shown = self.task.shown(images, self.shape)
        error = 127.5 * float((self.task(x, rows) - images).square().mean().sqrt())
        return (
            f"against the {len(self.images)} true images: PSNR {psnr(x, truth):.2f} dB (of the "
            f"conditions as shown {psnr(shown, truth):.2f} dB); conditions made from the samples "
            f"are {error:.2f} of 255 off their own (root mean square)"
        )


def conditions_for(
    module: DiffusionModule, ckpt: Path, place: DataPlace, given: list[Path] | None, n: int
) -> Conditions | None:
    """Find the images for n samples; None for a model that takes none.

    Args:
        module: The model.
        ckpt: Its checkpoint, which states data and task.
        place: Where the data is now.
        given: Image files and folders of such; None takes the first of the test split.
        n: Number of samples.

    Raises:
        InputError: There are no images, they do not suit, or the model takes none.
    """
    if not module.condition_channels:
        if given is not None:
            raise InputError(f"{ckpt} makes images out of noise alone; leave out --condition")
        return None
    data = condition_source(data_of(ckpt, place), module.condition_channels)
    assert data is not None
    task, shape = data.task, module.shape
    if given is None:
        truth, labels = data.finished("test", n)
        return Conditions(data.conditions("test", n), task, shape, truth, labels)
    files = [file for path in given for file in _files(path)]
    return Conditions(torch.stack([task.read(file, shape) for file in files]), task, shape)


def psnr(x: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio 10·log10(2² / MSE) of images in [−1, 1], averaged over them."""
    errors = (x - truth).square().flatten(1).mean(1)
    return float((10 * torch.log10(4 / errors.clamp(min=1e-10))).mean())


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        raise InputError(f"{path} holds no PNG or JPEG to take as a condition")
    return files
