"""The base class of the text encoders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ddpm_lightning.batch import DataSpec
from ddpm_lightning.configurable import Configurable


class TextEncoder(Configurable, ABC):
    """Text as tokens, which a network reads by cross-attention.

    It learns nothing: the network begins with a learned map of the tokens, which is in the
    checkpoint and in the average of the weights. One of your own states ``width`` and defines
    ``encode``; all texts get as many tokens.

    Attributes:
        width: Length D of a token.
    """

    width: int

    def of(self, data: DataSpec) -> TextEncoder:
        """The encoder for the captions of a data set; itself, if it does not depend on them."""
        return self

    @abstractmethod
    def encode(self, texts: Sequence[str], device: Any = "cpu") -> tuple[Tensor, Tensor]:
        """Encode texts: tokens float32 [n, L, D], and bool [n, L], True where there is one.

        Raises InputError: A text cannot be encoded; the message says how it can.
        """

    def __call__(
        self, texts: Sequence[str], device: torch.device | str = "cpu"
    ) -> tuple[Tensor, Tensor]:
        """Encode texts of which many are the same: tokens [n, L, D] and mask [n, L]."""
        different = list(dict.fromkeys(texts))
        place = {text: k for k, text in enumerate(different)}
        tokens, mask = (part.to(device) for part in self.encode(different, device))
        rows = torch.tensor([place[text] for text in texts], device=device)
        return tokens[rows], mask[rows]
