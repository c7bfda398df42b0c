"""What a checkpoint must look like, checked before anything is built from it.

The classes below describe its dictionary; entries that they do not name are not checked.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from torch import Tensor
from typing_extensions import TypedDict

from ddpm_lightning.errors import InputError
from ddpm_lightning.integrity import check_storage, walk
from ddpm_lightning.typed import check_typed

Count = Annotated[int, range(2**53)]
Side = Annotated[int, range(1, 2**20)]


class Part(TypedDict):
    """An object as plain data."""

    class_path: str
    init_args: dict[str, Any]


class Samples(TypedDict):
    """What every format states of the data's samples."""

    shape: list[Side]
    data_range: tuple[float, float] | None
    num_classes: Annotated[int, range(1, 10**7)] | None
    image_channels: Count
    token_width: Count


class Data(Samples, total=False):
    """The specification of the data, a :class:`~ddpm_lightning.batch.DataSpec`."""

    words: list[str]
    caption_length: Count


class Model(TypedDict):
    """The arguments that every module has."""

    data: Data
    net: Part


class HyperParameters(Model, total=False):
    """The arguments of the module, but for the optimizer; those of a subclass are its own."""

    schedule: Part
    codec: Part
    seed: Annotated[int, range(2**64)]


class Own(TypedDict):
    """The entry of this library."""

    format: int
    class_path: str
    data: Part | None


Settings = dict[str, float | list[float]]


class Optimization(TypedDict):
    """What describes the optimizer and its schedule."""

    optimizer: str
    groups: list[Settings]
    lr_schedule: str
    schedule: Settings


class OwnWhereStated(Own, total=False):
    """The same, with what early saves did not have."""

    accumulate: Annotated[int, range(1, 2**31)]
    timesteps: dict[str, Tensor]
    optimization: Optimization | None


class Checkpoint(TypedDict):
    """Every checkpoint: the weights and what describes them."""

    state_dict: dict[str, Any]
    global_step: Count
    epoch: Count
    hyper_parameters: HyperParameters
    ddpm_lightning: OwnWhereStated


LARGEST_SAMPLE = 10**8
"""Numbers in one sample: more cannot be drawn."""

LARGEST_TABLE = 10**8
"""Entries of a table with a row for each level of a schedule."""

LARGEST_SIZE = 2**24
"""A whole number that an argument of any network may be, e.g. a size or a count of layers."""

CODECS_OF_FILES = ("AutoencoderCodec", "DiffusersAutoencoder")
"""Classes that read, or fetch, a file unless they are given the network."""

ALWAYS_PLAUSIBLE = 100_000
"""Numbers that any module may have beside those which its checkpoint holds."""


def check_structure(checkpoint: dict[str, Any]) -> None:
    """Raise InputError unless a checkpoint, in the current format, looks like one.

    Sizes count, too, because one that cannot be would take the memory, or the time, of the whole
    machine. Only whole numbers that are stored as such are sizes; 1e6 may be a frequency.
    """
    check_typed(checkpoint, Checkpoint, "the checkpoint")
    weights = {k: v for k, v in checkpoint["state_dict"].items() if isinstance(v, Tensor)}
    for name, tensor in weights.items():
        check_storage(name, tensor)
    stated = checkpoint["hyper_parameters"]
    for where, node in walk([stated, checkpoint["ddpm_lightning"]["data"]]):
        if isinstance(node, Tensor):
            raise InputError(f"a tensor, {where[3:]}, stands in its description")
        if type(node) is int and abs(node) >= 2**64:
            raise InputError(f"{where[3:]} is a number of {node.bit_length()} bits")
    _check_files(stated)
    bounds = stated["data"]["data_range"] or (-1, 1)
    if not -math.inf < bounds[0] < bounds[1] < math.inf:
        raise InputError(f"its data_range {bounds} is none")
    if math.prod(stated["data"]["shape"]) > LARGEST_SAMPLE or not stated["data"]["shape"]:
        raise InputError(f"its samples have the shape {stated['data']['shape']}")
    size = sum(tensor.numel() for tensor in weights.values())
    sizes = _whole_numbers(stated["net"]["init_args"], "net.")
    for where, number in sizes + _whole_numbers(stated.get("codec"), "codec."):
        if abs(number) > max(size, LARGEST_SIZE):
            raise InputError(f"{where} is {number}, but it has {size} weights")
    sides = [_whole_numbers(stated.get(part), f"{part}.") for part in ("schedule", "timesteps")]
    largest = [max(side, key=lambda one: abs(one[1])) for side in sides if side]
    if math.prod(max(1, abs(number)) for _, number in largest) > LARGEST_TABLE:
        shown = ", ".join(f"{where} {number}" for where, number in largest)
        raise InputError(f"{shown}: no table has so many entries")


def _check_files(stated: HyperParameters) -> None:
    """Raise InputError if building a codec would read, or fetch, what the checkpoint names.

    Not below ``codec`` alone, because a part that stands under an unknown name is built before its
    class refuses it.
    """
    for where, node in walk(stated):
        if not isinstance(node, dict):
            continue
        arguments = node.get("init_args")
        in_codec = where.startswith("['codec']") and {"ckpt", "source"} & node.keys()
        names_codec = str(node.get("class_path")).rpartition(".")[2] in CODECS_OF_FILES
        network = arguments.get("network") if isinstance(arguments, dict) else None
        if (in_codec and not node.get("network")) or (names_codec and not network):
            raise InputError("its codec is described by a file, not by its network")


def _whole_numbers(description: Any, where: str) -> list[tuple[str, int]]:
    """List the whole numbers in plain data with their places, seeds left out."""
    found: list[tuple[str, int]] = []
    if isinstance(description, dict):
        for key, value in description.items():
            if "seed" not in str(key):
                found += _whole_numbers(value, f"{where}{key}.")
    elif isinstance(description, list | tuple):
        for value in description:
            found += _whole_numbers(value, where)
    elif type(description) is int:
        found.append((where.rstrip(".").replace(".init_args", ""), description))
    return found


def check_weights(state: dict[str, Any], module: torch.nn.Module) -> None:
    """Raise InputError unless weights have the shapes and kinds of number of a module's.

    Args:
        state: The weights by name, and what get_extra_state gave. Names that only one side has
            are left to load_state_dict.
        module: The module, whose tensors may be on the meta device.
    """
    expected, scale = module.state_dict(), state.get("codec.scale")
    if isinstance(scale, Tensor) and not bool((scale.isfinite() & (scale > 0)).all()):
        raise InputError("the weights are damaged: codec.scale is not finite and above 0")
    for name in expected.keys() & state.keys():
        ours, theirs = expected[name], state[name]
        if isinstance(ours, Tensor) != isinstance(theirs, Tensor):
            raise InputError(f"the weights do not fit the network: {name} is {theirs!r:.60}")
        if not isinstance(ours, Tensor):
            continue
        if ours.shape != theirs.shape:
            raise InputError(
                f"the weights do not fit the network: {name} has the shape {list(theirs.shape)}, "
                f"the description asks for {list(ours.shape)}"
            )
        if ours.is_floating_point() != theirs.is_floating_point():
            raise InputError(f"the weights do not fit the network: {name} is {theirs.dtype}")
    if not getattr(module, "strict_loading", True):
        return  # it may leave out as many weights as it likes
    size, most = (
        sum(tensor.numel() for tensor in one.values() if isinstance(tensor, Tensor))
        for one in (expected, state)
    )
    if size > 4 * most + ALWAYS_PLAUSIBLE:
        raise InputError(f"the weights do not fit the network: {most} numbers, it has {size}")
