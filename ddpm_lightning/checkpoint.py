"""Reading checkpoints of every format, without executing pickles.

A checkpoint is Lightning's, with an additional entry (KEY) and the model's description as its
hyper-parameters. FORMAT is incremented when older code could not read a change of either;
:func:`upgraded` converts earlier formats to the current one, so every checkpoint ever written
stays readable. Classes are named by the outermost package that exports them; RENAMED maps earlier
paths to current ones.
"""

from __future__ import annotations

import hashlib
import pickle
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddpm_lightning.batch import DataSpec
from ddpm_lightning.configurable import build, configurable_class
from ddpm_lightning.errors import InputError

KEY = "ddpm_lightning"
"""The checkpoint entry of this library, next to Lightning's own."""

FORMAT = 2
"""Version of that entry and of the hyper-parameters.

1: shape, num_classes, data_range, condition_channels, ema_decay, ema_warmup, ema_start and a
number label_dropout are separate hyper-parameters; label dropout used draw 2 of the noise.
"""

_SAMPLERS = "ddpm_lightning.diffusion.samplers"
RENAMED = {
    f"{_SAMPLERS}.spacings.{name}": f"{_SAMPLERS}.{name}Spacing"
    for name in ("Uniform", "Quadratic", "Karras", "LogSNR")
}
"""From class paths of earlier versions to current ones."""


def read_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint of this library, in the current format; tensors and plain data only.

    Args:
        path: The .ckpt file.
        map_location: Device for the tensors, as for torch.load.

    Raises:
        InputError: The file is missing, damaged, holds pickled objects, or was not written by
            this library or by a later version of it.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a checkpoint{_nearby(path / '*')}")
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}{_nearby(path)}")
    try:
        # Memory-mapped, because reading the description alone should not read the weights.
        checkpoint = torch.load(path, map_location=map_location, weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is not a checkpoint of tensors and plain data, and nothing else is loaded"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{path} is damaged or not a checkpoint ({_first_line(error)}); "
            "use an earlier one from the same folder"
        ) from error
    own = checkpoint.get(KEY) if isinstance(checkpoint, dict) else None
    if not isinstance(own, dict):
        raise InputError(
            f"{path} was not written by ddpm_lightning: it does not describe its model"
        )
    if own.get("format", 0) > FORMAT:
        raise InputError(
            f"{path} has format {own['format']}, this version reads up to {FORMAT}; "
            "update ddpm_lightning"
        )
    missing = [key for key in ("format", "class_path", "data") if key not in own]
    missing += [key for key in ("state_dict", "global_step") if key not in checkpoint]
    if not isinstance(checkpoint.get("hyper_parameters"), dict):
        missing.append("hyper_parameters")
    if missing or "net" not in checkpoint["hyper_parameters"]:
        raise InputError(
            f"{path} is an incomplete checkpoint: it lacks {', '.join(missing or ['net'])}; use "
            "an earlier one from the same folder"
        )
    return upgraded(checkpoint)


def upgraded(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Convert a checkpoint of an earlier format to the current one, with the same tensors."""
    own = dict(checkpoint[KEY])
    stated = dict(checkpoint["hyper_parameters"])
    if own["format"] == 1:
        data = {
            "shape": stated.pop("shape"),
            "data_range": stated.pop("data_range", (-1.0, 1.0)),
            "num_classes": stated.pop("num_classes", None),
            "image_channels": stated.pop("condition_channels", 0),
            "token_width": 0,
        }
        defaults = {"decay": 0.9999, "warmup": True, "start": 0}
        average = {name: stated.pop(f"ema_{name}", value) for name, value in defaults.items()}
        dropout = "ddpm_lightning.diffusion.LabelDropout"
        share = {"share": stated.get("label_dropout", 0.1)}
        stated |= {
            "data": data,
            "ema": {"class_path": "ddpm_lightning.EMA", "init_args": average},
            "label_dropout": {"class_path": dropout, "init_args": share},
        }
    own["format"] = FORMAT
    return {**checkpoint, KEY: _renamed(own), "hyper_parameters": _renamed(stated)}


def _renamed(value: Any) -> Any:
    """Replace earlier class paths in a description, at any depth, by current ones."""
    if isinstance(value, list):
        return [_renamed(item) for item in value]
    if not isinstance(value, dict):
        return value
    found = {key: _renamed(item) for key, item in value.items()}
    if isinstance(path := found.get("class_path"), str):
        found["class_path"] = current_path(path)
    return found


def current_path(path: str) -> str:
    """Return a class's current path, by the outermost package that exports it.

    Earlier versions named the files inside the packages, which have moved since.
    """
    *packages, name = RENAMED.get(path, path).split(".")
    if packages[:1] != ["ddpm_lightning"]:
        return path
    for depth in range(1, len(packages) + 1):
        package = ".".join(packages[:depth])
        try:
            module = import_module(package)
        except ModuleNotFoundError:
            break
        if hasattr(module, name):
            return f"{package}.{name}"
    return path  # configurable_class raises the InputError, if the class is needed


def rebuild(
    module_class: type, hyper_parameters: dict[str, Any], overrides: dict[str, Any]
) -> Any:
    """Build the module that hyper-parameters describe; overrides replace some of them."""
    arguments = dict(hyper_parameters)
    net = arguments.pop("net")
    stated = {name: build(value) for name, value in net["init_args"].items()}
    factory = partial(configurable_class(net["class_path"]), **stated)
    arguments = {name: build(value) for name, value in arguments.items()}
    try:
        arguments["data"] = DataSpec(**arguments["data"])
        return module_class(**{"net": factory} | arguments | overrides)
    except TypeError as error:
        raise InputError(
            f"{net['class_path']} or {module_class.__name__} does not fit its description: {error}"
        ) from error


def weights_digest(net: nn.Module) -> str:
    """The sha256 of all names and values of a network's state, independent of the device."""
    digest = hashlib.sha256()
    for name, tensor in net.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _nearby(path: Path) -> str:
    """List the checkpoints next to a path, for a message."""
    folder = path.parent
    found = [*sorted(folder.glob("*.ckpt")), *sorted(folder.glob("checkpoints/*.ckpt"))]
    if not found:
        return f"; the folder {folder} holds none"
    return "; the folder holds " + ", ".join(str(file.relative_to(folder)) for file in found[:8])


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
