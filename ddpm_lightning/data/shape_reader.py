"""The reader of Shapes: what a picture shows, from its pixels alone.

Pixels are sorted by the nearest colour; the pieces that touch are things. Each thing is compared
with renderings of every shape and radius at its place, and takes the nearest.
"""

from __future__ import annotations

from functools import cache
from itertools import permutations
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ddpm_lightning.data.compositions import (
    COLOURS,
    SHAPES,
    SIZES,
    Composition,
)
from ddpm_lightning.data.shapes import BACKGROUND, RADII, RGB, SIDE, coverage

LEAST_PIXELS = 5
"""Pieces of fewer pixels are specks, not things."""

WORST_FIT = 0.35
"""Squared error of the nearest rendering, by that of an empty one, above which a thing has no
shape."""

MIDDLE_RADIUS = (RADII["small"][1] + RADII["large"][0]) / 2
"""Radius between small and large."""

MOST_THINGS = 3
"""Things of a picture that a reading holds."""

NUMBERS = 5
"""Numbers of a thing in a reading: colour, shape (−1: none), size, x, y."""


class Seen(NamedTuple):
    """A thing in a picture: its colour, shape (None: of no known one) and size, and its middle."""

    colour: str
    shape: str | None
    size: str
    x: float
    y: float


def read_pictures(images: Tensor) -> Tensor:
    """Read what pictures show.

    Args:
        images: uint8 [n, 3, 24, 24].

    Returns:
        float32 [n, 1 + 3·5]: the number of things, then colour, shape, size (places in COLOURS,
        SHAPES and SIZES; shape −1 for none), x and y of each.
    """
    images = images.cpu().double()
    colours = torch.tensor([BACKGROUND, *RGB.values()], dtype=torch.float64)
    difference = images[:, None] - colours[None, :, :, None, None]  # [n, 5, 3, 24, 24]
    nearest = difference.square().sum(2).argmin(1)  # 0: background
    pieces = _pieces(nearest > 0)
    readings = torch.zeros(len(images), 1 + MOST_THINGS * NUMBERS)
    for k, (picture, colour, piece) in enumerate(zip(images, nearest, pieces, strict=True)):
        names, sizes = piece[piece > 0].unique(return_counts=True)
        names = names[sizes >= LEAST_PIXELS]
        readings[k, 0] = len(names)
        for i, name in enumerate(names[:MOST_THINGS].tolist()):
            start = 1 + i * NUMBERS
            readings[k, start : start + NUMBERS] = _measured(picture, colour, piece == name)
    return readings


def things_of(reading: Tensor) -> list[Seen]:
    """The things of one reading [1 + 3·5]; more than it holds are left out."""
    count = min(int(reading[0]), MOST_THINGS)
    found = reading[1:].view(MOST_THINGS, NUMBERS)[:count].tolist()
    return [
        Seen(
            COLOURS[int(colour)],
            None if shape < 0 else SHAPES[int(shape)],
            SIZES[int(size)],
            x,
            y,
        )
        for colour, shape, size, x, y in found
    ]


def agreement(reading: Tensor, asked: Composition) -> dict[str, bool | None]:
    """Whether a picture shows what was asked, by attribute; None where nothing was said of it.

    ``count`` is the number of things. The things seen are taken for those asked in the order that
    agrees in most; with another number of them every other attribute is wrong, too. The relation
    is that along which their middles are farther apart.
    """
    seen, wanted = things_of(reading), asked.things
    if int(reading[0]) != len(wanted):
        sized = any(thing.size for thing in wanted)
        wrong = {"count": False, "colour": False, "shape": False}
        size, position = False if sized else None, None if asked.relation is None else False
        return {**wrong, "size": size, "position": position}

    def compare(order: tuple[Seen, ...]) -> tuple[int, dict[str, bool | None]]:
        """How many single things agree, with the relation last, and the agreement."""
        pairs = list(zip(order, wanted, strict=True))
        colours = [one.colour == thing.colour for one, thing in pairs]
        shapes = [one.shape == thing.shape for one, thing in pairs]
        sizes = [one.size == thing.size for one, thing in pairs if thing.size]
        position = None if asked.relation is None else asked.relation == _relation(*order)
        found = {
            "count": True,
            "colour": all(colours),
            "shape": all(shapes),
            "size": all(sizes) if sizes else None,
            "position": position,
        }
        return 2 * sum([*colours, *shapes, *sizes]) + bool(position), found

    return max(map(compare, permutations(seen)), key=lambda one: one[0])[1]


def _relation(first: Seen, second: Seen) -> str:
    dx, dy = second.x - first.x, second.y - first.y
    if abs(dx) >= abs(dy):
        return "left of" if dx > 0 else "right of"
    return "above" if dy > 0 else "below"


def _pieces(inside: Tensor) -> Tensor:
    """Number the connected pieces of masks bool [n, H, W], by eight neighbours: int64, 0 outside.

    Every pixel takes the largest number around it until none changes.
    """
    height, width = inside.shape[1:]
    numbers = torch.arange(1, height * width + 1, dtype=torch.float32).view(1, 1, height, width)
    mask = inside[:, None].float()
    numbers = numbers * mask
    while True:
        spread = F.max_pool2d(numbers, 3, stride=1, padding=1) * mask
        if torch.equal(spread, numbers):
            return numbers[:, 0].long()
        numbers = spread


def _measured(picture: Tensor, colour: Tensor, piece: Tensor) -> Tensor:
    """Measure a piece bool [24, 24] of a picture [3, 24, 24] with its colours [24, 24]: [5]."""
    named = int(colour[piece].mode().values)
    background = torch.tensor(BACKGROUND, dtype=torch.float64)
    towards = torch.tensor([*RGB.values()][named - 1], dtype=torch.float64) - background
    alpha = torch.einsum("chw,c->hw", picture - background[:, None, None], towards)
    alpha = (alpha / towards.square().sum()).clamp(0, 1)
    near = F.max_pool2d(piece[None, None].float(), 3, stride=1, padding=1)[0, 0] > 0
    alpha = alpha * near  # with the pale pixels of its edge, without other things
    rows, columns = alpha.amax(1), alpha.amax(0)
    x, y = _middle(columns), _middle(rows)
    # In the middle of the picture, where every rendering is kept.
    right, down = int(x) - SIDE // 2, int(y) - SIDE // 2
    alpha = alpha.roll((-down, -right), (0, 1))
    shapes, radii, drawn = _renderings(int(4 * (x % 1)) / 4, int(4 * (y % 1)) / 4)
    errors = (drawn - alpha).square().sum((1, 2)) / alpha.square().sum().clamp(min=1)
    best = int(errors.argmin())
    shape = shapes[best] if float(errors[best]) < WORST_FIT else -1
    return torch.tensor([named - 1, shape, radii[best] > MIDDLE_RADIUS, x, y])


def _middle(profile: Tensor) -> float:
    """The middle of a thing along an axis, by the share [32] that it covers at most there."""
    covered = profile > 0.1
    places = covered.nonzero()[:, 0]
    first, last = int(places[0]), int(places[-1])
    low = first + 1 - float(profile[first])
    return (low + last + float(profile[last])) / 2


@cache
def _renderings(x: float, y: float) -> tuple[list[int], list[float], Tensor]:
    """Shapes, radii and coverages [m, 24, 24] of everything, x and y off the middle."""
    middle = SIDE // 2
    radii = np.arange(2.0, 6.5, 0.25).tolist()
    pairs = [(shape, radius) for shape in range(len(SHAPES)) for radius in radii]
    drawn = np.stack(
        [coverage(SHAPES[shape], middle + x, middle + y, radius) for shape, radius in pairs]
    )
    return [shape for shape, _ in pairs], [r for _, r in pairs], torch.from_numpy(drawn)
