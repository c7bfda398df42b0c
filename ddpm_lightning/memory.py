"""Sizes that cannot be: refused before memory is asked for."""

from __future__ import annotations

import math
import os
from typing import Any

from ddpm_lightning.errors import InputError

MOST_LEVELS = 1_000_000
"""Noise levels of a schedule; published ones have up to 4,000."""


def check_memory(what: str, size: float) -> None:
    """Raise InputError if this machine's memory cannot hold so many bytes.

    Args:
        what: What needs them, for the message.
        size: Bytes.
    """
    if size > (total := machine_memory()):
        raise InputError(
            f"{what} would take {size / 2**30:,.0f} GiB, and this machine has "
            f"{total / 2**30:,.0f} GiB of memory; use a smaller size"
        )


def check_integers(settings: Any, name: str = "") -> None:
    """Raise InputError for a whole number beyond 2^31 − 1 in plain settings.

    But for seeds, and versions of a logger, which are no sizes.

    Args:
        settings: Dictionaries, lists and numbers.
        name: Their dotted name.
    """
    if isinstance(settings, dict):
        for key, value in settings.items():
            check_integers(value, f"{name}.{key}".lstrip(".") if key != "init_args" else name)
    elif isinstance(settings, list | tuple):
        for value in settings:
            check_integers(value, name)
    elif isinstance(settings, int) and abs(settings) >= 2**31:
        if "seed" in name or "logger" in name.split("."):
            return
        raise InputError(f"{name} {settings}: no size is that large here; use a smaller one")


def check_levels(name: str, T: int) -> None:
    """Raise InputError unless a schedule can have this number of levels."""
    if T < 1:
        raise InputError(f"{name}(T={T}): at least one level is needed")
    if T > MOST_LEVELS:
        raise InputError(f"{name}(T={T}): use {MOST_LEVELS:,} levels or fewer")


def machine_memory() -> float:
    """Bytes of memory of this machine; infinite where the system does not say."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):
        return math.inf
