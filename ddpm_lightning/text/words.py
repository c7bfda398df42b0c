"""The words of captions."""

from __future__ import annotations

import re
from collections.abc import Sequence


def words_of(text: str) -> list[str]:
    """Split a text into words in small letters; a sign such as a comma is a word, too."""
    return re.findall(r"[\w'’-]+|[^\w\s]", text.lower())


def vocabulary(texts: Sequence[str]) -> tuple[tuple[str, ...], int]:
    """All words of some texts, sorted, and the number of words of the longest."""
    lists = [words_of(text) for text in texts]
    return tuple(sorted({word for one in lists for word in one})), max(map(len, lists), default=0)
