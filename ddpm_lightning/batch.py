"""What a data set gives: its specification, batches, and what is known beside each sample."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

NULL_LABEL = -1
"""The label that says "no class": rows that carry it are denoised unconditionally."""


class Condition(NamedTuple):
    """What a model is told beside x_t; every part may be missing.

    Attributes:
        label: int64 [B] classes, −1 (NULL_LABEL) for none.
        image: float [B, K, H, W] images beside x_t.
        tokens: float [B, L, D] a sequence, e.g. an embedded text.
        mask: bool [B, L], True where ``tokens`` has a token; None: everywhere.
    """

    label: Tensor | None = None
    image: Tensor | None = None
    tokens: Tensor | None = None
    mask: Tensor | None = None

    @property
    def missing(self) -> bool:
        """Whether nothing is known."""
        return all(part is None for part in self)

    def rows(self, index: Tensor | slice) -> Condition:
        """Choose rows by index int64 [n], mask bool [B] or slice."""
        return Condition(*(None if part is None else part[index] for part in self))

    def repeated(self, index: Tensor) -> Condition:
        """Choose rows by index int64 [n], counted on from the start after the last row."""
        return Condition(*(None if part is None else part[index % len(part)] for part in self))

    def to(self, device: torch.device | str) -> Condition:
        """Move every part to a device."""
        return Condition(*(None if part is None else part.to(device) for part in self))

    def null(self, rows: Tensor | None = None, image: bool = False) -> Condition:
        """Forget the label and the tokens, in all rows or in some.

        Args:
            rows: bool [B], the rows that forget; None: all.
            image: Forget the image, too, which becomes 0.
        """
        if rows is None:
            parts = [part for part in self if part is not None]
            if not parts:
                return self
            rows = torch.ones(len(parts[0]), dtype=torch.bool, device=parts[0].device)

        def zeroed(part: Tensor | None) -> Tensor | None:
            return None if part is None else part.masked_fill(_beside(rows, part), 0)

        label = None if self.label is None else self.label.masked_fill(rows, NULL_LABEL)
        tokens, mask = zeroed(self.tokens), self.mask
        if tokens is not None:
            mask = torch.ones_like(tokens[..., 0], dtype=torch.bool) if mask is None else mask
            mask = mask.masked_fill(rows[:, None], False)
        return Condition(label, zeroed(self.image) if image else self.image, tokens, mask)

    def followed_by(self, other: Condition) -> Condition:
        """Stack the rows of another condition of the same parts below these."""
        pairs = zip(self, other, strict=True)
        return Condition(
            *(None if a is None or b is None else torch.cat([a, b]) for a, b in pairs)
        )


class Batch(NamedTuple):
    """Samples as the model sees them, and where they come from.

    Attributes:
        x0: float [B, ...] data, in [−1, 1] for images.
        condition: What is known beside it.
        index: int64 [B] places in the split, on the CPU; they key the noise of evaluation.
        row: int64 [B] places in the global batch of the optimizer step, on the CPU; they key the
            noise of training. None outside training.
    """

    x0: Tensor
    condition: Condition
    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    row: Tensor | None = None


@dataclass(frozen=True)
class DataSpec:
    """What a network must know of the data that it is built for.

    Args:
        shape: Of one sample: [C, H, W] of images, [2] of points in the plane.
        data_range: Lowest and highest data value, to which sampling clips; None: unbounded.
        num_classes: Number of classes; None: no labels.
        image_channels: Channels of the image that is given beside x_t; 0: none.
        token_width: Length D of each token of a given sequence; 0: none.
    """

    shape: tuple[int, ...]
    data_range: tuple[float, float] | None = (-1.0, 1.0)
    num_classes: int | None = None
    image_channels: int = 0
    token_width: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        if self.data_range is not None:
            low, high = self.data_range
            object.__setattr__(self, "data_range", (float(low), float(high)))

    def plain(self) -> dict[str, Any]:
        """State it as plain data, for a checkpoint."""
        stated = asdict(self)
        return {name: list(v) if isinstance(v, tuple) else v for name, v in stated.items()}


def _beside(rows: Tensor, part: Tensor) -> Tensor:
    return rows.view(-1, *[1] * (part.ndim - 1))
