"""Folders of diffusers: JSON, and tensors as safetensors or as a pickle of nothing else."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from ddpm_lightning.errors import InputError
from ddpm_lightning.files import atomic_write, write_json
from ddpm_lightning.interchange.counterpart import Weights

WEIGHTS = "diffusion_pytorch_model"
VERSION = "0.30.0"
"""The version of diffusers whose form is written."""

OWN = "ddpm_lightning.json"
"""Our own file beside theirs: what theirs have no key for."""


@dataclass(frozen=True, eq=False)
class DiffusersFolder:
    """A network and its scheduler as diffusers stores them.

    Args:
        network: The network's configuration, with its _class_name.
        weights: Its tensors.
        scheduler: The scheduler's configuration, with its _class_name; None: there is none.
        own: What diffusers has no key for.
    """

    network: dict[str, Any]
    weights: Weights
    scheduler: dict[str, Any] | None
    own: dict[str, Any]

    def write(self, folder: Path, part: str, pipeline: str | None) -> None:
        """Write the folder, without model_index.json where no pipeline can sample from it."""
        scheduler: Any = self.scheduler
        if pipeline is not None:
            index = {
                "_class_name": pipeline,
                "_diffusers_version": VERSION,
                "scheduler": ["diffusers", scheduler["_class_name"]],
                part: ["diffusers", self.network["_class_name"]],
            }
            write_json(folder / "model_index.json", index)
        write_json(folder / "scheduler" / "scheduler_config.json", _noted(scheduler))
        write_json(folder / part / "config.json", _noted(self.network))
        # A copy of each, because tensors of one storage are refused.
        tensors = {name: value.contiguous().cpu().clone() for name, value in self.weights.items()}
        with atomic_write(folder / part / f"{WEIGHTS}.safetensors") as partial:
            # Not save_file, because its files are nobody else's to read.
            partial.write_bytes(save(tensors, metadata={"format": "pt"}))
        write_json(folder / OWN, self.own)

    @classmethod
    def read(cls, folder: Path, parts: tuple[str, ...]) -> DiffusersFolder:
        """Read a pipeline's folder, flat or with sub-folders, or that of a network alone.

        Args:
            folder: The folder.
            parts: Names that a network may have in a pipeline.

        Raises:
            InputError: It is no such folder, or a file of it is damaged or holds pickled objects.
        """
        _check_parts(folder / "model_index.json", parts)
        places = [folder / part for part in parts if (folder / part / "config.json").is_file()]
        place = (places or [folder])[0]
        if not (place / "config.json").is_file():
            others = ", ".join(f"{part}/config.json" for part in parts)
            raise InputError(
                f"{folder} has no config.json, nor {others}: it is no folder of a diffusers "
                "network or pipeline"
            )
        beside = [place.parent / "scheduler", folder / "scheduler", folder, place]
        schedulers = [one / "scheduler_config.json" for one in beside]
        found = next((path for path in schedulers if path.is_file()), None)
        scheduler = None if found is None else read_json(found)
        own = read_json(folder / OWN) if (folder / OWN).is_file() else {}
        return cls(read_json(place / "config.json"), read_weights(place), scheduler, own)


def _check_parts(index: Path, parts: tuple[str, ...]) -> None:
    """Raise InputError if a pipeline has more parts than a network of pixels and a scheduler."""
    if not index.is_file():
        return
    named = {key for key, value in read_json(index).items() if isinstance(value, list)}
    if others := sorted(named - {"scheduler", *parts}):
        raise InputError(
            f"{index} names {', '.join(others)} beside the network; only networks that make "
            "pixels from noise are converted"
        )


def _noted(config: dict[str, Any]) -> dict[str, Any]:
    return {"_class_name": config["_class_name"], "_diffusers_version": VERSION, **config}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raise InputError if the file holds something else."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds a {type(found).__name__}, no JSON object")
    return found


def read_weights(folder: Path) -> Weights:
    """Read the tensors of a network's folder as float32; nothing else is unpickled.

    Raises InputError: There are none, or the file is damaged or holds pickled objects.
    """
    # Those of full precision first, whatever form they have.
    names = [f"{WEIGHTS}{kind}{end}" for kind in ("", ".fp16") for end in (".safetensors", ".bin")]
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        if shards := sorted(folder.glob(f"{WEIGHTS}*.index.json")):
            raise InputError(
                f"{shards[0]}: weights in several files are not read; save them in one"
            )
        raise InputError(f"{folder} holds no {WEIGHTS}.safetensors or .bin")
    try:
        if path.suffix == ".safetensors":
            found = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(f"{path} holds more than tensors, and nothing else is loaded") from error
    except Exception as error:  # what bytes can make of either reader has no end
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} is damaged: {reason}") from error
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in found.items()
    ):
        raise InputError(f"{path} holds more than tensors by name")
    return {name: value.float() for name, value in found.items()}
