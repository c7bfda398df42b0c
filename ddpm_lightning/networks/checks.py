"""Checks of network settings and image shapes, with the fix in the message."""

from __future__ import annotations

import math
from collections.abc import Callable

from ddpm_lightning.errors import InputError


def check_dropout(dropout: float) -> None:
    """Raise InputError unless a probability of dropout is in [0, 1)."""
    if not 0 <= dropout < 1:
        raise InputError(f"dropout={dropout}: must be in [0, 1); 0 turns it off")


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
            f"set the data's image_size to {sizes_that_fit(height, width, factor)}{other}"
        )


def largest_divisor(number: int, at_most: int) -> int:
    """The largest divisor of ``number`` that is not above ``at_most``."""
    return max(divisor for divisor in range(1, at_most + 1) if number % divisor == 0)


def sizes_that_fit(height: int, width: int, factor: int) -> str:
    """Name the sizes next to height×width whose sides are multiples of ``factor``."""
    floors = (height // factor * factor, width // factor * factor)
    ceils = (math.ceil(height / factor) * factor, math.ceil(width / factor) * factor)
    return " or ".join(f"{h}×{w}" for h, w in (floors, ceils) if h and w)
