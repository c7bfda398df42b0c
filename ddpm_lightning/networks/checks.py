"""Checks of network settings and image shapes, with the fix in the message."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ddpm_lightning.batch import DataSpec
from ddpm_lightning.errors import InputError, at_least
from ddpm_lightning.memory import check_memory

MOST = {"blocks": 1000, "depth": 1000}
"""The largest counts that are no slip, where each takes a while to build."""


def check_dropout(dropout: float) -> None:
    """Raise InputError unless a probability of dropout is in [0, 1)."""
    if not 0 <= dropout < 1:
        raise InputError(f"dropout={dropout}: must be in [0, 1); 0 turns it off")


def check_counts(network: nn.Module, **counts: int) -> None:
    """Raise InputError unless every count is at least 1, and one that a network can have."""
    at_least(1, network, **counts)
    for name, count in counts.items():
        if count > (most := MOST.get(name, 65_536)):
            kind = type(network).__name__
            raise InputError(f"{kind}({name}={count}): must be at most {most}")


def check_tokens(
    network: nn.Module, data: DataSpec, image_patch: int, name: str, reads: bool | Sequence[int]
) -> None:
    """Raise InputError if a network is to read by cross-attention what is not there.

    Args:
        network: The network.
        data: Its data.
        image_patch: Side of the patches of a condition image that it reads; 0: it reads none.
        name: Of the setting that gives it cross-attention.
        reads: Its value; without one it has none.
    """
    kind, channels = type(network).__name__, data.image_channels
    at_least(0, network, image_patch=image_patch)
    if reads and not data.token_width and not image_patch:
        raise InputError(
            f"{kind}({name}) reads a text, and the model has none; give it an encoder (--model."
            f"text VocabularyEncoder), or leave out --model.net.{name}"
        )
    if image_patch and not (reads and channels):
        lacks = (
            "data with condition images (--data Conditioned)" if reads else f"--model.net.{name}"
        )
        raise InputError(
            f"{kind}(image_patch={image_patch}) needs {lacks}; give it, or leave out --model.net."
            "image_patch"
        )
    if image_patch and any(side % image_patch for side in data.shape[1:]):
        side = largest_divisor(math.gcd(*data.shape[1:]), image_patch)
        raise InputError(
            f"{kind}(image_patch={image_patch}) does not divide the images' height and width "
            f"{list(data.shape[1:])}; set --model.net.image_patch {side}"
        )


def check_size(build: Callable[[], nn.Module]) -> None:
    """Raise InputError if the memory cannot hold a network's weights and their average.

    ``build`` is called on the meta device, where tensors take no memory. Only networks of this
    library are built there, because any other may keep tables of tensors for its next instance.

    Args:
        build: A network's class, or a partial of it.
    """
    if not is_own(build):
        return
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            parameters = list(build().parameters())
    except Exception as error:
        if "overflow" in str(error):  # more bytes than an integer counts
            raise InputError(f"the network is too large: {error}") from error
        return  # it needs real tensors, or will say what is wrong when it is built
    size = sum(one.numel() * one.element_size() for one in parameters)
    check_memory("the network and the average of its weights", 2 * size)


def is_own(build: Any) -> bool:
    """Whether this library defines what a class, a function or a partial of them builds."""
    while isinstance(build, partial):
        # The partials of the parser call functions of its own with the class.
        build = next((one for one in build.args if isinstance(one, type)), build.func)
    return str(getattr(build, "__module__", "")).partition(".")[0] == __name__.partition(".")[0]


def check_image(
    network: str, shape: tuple[int, ...], factor: int, fix: Callable[[int], str] | None = None
) -> None:
    """Raise InputError unless a shape is [C, H, W] with sides that are multiples of a factor.

    ``fix`` names another remedy, given the greatest common divisor of height and width.
    """
    if len(shape) != 3:
        raise InputError(
            f"{network} takes images [channels, height, width], not data of shape "
            f"{list(shape)}; choose another network, e.g. MLP for points (--model.net MLP)"
        )
    height, width = shape[1:]
    if height % factor or width % factor:
        other = f", or {fix(math.gcd(height, width))}" if fix else ""
        raise InputError(
            f"{network}: height and width must be multiples of {factor}, not {height}×{width}; "
            f"choose images of {sizes_that_fit(height, width, factor)}{other}"
        )


def fewer_multipliers(side: int) -> str:
    """Name how many levels a side can be halved for, as the other remedy of check_image."""
    levels = (side & -side).bit_length()  # 1 + how often the side can be halved
    return f"give at most {levels} multiplier{'s' if levels > 1 else ''}"


def largest_divisor(number: int, at_most: int) -> int:
    """The largest divisor of ``number`` that is not above ``at_most``."""
    low = [one for one in range(1, math.isqrt(number) + 1) if number % one == 0]
    return max(one for one in (*low, *(number // one for one in low)) if one <= at_most)


def sizes_that_fit(height: int, width: int, factor: int) -> str:
    """Name the sizes next to height×width whose sides are multiples of ``factor``."""
    floors = (height // factor * factor, width // factor * factor)
    ceils = (math.ceil(height / factor) * factor, math.ceil(width / factor) * factor)
    return " or ".join(f"{h}×{w}" for h, w in (floors, ceils) if h and w)


def warn_of_evaluation_mode(network: nn.Module) -> None:
    """Warn of the modules that train in evaluation mode: Lightning leaves a mode as it comes."""
    asleep = [
        name or type(network).__name__ for name, m in network.named_modules() if not m.training
    ]
    if asleep:
        warnings.warn(
            f"{len(asleep)} modules of the network are in evaluation mode ({asleep[0]} first): "
            "their dropout is off and running statistics stay; if that is not meant, call "
            "module.net.train() before fit",
            stacklevel=2,
        )
