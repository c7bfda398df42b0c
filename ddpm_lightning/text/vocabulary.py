"""Text as words of a small vocabulary: an encoder without a download."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from ddpm_lightning.batch import DataSpec
from ddpm_lightning.errors import InputError, at_least, nearest
from ddpm_lightning.text.encoder import TextEncoder
from ddpm_lightning.text.words import words_of

LARGEST = 4096
"""Words of the largest vocabulary, because a token is as long."""


class VocabularyEncoder(TextEncoder):
    """Words of a small vocabulary: a token is [one-hot word, one-hot position].

    The linear map with which a network begins makes of it a learned embedding of the word plus a
    learned embedding of the position (Vaswani et al. 2017, section 3.4 and 3.5). A comma or a full
    stop is a word where captions have it, and otherwise left out of captions and prompts alike.

    Args:
        words: The vocabulary; null: all words of the data's captions.
        length: Most words of a text; null: of the longest caption of the data.

    Raises:
        InputError: The vocabulary has more than 4,096 words.
    """

    def __init__(self, words: Sequence[str] | None = None, length: int | None = None) -> None:
        at_least(1, self, length=length)
        self.words = list(words or ())
        self.length = length or 0
        if len(self.words) > LARGEST:
            raise InputError(
                f"a vocabulary of {len(self.words):,} words is too large for VocabularyEncoder; "
                "take a trained encoder: --model.text HuggingFaceEncoder --model.text.path "
                "openai/clip-vit-base-patch32"
            )
        self.width = len(self.words) + self.length
        self._place = {word: k for k, word in enumerate(self.words)}

    @override
    def of(self, data: DataSpec) -> TextEncoder:
        if not (self.words or data.words) or not (self.length or data.caption_length):
            raise InputError(
                "model.text: the data has no captions; take data that has (--data Shapes, "
                "--data Captioned, a folder with a metadata.csv of file_name,text), or leave it "
                "out (--model.text null)"
            )
        words, length = self.words or data.words, self.length or data.caption_length
        return self.replace(words=list(words), length=length)

    @override
    def encode(self, texts: Sequence[str], device: Any = "cpu") -> tuple[Tensor, Tensor]:
        tokens = torch.zeros(len(texts), self.length, self.width)
        mask = torch.zeros(len(texts), self.length, dtype=torch.bool)
        for row, text in enumerate(texts):
            words = words_of(text, self._place)
            if len(words) > self.length:
                raise InputError(
                    f"{text!r:.80} has {len(words)} words, the encoder takes {self.length}; say "
                    "it in fewer, or train with --model.text.length "
                    f"{len(words)}"
                )
            for position, word in enumerate(words):
                if word not in self._place:
                    raise InputError(self._unknown(word))
                tokens[row, position, self._place[word]] = 1
                tokens[row, position, len(self.words) + position] = 1
            mask[row, : len(words)] = True
        return tokens, mask

    def _unknown(self, word: str) -> str:
        shown = ", ".join(self.words[:40]) + (", …" if len(self.words) > 40 else "")
        return (
            f"the word '{word}' is none of the {len(self.words)} that the model knows"
            f"{nearest(word, self.words)}; it knows {shown} (--model.text.words in training)"
        )
