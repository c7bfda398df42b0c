"""Reading checkpoints of every format, without executing pickles.

A checkpoint is Lightning's, with an additional entry (KEY) and the model's description as its
hyper-parameters. FORMAT is incremented when older code could not read a change of either, or when
a file gives a guarantee that earlier ones do not; :func:`upgraded` converts earlier formats to the
current one, so every checkpoint ever written stays readable. Classes are named by the outermost
package that exports them; RENAMED maps earlier paths to current ones.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, ZipFile

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from ddpm_lightning.batch import DataSpec
from ddpm_lightning.checkpoint_structure import check_structure, check_weights
from ddpm_lightning.configurable import build, check_arguments, configurable_class, with_download
from ddpm_lightning.errors import InputError
from ddpm_lightning.integrity import bytes_of, check_plain, check_tensors, walk
from ddpm_lightning.shipped_models import shipped_models
from ddpm_lightning.trust import check_trust

KEY = "ddpm_lightning"
"""The checkpoint entry of this library, next to Lightning's own."""

DIGESTS = "digests"
"""The entry in that entry which holds the digests of everything else, in files of this library."""

NET, AVERAGE = "net.", "ema.net."
"""Beginnings of the names of raw and averaged weights in a module's state."""

FORMAT = 3
"""Version of that entry and of the hyper-parameters.

1: shape, num_classes, data_range, condition_channels, ema_decay, ema_warmup, ema_start and a
number label_dropout are separate hyper-parameters; label dropout used draw 2 of the noise.
2: no digests; the checksums of the file's parts are compared in their place.
"""

_SAMPLERS = "ddpm_lightning.diffusion.samplers"
RENAMED = {
    f"{_SAMPLERS}.spacings.{name}": f"{_SAMPLERS}.{name}Spacing"
    for name in ("Uniform", "Quadratic", "Karras", "LogSNR")
}
"""From class paths of earlier versions to current ones."""


class Damaged(InputError):
    """A checkpoint that is not what was written."""


def read_checkpoint(
    path: str | Path, map_location: Any = "cpu", weights: bool = False, mmap: bool = True
) -> dict[str, Any]:
    """Read a checkpoint of this library, in the current format; tensors and plain data only.

    Everything but the tensors' values is compared with its digest, and the structure with what a
    checkpoint must look like. Nothing that it names is imported, but modules of this library.

    Args:
        path: The .ckpt file, the .safetensors file that export has made of one, or the name of a
            model that comes with the package.
        map_location: Device for the tensors, as for torch.load.
        weights: Compare the tensors, too; whoever uses them does so once.
        mmap: Map tensors into memory in place of reading them.

    Raises:
        InputError: The file is missing, damaged, holds pickled objects, or was not written by
            this library or by a later version of it. For a damaged one the newest sound
            checkpoint of the folder is named.
    """
    path = Path(path)
    if not path.is_file() and not _checkpoints_in(path):  # a run folder is named in the error
        path = shipped_models().get(str(path), path)
    if path.is_dir():
        if any((path / name).is_file() for name in ("model_index.json", "config.json")):
            raise InputError(
                f"{path} is a folder of diffusers; make a checkpoint of it: python -m "
                f"ddpm_lightning convert --from {path} --out {path.name}.ckpt"
            )
        raise InputError(f"{path} is a folder, not a checkpoint{_nearby(path / '*')}")
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}{_nearby(path)}")
    try:
        return _read(path, map_location, weights, mmap)
    except Damaged as error:
        raise Damaged(f"{path} {error}; {_sound_one(path)}") from error


def _read(path: Path, map_location: Any, weights: bool, mmap: bool) -> dict[str, Any]:
    """Read and check one file; Damaged says what is wrong with it, without naming it."""
    tensors_only = path.suffix == ".safetensors"
    load = _load_safetensors if tensors_only else _load
    checkpoint = load(path, map_location, mmap)
    own = checkpoint.get(KEY) if isinstance(checkpoint, dict) else None
    if not isinstance(own, dict):
        raise InputError(
            f"{path} was not written by ddpm_lightning: it does not describe its model"
        )
    number = own.get("format", 0)
    if type(number) is int and number > FORMAT:
        raise InputError(
            f"{path} has format {number}, this version reads up to {FORMAT}; update ddpm_lightning"
        )
    missing = [key for key in ("format", "class_path", "data") if key not in own]
    missing += [key for key in ("state_dict", "global_step") if key not in checkpoint]
    stated = checkpoint.get("hyper_parameters")
    if not isinstance(stated, dict):
        missing.append("hyper_parameters")
    elif not missing:
        needed = ("net", "shape") if type(number) is int and number == 1 else ("net",)
        missing = [key for key in needed if key not in stated]
    if missing:
        raise Damaged(f"is an incomplete checkpoint: it lacks {', '.join(missing)}")
    if type(number) is not int or number < 1:
        raise Damaged(f"is damaged: its format is {number!r:.40}")
    digests = own.get(DIGESTS)
    if tensors_only and digests is None:
        raise Damaged("is damaged: it holds no digests")
    checkpoint = {**checkpoint, KEY: {k: value for k, value in own.items() if k != DIGESTS}}
    try:
        check_content(checkpoint, digests, path if weights else None)
        checkpoint = upgraded(checkpoint)
        check_structure(checkpoint)
    except InputError as error:
        raise Damaged(f"is damaged: {error}") from error
    return checkpoint


def check_content(checkpoint: dict[str, Any], digests: Any, path: Path | None) -> None:
    """Raise InputError unless a checkpoint is what was written.

    Args:
        checkpoint: Its content, without the digests.
        digests: These; None: a file of format 1 or 2, or of another CheckpointIO than this
            library's, whose parts have checksums.
        path: The file, if the tensors are to be compared, too.
    """
    if isinstance(digests, dict):
        check_plain(checkpoint, digests)
        if path is not None:
            check_tensors(checkpoint, digests)
        return
    if digests is not None:
        raise InputError("its digests are none")
    for _ in walk(checkpoint):
        pass  # because its bounds are checked on the way
    if path is not None:
        with ZipFile(path) as archive:
            if part := archive.testzip():
                raise InputError(f"the checksum of its part {part} is another")


def _load(path: Path, map_location: Any, mmap: bool) -> Any:
    try:
        with ZipFile(path) as archive:
            names = Counter(part.filename for part in archive.infolist())
            if max(names.values(), default=0) > 1:
                raise Damaged("is damaged: parts of it have the same name")
            if any(part.compress_type != ZIP_STORED for part in archive.infolist()):
                raise Damaged("is damaged: parts of it are compressed")
            for name in names:
                if name.endswith("/data.pkl"):
                    archive.read(name)  # compares its checksum
        return torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except InputError:
        raise
    except PermissionError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is not a checkpoint of tensors and plain data, and nothing else is loaded"
        ) from error
    except Exception as error:  # what bytes can make of a zip file and of torch.load has no end
        raise Damaged(f"is damaged or not a checkpoint ({_first_line(error)})") from error


def _load_safetensors(path: Path, map_location: Any, mmap: bool) -> Any:
    """Put a checkpoint together from the tensors of a file and the description beside them."""
    try:
        with safe_open(path, framework="pt") as file:
            described = (file.metadata() or {}).get(KEY)
            state = {name: file.get_tensor(name) for name in sorted(file.keys())}
        if described is None:
            return None
        if not any(name.startswith(AVERAGE) for name in state):  # it is that of the raw weights
            nets = [name for name in state if name.startswith(NET)]
            state |= {f"{AVERAGE}{name.removeprefix(NET)}": state[name] for name in nets}
        if isinstance(map_location, str | torch.device):
            state = {name: value.to(map_location) for name, value in state.items()}
        return {**json.loads(described), "state_dict": dict(sorted(state.items()))}
    except PermissionError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # what bytes can make of safetensors and of JSON has no end
        raise Damaged(f"is damaged or not a checkpoint ({_first_line(error)})") from error


def _sound_one(path: Path) -> str:
    """Name the newest checkpoint of a damaged one's folder that is whole, for a message."""
    seen = {path.stat().st_ino}
    others = [file for file in path.parent.glob("*.ckpt") if file.is_file()]
    for other in sorted(others, key=lambda file: -file.stat().st_mtime):
        if other.stat().st_ino in seen:
            continue  # a second name of the same file
        seen.add(other.stat().st_ino)
        try:
            step = _read(other, "cpu", True, True)["global_step"]
        except InputError:
            continue
        return f"{other} is sound, step {step}: name it in place of this one"
    return f"the folder {path.parent} holds no sound one"


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
    checkpoint: dict[str, Any],
    path: str | Path,
    base: type,
    overrides: dict[str, Any] | None = None,
    trust: Iterable[str] = (),
) -> Any:
    """Build the module that a checkpoint describes, and load its weights.

    Before that, the module is built without memory, on torch's meta device, and its shapes are
    compared with those of the weights.

    Args:
        checkpoint: The content, from :func:`read_checkpoint`.
        path: The file, for messages.
        base: The class that the module must be of.
        overrides: Arguments of the module that replace those described.
        trust: Packages whose classes may be imported, besides this library.

    Raises:
        InputError: A package is not trusted, a class is missing, or the description does not fit
            its classes or the weights.
    """
    module_class, state = module_class_of(checkpoint, path, base, trust), checkpoint["state_dict"]
    try:
        check_weights(state, _module(module_class, checkpoint, overrides or {}, sketch=True))
        module = _module(module_class, checkpoint, overrides or {})
        module.load_state_dict(state, strict=module.strict_loading)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return module


def check_description(
    checkpoint: dict[str, Any], path: str | Path, base: type, trust: Iterable[str] = ()
) -> None:
    """Raise InputError unless :func:`rebuild` would succeed, without the cost of a network."""
    module_class = module_class_of(checkpoint, path, base, trust)
    try:
        sketch = _module(module_class, checkpoint, {}, sketch=True)
        check_weights(checkpoint["state_dict"], sketch)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def module_class_of(
    checkpoint: dict[str, Any], path: str | Path, base: type, trust: Iterable[str] = ()
) -> type:
    """Import the class of a checkpoint's module, once all packages of its model are trusted."""
    own = checkpoint[KEY]
    described = [own["class_path"], checkpoint["hyper_parameters"]]
    check_trust(path, described, own["data"], trust)
    module_class = configurable_class(own["class_path"])
    if not issubclass(module_class, base):
        raise InputError(
            f"{path} holds a model of the class {module_class.__name__}, not {base.__name__}"
        )
    return module_class


def _module(
    module_class: type,
    checkpoint: dict[str, Any],
    overrides: dict[str, Any],
    sketch: bool = False,
) -> Any:
    """Build the described module; a sketch has a network without memory."""
    arguments = dict(checkpoint["hyper_parameters"])
    net, data = arguments.pop("net"), arguments.pop("data")
    net_class = configurable_class(net["class_path"])
    check_arguments(net_class, net["init_args"], "net.")
    check_arguments(module_class, arguments)
    factory: Any = partial(net_class, **{k: build(part) for k, part in net["init_args"].items()})
    codec, tensors = arguments.pop("codec", None), len(checkpoint["state_dict"])
    # Because a file that was received does not decide what its reader fetches.
    arguments = {name: build(with_download(value, False)) for name, value in arguments.items()}
    arguments = {"net": factory, "data": DataSpec(**data)} | arguments | overrides
    if sketch:
        arguments["net"] = sketching(arguments["net"], tensors)
    if codec is not None:
        build_codec: Any = sketching(build, tensors) if sketch else build
        arguments = {"codec": build_codec(codec)} | arguments
    try:
        return module_class(**arguments)
    except InputError:
        raise
    except Exception as error:  # whatever classes make of arguments that they do not expect
        raise InputError(
            f"{net['class_path']} or {module_class.__name__} does not fit its description: "
            f"{_first_line(error)}"
        ) from error


def sketching(factory: Callable[..., nn.Module], tensors: int) -> Callable[..., nn.Module]:
    """Make a factory of networks build without memory, and not many more layers than weights."""

    def sketch(*arguments: Any) -> nn.Module:
        with _at_most(40 * tensors + 1000):
            try:
                with torch.device("meta"):
                    return factory(*arguments)
            except InputError:
                raise
            except Exception:  # a network that computes with its tensors while it is built
                return factory(*arguments)

    return sketch


@contextmanager
def _at_most(most: int) -> Iterator[None]:
    """Raise InputError when more layers and parameters than these are made."""
    count = 0

    def one_more(*_: Any) -> None:
        nonlocal count
        count += 1
        if count > most:
            raise InputError("its description asks for many more layers than it has weights for")

    with ExitStack() as stack:
        for register in (
            torch_module.register_module_parameter_registration_hook,
            torch_module.register_module_module_registration_hook,
        ):
            stack.callback(register(one_more).remove)
        yield


def weights_digest(net: nn.Module) -> str:
    """The sha256 of all names and values of a network's state, independent of the device."""
    digest = hashlib.sha256()
    for name, value in net.state_dict().items():
        digest.update(name.encode())
        digest.update(bytes_of(value) if isinstance(value, Tensor) else repr(value).encode())
    return digest.hexdigest()


def _nearby(path: Path) -> str:
    """List the checkpoints next to a path, for a message."""
    folder = path.parent
    found = ", ".join(str(file.relative_to(folder)) for file in _checkpoints_in(folder)[:8])
    said = f"; the folder holds {found}" if found else f"; the folder {folder} holds none"
    if path.name == str(path):  # as the name of a model would be
        said += f"; models of the package: {', '.join(shipped_models())}"
    return said


def _checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints in a folder, which may be that of a run."""
    return [*sorted(folder.glob("*.ckpt")), *sorted(folder.glob("checkpoints/*.ckpt"))]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
