"""A collection of image files: their names, labels and splits, before any pixel is read."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ddpm_lightning.data.data_module import Split
from ddpm_lightning.data.stream import Indices


@dataclass(frozen=True, eq=False)
class Collection(ABC):
    """Image files of all splits, in order.

    Args:
        names: Of each file, for messages.
        labels: int64 [N]; 0 where there are no classes.
        classes: Names of the classes; empty: none.
        parts: int64 places of the files of each split that has some of its own; always train.
        fingerprint: Text that changes with any name, order or content.
        texts: The caption of each file; empty: none.
    """

    names: Sequence[str]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    parts: dict[Split, Indices]
    fingerprint: str
    texts: Sequence[str] = field(default=())

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def read(self, place: int) -> bytes:
        """Read a file; raise OSError if it cannot be read."""


def numbered(values: Sequence[str | int | None]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Number the classes of each file, sorted, numbers by size: labels int64 [N] and names."""
    known = {value for value in values if value is not None}
    numbers = all(_is_number(value) for value in known)
    order = sorted(known, key=lambda one: (int(one) if numbers else 0, str(one)))
    place: dict[str | int | None, int] = {value: k for k, value in enumerate(order)}
    return np.array([place.get(one, 0) for one in values], np.int64), tuple(map(str, order))


def _is_number(value: str | int) -> bool:
    return re.fullmatch(r"-?\d+", str(value)) is not None
