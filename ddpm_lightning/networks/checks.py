"""Settings and image shapes that a network refuses, with the fix in the message."""

from __future__ import annotations

import math

from ddpm_lightning.errors import InputError


def check_counts(network: str, **counts: int) -> None:
    """Raise InputError unless every count is at least 1."""
    for name, count in counts.items():
        if count < 1:
            raise InputError(f"{network}({name}={count}): must be at least 1")


def check_image(network: str, shape: tuple[int, ...], in_channels: int) -> None:
    """Raise InputError unless ``shape`` is that of images [in_channels, height, width]."""
    if len(shape) != 3:
        raise InputError(
            f"{network} takes images [channels, height, width], not data of shape "
            f"{list(shape)}; choose another network, e.g. MLP for points (--model.net MLP)"
        )
    if shape[0] != in_channels:
        raise InputError(
            f"{network} was built for {in_channels} image channels, the data has {shape[0]}; "
            f"build it with in_channels={shape[0]} or change the data"
        )


def largest_divisor(number: int, at_most: int) -> int:
    """The largest divisor of ``number`` that is not above ``at_most``."""
    return max(divisor for divisor in range(1, at_most + 1) if number % divisor == 0)


def sizes_that_fit(height: int, width: int, factor: int) -> str:
    """Name the sizes next to height×width whose sides are multiples of ``factor``."""
    floors = (height // factor * factor, width // factor * factor)
    ceils = (math.ceil(height / factor) * factor, math.ceil(width / factor) * factor)
    return " or ".join(f"{h}×{w}" for h, w in (floors, ceils) if h and w)
