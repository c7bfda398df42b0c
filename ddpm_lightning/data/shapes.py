"""Drawn pictures of one or two coloured shapes, with captions: text without a download."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from ddpm_lightning.data.compositions import (
    COLOURS,
    COMPOSITIONS,
    SHAPES,
    SIZES,
    Composition,
)
from ddpm_lightning.data.image_data import ImageData, OfficialSplit
from ddpm_lightning.errors import InputError

SIDE = 24
"""Height and width of a picture in pixels."""

RGB = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 200, 30),
}

BACKGROUND = (255, 255, 255)

RADII = {"small": (2.7, 3.3), "large": (4.6, 5.2)}
"""Half of the height and width of a shape in pixels: the range it is drawn from."""

MARGIN = 0.5
"""Pixels between a shape and the edge of the picture, at least."""

HOLE = 0.5
"""Radius of a ring's hole, as a share of its own."""

CAPTIONS = tuple(map(str, COMPOSITIONS))

COUNTS: dict[OfficialSplit, int] = {"train": 20000, "test": 1000}

Floats = NDArray[np.float64]


class Shapes(ImageData):
    """Drawn pictures, 24 × 24 RGB, of one or two coloured shapes, with captions (1,000 held out).

    20,000 are for training, 1,000 for testing. A caption is like "a red ring" or "a small red ring
    left of a large blue square": sizes small and large, which a third of the things leave unsaid;
    colours red, green, blue, yellow; shapes square, disc, triangle, ring; left of, right of, above
    and below. A quarter of the pictures show one thing, anywhere. What is in ``left_out`` is in
    every picture of the test split and in none of the others, so that the test split asks for
    compositions that a model was never shown. The label is the place of the caption among all
    9,264; the picture of an index is always the same. ``root`` and ``download`` have no effect.

    Args:
        left_out: Colour and shape of things that training and validation never show, e.g. ["green
            ring"]; [] leaves nothing out.
        **settings: Of ImageData.
    """

    native_shape = (3, SIDE, SIDE)
    num_classes = len(COMPOSITIONS)
    default_held_out = 1000

    def __init__(
        self, left_out: Sequence[str] = ("green ring", "yellow triangle"), **settings: Any
    ) -> None:
        super().__init__(**settings)
        self.state_defaults(ImageData)
        self.left_out = list(left_out)
        known = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
        unknown = [one for one in self.left_out if one not in known]
        if unknown or len(set(self.left_out)) == len(known):
            what = f"{unknown[0]!r} is no colour and shape" if unknown else "nothing is left"
            raise InputError(f"left_out: {what}; give some of {known} (--data.left_out)")

        if self.flip:
            raise InputError("flip true: a mirrored picture is not what its caption says; leave "
                             "out --data.flip")  # fmt: skip

    @property
    @override
    def texts(self) -> Sequence[str]:
        return CAPTIONS

    @override
    def read(self, split: OfficialSplit) -> tuple[Tensor, Tensor]:
        return pictures_of(split, tuple(self.left_out))


@lru_cache(maxsize=4)
def pictures_of(split: OfficialSplit, left_out: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Draw a split, once: images uint8 [N, 3, 24, 24] and labels int64 [N], not to be modified."""
    random = np.random.Generator(np.random.Philox(key=[33, split == "test"]))
    labels = _labels(COUNTS[split], left_out, split == "test", random)
    return torch.from_numpy(draw(labels, random)), torch.from_numpy(labels)


def _labels(
    n: int, left_out: tuple[str, ...], test: bool, random: np.random.Generator
) -> NDArray[np.int64]:
    """Choose what n pictures show, of what is left out or of the rest: places in COMPOSITIONS."""

    def is_left_out(composition: Composition) -> bool:
        return any(f"{one.colour} {one.shape}" in left_out for one in composition.things)

    wanted = bool(left_out) and test
    shows = np.array([is_left_out(one) is wanted for one in COMPOSITIONS])
    single = np.array([one.second is None for one in COMPOSITIONS])
    of_one, of_two = np.flatnonzero(shows & single), np.flatnonzero(shows & ~single)
    is_one, ones, twos = random.random(n) < 0.25, random.random(n), random.random(n)
    places = np.where(
        is_one,
        of_one[(ones * len(of_one)).astype(np.int64)],
        of_two[(twos * len(of_two)).astype(np.int64)],
    )
    return places.astype(np.int64)


def draw(labels: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.uint8]:
    """Draw what labels [N], places in COMPOSITIONS, say: uint8 [N, 3, 24, 24].

    Things of two stand at least 2 pixels apart along the relation's axis, and across it by less
    than half of the distance of their middles.
    """
    pictures = np.empty((len(labels), 3, SIDE, SIDE), dtype=np.uint8)
    chances = random.random((len(labels), 10))
    for k, (label, chance) in enumerate(zip(labels, chances, strict=True)):
        pictures[k] = _drawn(COMPOSITIONS[label], chance.tolist())
    return pictures


def _drawn(composition: Composition, chance: list[float]) -> NDArray[np.uint8]:
    """Draw a composition by 10 uniform numbers in [0, 1): uint8 [3, 24, 24]."""
    radii = []
    for k, thing in enumerate(composition.things):
        low, high = RADII[thing.size or SIZES[chance[k] < 0.5]]
        radii.append(low + (high - low) * chance[2 + k])
    middles = _middles(composition.relation, radii, chance[4:])
    picture = np.ones((SIDE, SIDE, 3)) * BACKGROUND
    for thing, radius, (x, y) in zip(composition.things, radii, middles, strict=True):
        alpha = coverage(thing.shape, x, y, radius)[..., None]
        picture = picture * (1 - alpha) + alpha * np.array(RGB[thing.colour])
    return picture.round().astype(np.uint8).transpose(2, 0, 1)


def _middles(
    relation: str | None, radii: list[float], chance: list[float]
) -> list[tuple[float, float]]:
    """Place one or two things inside the picture, with a margin of half a pixel."""

    def between(low: float, high: float, share: float) -> float:
        return low + (high - low) * share

    spans = [(MARGIN + r, SIDE - MARGIN - r) for r in radii]
    if relation is None:
        return [(between(*spans[0], chance[0]), between(*spans[0], chance[1]))]
    apart = sum(radii) + 2
    room = SIDE - 2 * MARGIN - sum(radii) - apart
    distance = apart + min(room, 5.0) * chance[0]
    near, far = radii if relation in ("left of", "above") else radii[::-1]
    first = between(MARGIN + near, SIDE - MARGIN - far - distance, chance[1])
    along = [first, first + distance]
    across0 = between(*spans[0], chance[2])
    low, high = (
        max(spans[1][0], across0 - 0.45 * distance),
        min(spans[1][1], across0 + 0.45 * distance),
    )
    across = [across0, between(low, high, chance[3])]
    if relation in ("right of", "below"):
        along.reverse()
    pairs = list(zip(along, across, strict=True))
    return pairs if relation in ("left of", "right of") else [(y, x) for x, y in pairs]


def coverage(shape: str, x: float, y: float, radius: float) -> Floats:
    """The share of each pixel that a shape covers, about: [24, 24] in [0, 1].

    Args:
        shape: square, disc, triangle (standing on its base) or ring.
        x: Column of its middle in pixels from the left edge; y: row from the top.
        y: See x.
        radius: Half of its height and width.
    """
    grid = np.arange(SIDE) + 0.5
    dx, dy = grid[None, :] - x, grid[:, None] - y
    if shape == "square":
        inside = radius - np.maximum(np.abs(dx), np.abs(dy))
    elif shape == "triangle":  # distance to the base, and to the sides of slope 2
        inside = np.minimum(radius - dy, (radius + dy - 2 * np.abs(dx)) / 5**0.5)
    else:
        inside = radius - np.hypot(dx, dy)
        if shape == "ring":
            inside = np.minimum(inside, np.hypot(dx, dy) - HOLE * radius)
    return np.clip(inside + 0.5, 0, 1)
