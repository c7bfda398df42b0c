"""What the plain commands share: a checkpoint's data, and the device to work on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ddpm_lightning.checkpoints import KEY, read_checkpoint
from ddpm_lightning.configurable import build
from ddpm_lightning.data.in_memory import InMemoryData
from ddpm_lightning.errors import InputError


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
        if "root" not in description["init_args"]:
            raise InputError(f"{description['class_path']} takes no root; leave out --data.root")
        description["init_args"]["root"] = place.root
    data = build(description)
    if not isinstance(data, InMemoryData):
        raise InputError(f"{description['class_path']} is no InMemoryData; its samples are needed")
    return data


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
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name} cannot be used: {str(error).splitlines()[0]}") from error
    return torch.device(name)
