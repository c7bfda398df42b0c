"""The words of captions and prompts."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

PUNCTUATION = re.escape(".,;:!?…()[]\"“”„«»'‘’-–—")
"""Signs between words, which say nothing in a text whose vocabulary has none of them."""


def words_of(text: str, known: Collection[str] | None = None) -> list[str]:
    """Split a text into words in small letters; a sign such as a comma is a word, too.

    Args:
        text: The text.
        known: Words of a vocabulary. Ordinary punctuation that is none of them is left out, and
            parts words: "A dark-red ring." is then a, dark, red, ring. Other unknown words stay.
    """
    words = re.findall(r"[\w'’-]+|[^\w\s]", text.lower())
    if known is None:
        return words
    return [part for word in words for part in _known_parts(word, known)]


def vocabulary(texts: Sequence[str]) -> tuple[tuple[str, ...], int]:
    """All words of some texts, sorted, and the number of words of the longest."""
    lists = [words_of(text) for text in texts]
    return tuple(sorted({word for one in lists for word in one})), max(map(len, lists), default=0)


def _known_parts(word: str, known: Collection[str]) -> list[str]:
    """The word itself, or what punctuation parts it into, if all of that is known."""
    parts = re.findall(f"[^{PUNCTUATION}]+", word)
    return [word] if word in known or not all(part in known for part in parts) else parts
