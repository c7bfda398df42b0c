"""A checkpoint, read once: its model, what it says of itself, and its data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ddpm_lightning.checkpoint import KEY, read_checkpoint
from ddpm_lightning.configurable import build
from ddpm_lightning.data.data_module import DiffusionData
from ddpm_lightning.errors import InputError
from ddpm_lightning.module import DiffusionModule


@dataclass(frozen=True)
class DataPlace:
    """Where the data of a checkpoint lies now.

    Args:
        root: Folder of the data set, in place of the one it was trained from.
    """

    root: str | None = None


@dataclass(frozen=True, eq=False)
class Loaded:
    """What a command needs of a checkpoint.

    Args:
        path: The file, for messages and results.
        module: The model, in evaluation mode on its device.
        step: Optimizer steps behind the weights.
        description: How the data was made, as plain data; None: it was not Configurable.
        place: Where the data lies now.
    """

    path: Path
    module: DiffusionModule
    step: int
    description: dict[str, Any] | None
    place: DataPlace

    @classmethod
    def read(cls, path: str | Path, place: DataPlace = DataPlace(), device: str = "cpu") -> Loaded:
        """Read a checkpoint.

        Args:
            path: The .ckpt file.
            place: Where its data lies now.
            device: cpu, cuda, cuda:1, mps, or auto.

        Raises:
            InputError: It is no checkpoint of this library, or the device cannot be used.
        """
        on = device_named(device)
        checkpoint = read_checkpoint(path)
        module = DiffusionModule.from_checkpoint(checkpoint, path).to(on).eval()
        step = int(checkpoint["global_step"])
        return cls(Path(path), module, step, checkpoint[KEY]["data"], place)

    @cached_property
    def data(self) -> DiffusionData:
        """The data module that the checkpoint was trained on, rebuilt.

        Raises:
            InputError: The checkpoint states none, or the data takes no root.
        """
        if self.description is None:
            raise InputError(
                f"{self.path} does not state its data: its data module was not Configurable"
            )
        if self.place.root is not None:
            # A data module around another has its folder in there.
            files = self.description["init_args"].get("data", self.description)
            if "root" not in files["init_args"]:
                raise InputError(f"{files['class_path']} takes no root; leave out --data.root")
            files["init_args"]["root"] = self.place.root
        data = build(self.description)
        if not isinstance(data, DiffusionData):
            raise InputError(f"{self.description['class_path']} is no DiffusionData")
        return data

    @property
    def background(self) -> DiffusionData | None:
        """The data that points in the plane are drawn in front of.

        None for images, which need none, and where the data cannot be found.

        Raises:
            InputError: A place is given, and the data is not there.
        """
        if len(self.module.data.shape) != 1:
            return None
        try:
            return self.data
        except InputError:
            if self.place.root is not None:
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
