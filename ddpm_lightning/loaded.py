"""A checkpoint read once: its model, and the data module that it describes."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ddpm_lightning.checkpoint import KEY, read_checkpoint, rebuild
from ddpm_lightning.codecs.measuring import check_latents
from ddpm_lightning.configurable import build, with_download
from ddpm_lightning.data.data_module import DiffusionData
from ddpm_lightning.data.wrapper import set_place
from ddpm_lightning.errors import InputError
from ddpm_lightning.module import DiffusionModule
from ddpm_lightning.trust import check_trust


@dataclass(frozen=True)
class DataPlace:
    """Where a checkpoint's data is now.

    Args:
        root: Folder of the data set, in place of the one it was trained from.
        download: Download the data if it is not there.
        folder: Folder of the latents that encode has written, in place of the one trained on.
    """

    root: str | None = None
    download: bool = False
    folder: str | None = None


@dataclass(frozen=True, eq=False)
class Loaded:
    """A checkpoint's model and data, for the commands.

    Args:
        path: The .ckpt file, for messages and results.
        module: The model, in evaluation mode on its device.
        step: Number of optimizer steps taken.
        description: The data module as plain data; None: it was not Configurable.
        place: Where the data is now.
        trust: Packages whose classes may be imported.
    """

    path: Path
    module: DiffusionModule
    step: int
    description: dict[str, Any] | None
    place: DataPlace
    trust: tuple[str, ...] = ()

    @classmethod
    def read(
        cls,
        path: str | Path,
        place: DataPlace = DataPlace(),
        device: str = "cpu",
        trust: Iterable[str] = (),
    ) -> Loaded:
        """Read a checkpoint and rebuild its model.

        Args:
            path: The file, or the name of a model that comes with the package.
            place: Where its data is now.
            device: cpu, cuda, cuda:1, mps, or auto.
            trust: Packages whose classes may be imported, besides this library and what is
                imported already.

        Raises:
            InputError: It is no checkpoint of this library, it is damaged, its parts may not be
                imported, or the device cannot be used.
        """
        target = device_named(device)  # first, because it fails sooner than reading
        checkpoint, trust = read_checkpoint(path, weights=True), tuple(trust)
        module = rebuild(checkpoint, path, DiffusionModule, trust=trust).to(target).eval()
        return cls(
            Path(path), module, checkpoint["global_step"], checkpoint[KEY]["data"], place, trust
        )

    @property
    def origin(self) -> dict[str, Any]:
        """What pictures say of the checkpoint that drew them."""
        return {"checkpoint": str(self.path), "step": self.step}

    @cached_property
    def data(self) -> DiffusionData:
        """The data module that the model was trained on, rebuilt on first use.

        Raises:
            InputError: As of :func:`described_data`, or its samples are of another shape. Reading
                latents of another codec than the model's raises it, too.
        """
        data = described_data(self.path, self.description, self.place, self.trust)
        if data.shape != self.module.data.shape:
            raise InputError(
                f"the data of {self.path} has samples of shape {list(data.shape)}, its model "
                f"draws {list(self.module.data.shape)}"
            )
        check_latents(self.module.codec, data)
        return data

    @property
    def background(self) -> DiffusionData | None:
        """The data of a model of 2-D points, plotted behind its samples; None if unavailable.

        Raises:
            InputError: ``place`` names a root, and the data is not there.
        """
        if len(self.module.data.shape) != 1:
            return None
        try:
            return self.data
        except InputError:
            if self.place.root is not None:
                raise
            return None


def described_data(
    path: Path,
    description: dict[str, Any] | None,
    place: DataPlace,
    trust: tuple[str, ...] = (),
) -> DiffusionData:
    """Rebuild the data module that a checkpoint describes.

    It downloads nothing unless ``place`` says so: a file that was received does not decide what
    its reader fetches.

    Args:
        path: The checkpoint, for messages.
        description: The data module as plain data; None: it was not Configurable.
        place: Where the data is now.
        trust: Packages whose classes may be imported.

    Raises:
        InputError: The checkpoint describes none, its class may not be imported, or the data
            takes no root or folder.
    """
    description = copy.deepcopy(description)
    if description is None:
        raise InputError(f"{path} does not state its data: its data module was not Configurable")
    check_trust(path, description, trust=trust)
    for name in ("root", "folder"):
        if (value := getattr(place, name)) is not None:
            set_place(description, name, str(value))
    description = with_download(description, place.download)
    try:
        data = build(description)
    except InputError as error:
        raise InputError(f"the data of {path}: {error}") from error
    if not isinstance(data, DiffusionData):
        raise InputError(f"{description['class_path']} is no DiffusionData")
    return data


def fastest_device() -> str:
    """The name of the fastest device of this computer: cuda, mps or cpu."""
    if torch.backends.mps.is_available():
        return "mps"
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_named(name: str) -> torch.device:
    """Return the torch device cpu, cuda, cuda:1 or mps, if usable; auto takes the fastest."""
    if name == "auto":
        name = fastest_device()
    try:
        torch.zeros(1, device=name).item()  # .item(), because the meta device can allocate
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name} cannot be used: {str(error).splitlines()[0]}") from error
    return torch.device(name)
