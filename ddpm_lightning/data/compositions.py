"""Compositions: what the pictures of Shapes show, and the captions that say it.

caption = object | object relation object
object = "a" [size] colour shape
relation = "left of" | "right of" | "above" | "below"
"""

from __future__ import annotations

import re
from itertools import product
from typing import NamedTuple

from ddpm_lightning.errors import InputError

SIZES = ("small", "large")
COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("square", "disc", "triangle", "ring")
RELATIONS = ("left of", "right of", "above", "below")

WORDS = re.compile(
    rf"a (?:(?P<size>{'|'.join(SIZES)}) )?(?P<colour>{'|'.join(COLOURS)}) "
    rf"(?P<shape>{'|'.join(SHAPES)})"
)


class Thing(NamedTuple):
    """A coloured shape; its size may be left unsaid."""

    size: str | None
    colour: str
    shape: str

    def __str__(self) -> str:
        return " ".join(filter(None, ("a", *self)))


class Composition(NamedTuple):
    """One or two things; of two, the first stands in the relation to the second."""

    first: Thing
    relation: str | None = None
    second: Thing | None = None

    def __str__(self) -> str:
        return " ".join(str(part) for part in self if part is not None)

    @property
    def things(self) -> list[Thing]:
        """The one or two things."""
        return [self.first] if self.second is None else [self.first, self.second]

    @classmethod
    def read(cls, caption: str) -> Composition:
        """Parse a caption; raise InputError if it is none of the grammar's."""
        text = " ".join(caption.lower().split())
        relation = next((one for one in RELATIONS if f" {one} a " in text), None)
        parts = [text] if relation is None else text.split(f" {relation} ", 1)
        found = [WORDS.fullmatch(part) for part in parts]
        things = [Thing(*match.group("size", "colour", "shape")) for match in found if match]
        if len(things) < len(parts):
            raise InputError(
                f"{caption!r:.80} is no caption of Shapes; they are like 'a red ring' and 'a "
                f"small red ring left of a large blue square', of the sizes {', '.join(SIZES)}, "
                f"the colours {', '.join(COLOURS)}, the shapes {', '.join(SHAPES)} and the "
                f"relations {', '.join(RELATIONS)}"
            )
        return cls(things[0], relation, things[-1] if relation else None)


def _all_compositions() -> tuple[Composition, ...]:
    things = [Thing(*parts) for parts in product((None, *SIZES), COLOURS, SHAPES)]
    pairs = product(things, RELATIONS, things)
    return *(Composition(thing) for thing in things), *(Composition(*pair) for pair in pairs)


COMPOSITIONS = _all_compositions()
"""Everything that a caption can say: 48 of one thing, 9,216 of two. A label is a place in it."""
