"""What the plain commands share: a checkpoint's data, its variance, the device to work on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ddpm_lightning.checkpoints import KEY, read_checkpoint, weights_digest
from ddpm_lightning.configurable import build
from ddpm_lightning.data.in_memory import InMemoryData
from ddpm_lightning.diffusion.samplers import DDPM, Sampler
from ddpm_lightning.diffusion.variances import InsteadOfLearned, Variance
from ddpm_lightning.errors import InputError
from ddpm_lightning.module import DiffusionModule


@dataclass(frozen=True)
class DataPlace:
    """Where the data of a checkpoint lies now.

    Args:
        root: Folder of the data set, in place of the one it was trained from.
    """

    root: str | None = None


def data_of(ckpt: Path, place: DataPlace) -> InMemoryData:
    """Rebuild the data module that a checkpoint was trained on.

    Raises:
        InputError: The checkpoint states none, or the data takes no root.
    """
    description = read_checkpoint(ckpt)[KEY]["data"]
    if description is None:
        raise InputError(f"{ckpt} does not state its data: its data module was not Configurable")
    if place.root is not None:
        # A data module around another has its folder in there.
        files = description["init_args"].get("data", description)
        if "root" not in files["init_args"]:
            raise InputError(f"{files['class_path']} takes no root; leave out --data.root")
        files["init_args"]["root"] = place.root
    data = build(description)
    if not isinstance(data, InMemoryData):
        raise InputError(f"{description['class_path']} is no InMemoryData; its samples are needed")
    return data


def points_behind(ckpt: Path, place: DataPlace, shape: tuple[int, ...]) -> InMemoryData | None:
    """Find the data that samples of a checkpoint are drawn in front of.

    Args:
        ckpt: The checkpoint.
        place: Where the data lies now.
        shape: Of one sample.

    Returns:
        None for images, which need none, and where the data cannot be found.

    Raises:
        InputError: A place is given, and the data is not there.
    """
    if len(shape) != 1:
        return None
    try:
        return data_of(ckpt, place)
    except InputError:
        if place.root is not None:
            raise
        return None


def device_named(name: str) -> torch.device:
    """Find a device: cpu, cuda, cuda:1, mps; auto takes the fastest there is.

    Raises:
        InputError: It cannot be used here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        if torch.backends.mps.is_available():
            name = "mps"
    try:
        torch.zeros(1, device=name).item()  # which meta, that holds no values, refuses
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name} cannot be used: {str(error).splitlines()[0]}") from error
    return torch.device(name)


def set_variance(
    module: DiffusionModule, variance: Variance, sampler: Sampler | None, ckpt: Path, ema: bool
) -> None:
    """Let a model sample with another variance of the reverse steps than its own.

    Args:
        module: The model.
        variance: The variance.
        sampler: The sampler that will use it; None: DDPM.
        ckpt: Where the model comes from.
        ema: Whether its averaged weights will sample.

    Raises:
        InputError: The sampler has no use for it, or it was measured or learned with other
            weights.
    """
    if not isinstance(sampler or DDPM(), DDPM):
        raise InputError(
            f"{type(sampler).__name__} has no use for a variance, only DDPM has; leave out "
            "--variance or use --sampler DDPM"
        )
    measured_with = getattr(variance, "network", None)
    if measured_with not in (None, weights_digest(module.denoiser(ema).net)):
        weights = "ema" if ema else "raw"
        raise InputError(
            f"the variance table was measured with other weights than the {weights} ones of "
            f"{ckpt}; estimate it for these: python -m ddpm_lightning analytic_variance "
            f"--ckpt {ckpt} --weights {weights}"
        )
    trained, channels = module.variance, module.shape[0]
    if variance.extra_channels(channels) and type(variance) is not type(trained):
        raise InputError(
            f"{type(variance).__name__} is learned, but the checkpoint was trained with "
            f"{type(trained).__name__}; use FixedSmall, FixedLarge or AnalyticVariance"
        )
    if trained.extra_channels(channels) and not variance.extra_channels(channels):
        variance = InsteadOfLearned(variance, trained)
    module.variance = variance
