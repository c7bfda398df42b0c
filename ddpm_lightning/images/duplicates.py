"""Images that are the same, or nearly: by a hash of all pixels, and by a perceptual one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

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


def on_white(image: Image.Image) -> Image.Image:
    """Lay an image on white, because the colour of transparent pixels is not seen: RGB."""
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


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
    # Less 128, because sums of 768 products of such numbers are exact in float32.
    small = thumbnails.reshape(len(thumbnails), -1).astype(np.float32) - 128
    first = np.arange(len(hashes))  # the first image of each one's group
    for quarter in np.split(hashes, BITS + 1, axis=1):
        for group in same([row.tobytes() for row in np.packbits(quarter, axis=1)]):
            _join(np.array(group), hashes, small, first)
    return same(first.tolist())


def _join(
    group: NDArray[np.int64],
    hashes: NDArray[np.bool_],
    small: NDArray[np.float32],
    first: NDArray[np.int64],
) -> None:
    """Join the close images of some, a block of them at a time, by changing ``first``."""
    bits = hashes[group].astype(np.float32)
    ones = bits.sum(1)
    for start in range(0, len(group), 1024):
        if (first[group] == first[group[0]]).all():
            return
        rows = slice(start, start + 1024)
        distance = ones[rows, None] + ones - 2 * bits[rows] @ bits.T
        open_ = (distance <= BITS) & (first[group[rows], None] != first[group])
        block, others = group[rows][open_.any(1)], group[open_.any(0)]
        close = open_[open_.any(1)][:, open_.any(0)] & _alike(small[block], small[others])
        for one, row in zip(block, close, strict=True):
            joined = np.unique(first[[one, *others[row]]])
            if len(joined) > 1:
                first[np.isin(first, joined)] = joined[0]


def _alike(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Compare all thumbnails [M, D] with all [N, D] by their mean square difference: [M, N]."""
    squares = [np.square(x).sum(1, dtype=np.float64) for x in (a, b)]
    return (squares[0][:, None] + squares[1] - 2.0 * (a @ b.T)) <= APART**2 * a.shape[1]
