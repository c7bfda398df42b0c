"""Images that are the same, or nearly: by a hash of all pixels, and by a perceptual one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

BITS = 3
"""Bits of 64 in which the difference hashes of near duplicates may differ."""

APART = 6.0
"""Root mean square difference, of 255, of their thumbnails."""

METHOD = (
    f"difference hashes within {BITS} of 64 bits, and 16×16 thumbnails within {APART:g} of 255 "
    "(root mean square)"
)


def difference_hash(image: Image.Image) -> NDArray[np.bool_]:
    """Compare neighbours in a row of the image scaled to 9 × 8 grey pixels: bool [64]."""
    small = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX))
    return (small[:, 1:] > small[:, :-1]).ravel()


def thumbnail(image: Image.Image) -> NDArray[np.uint8]:
    """Scale to 16 × 16 RGB pixels: uint8 [16, 16, 3]."""
    return np.asarray(image.convert("RGB").resize((16, 16), Image.Resampling.BOX))


def same(keys: Sequence[Hashable]) -> list[list[int]]:
    """Group the places of equal keys: groups of two or more, in order."""
    places: dict[Hashable, list[int]] = defaultdict(list)
    for place, key in enumerate(keys):
        places[key].append(place)
    return [group for group in places.values() if len(group) > 1]


def near(hashes: NDArray[np.bool_], thumbnails: NDArray[np.uint8]) -> list[list[int]]:
    """Group images that are nearly the same: METHOD.

    Two hashes within three bits have one of four quarters in common, so only such are compared.

    Args:
        hashes: bool [N, 64].
        thumbnails: uint8 [N, 16, 16, 3].

    Returns:
        Groups of two or more places; each image is near another one of its group.
    """
    small = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    pairs: set[tuple[int, int]] = set()
    for quarter in np.split(hashes, BITS + 1, axis=1):
        for group in same([row.tobytes() for row in np.packbits(quarter, axis=1)]):
            pairs.update(_close(np.array(group), hashes, small))
    return _connected(pairs)


def _close(
    group: NDArray[np.int64], hashes: NDArray[np.bool_], small: NDArray[np.float32]
) -> Iterable[tuple[int, int]]:
    """Find the close pairs of a group, a block of rows at a time."""
    bits = hashes[group].astype(np.float32)
    ones = bits.sum(1)
    for first in range(0, len(group), 1024):
        rows = slice(first, first + 1024)
        distance = ones[rows, None] + ones - 2 * bits[rows] @ bits.T
        for row, column in np.argwhere(distance <= BITS):
            a, b = int(group[first + row]), int(group[column])
            if a < b and np.sqrt(np.square(small[a] - small[b]).mean()) <= APART:
                yield a, b


def _connected(pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Group what pairs connect."""
    parent: dict[int, int] = {}

    def top(one: int) -> int:
        while parent.setdefault(one, one) != one:
            one = parent[one]
        return one

    for a, b in sorted(pairs):
        parent[top(b)] = top(a)
    groups: dict[int, list[int]] = defaultdict(list)
    for one in sorted(parent):
        groups[top(one)].append(one)
    return list(groups.values())
