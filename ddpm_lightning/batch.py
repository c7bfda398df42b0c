"""Batches, conditions and the specification of a data set."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

NULL_LABEL = -1
"""The label of rows without a class, which are denoised unconditionally."""


class Condition(NamedTuple):
    """The condition of p(x0 | condition): labels, images, tokens, an estimate; each may be None.

    Attributes:
        label: int64 [B] classes, −1 (NULL_LABEL) for none.
        image: float [B, K, H, W] images, stacked onto x_t by the network.
        tokens: float [B, L, D] a sequence, e.g. an embedded text.
        mask: bool [B, L], True where ``tokens`` has a token; None: everywhere.
        estimate: float [B, ...] an earlier estimate of x0, which a self-conditioned network is
            shown. Training and samplers fill it in; data have none.
    """

    label: Tensor | None = None
    image: Tensor | None = None
    tokens: Tensor | None = None
    mask: Tensor | None = None
    estimate: Tensor | None = None

    def rows(self, index: Tensor | slice) -> Condition:
        """Select rows by index int64 [n], mask bool [B] or slice."""
        return Condition(*(None if part is None else part[index] for part in self))

    def repeated(self, index: Tensor) -> Condition:
        """Select rows by index int64 [n], modulo the number of rows."""
        return Condition(*(None if part is None else part[index % len(part)] for part in self))

    def to(self, device: torch.device | str) -> Condition:
        """Move every part to a device."""
        return Condition(*(None if part is None else part.to(device) for part in self))

    def null(self, rows: Tensor | None = None, image: bool = False) -> Condition:
        """Replace labels by NULL_LABEL and tokens by 0 (masked).

        Args:
            rows: bool [B], the rows to replace; None: all.
            image: Also replace the images, by 0.
        """
        if rows is None:
            parts = [part for part in self if part is not None]
            if not parts:
                return self
            rows = torch.ones(len(parts[0]), dtype=torch.bool, device=parts[0].device)

        def zeroed(part: Tensor | None) -> Tensor | None:
            if part is None:
                return None
            return part.masked_fill(rows.view(-1, *[1] * (part.ndim - 1)), 0)

        label = None if self.label is None else self.label.masked_fill(rows, NULL_LABEL)
        kept = zeroed(self.image) if image else self.image
        tokens, mask = zeroed(self.tokens), zeroed(self.with_mask().mask)
        return self._replace(label=label, image=kept, tokens=tokens, mask=mask)

    def followed_by(self, other: Condition) -> Condition:
        """Concatenate the rows of this and another condition with the same parts."""
        pairs = zip(self.with_mask(), other.with_mask(), strict=True)
        return Condition(
            *(None if a is None or b is None else torch.cat([a, b]) for a, b in pairs)
        )

    def with_mask(self) -> Condition:
        """Write out the mask of the tokens, if there are any."""
        if self.tokens is None or self.mask is not None:
            return self
        return self._replace(mask=torch.ones_like(self.tokens[..., 0], dtype=torch.bool))


class Moments(NamedTuple):
    """The posterior q(e | x) of unscaled latents e, a diagonal Gaussian.

    Attributes:
        mean: float [B, *latent shape].
        std: The same shape; None: e is a function of x.
    """

    mean: Tensor
    std: Tensor | None = None

    def part(self, rows: slice) -> Moments:
        """Select rows."""
        return Moments(self.mean[rows], None if self.std is None else self.std[rows])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Moments:
        """Move to a device."""
        mean = self.mean.to(device, non_blocking=non_blocking)
        std = None if self.std is None else self.std.to(device, non_blocking=non_blocking)
        return Moments(mean, std)


class Batch(NamedTuple):
    """A batch of data, with the indices that key its noise.

    Attributes:
        x0: float [B, ...] data, in [−1, 1] for images; of cached latents, their mean.
        condition: Labels, images and tokens of the samples.
        index: int64 [B] indices in the split, on the CPU; they key the noise of evaluation.
        row: int64 [B] rows in the global batch of the optimizer step, on the CPU; they key the
            noise of training. None outside training.
        latents: Of data that was encoded before, what a codec gave; else None.
        captions: Texts of the samples, or None; a model with an encoder makes tokens of them.
    """

    x0: Tensor
    condition: Condition
    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    row: Tensor | None = None
    latents: Moments | None = None
    captions: list[str] | None = None

    def part(self, rows: slice) -> Batch:
        """Select rows."""
        row, latents, captions = self.row, self.latents, self.captions
        return Batch(
            self.x0[rows],
            self.condition.rows(rows),
            self.index[rows],
            None if row is None else row[rows],
            None if latents is None else latents.part(rows),
            None if captions is None else captions[rows],
        )


@dataclass(frozen=True)
class DataSpec:
    """Specification of the data that a network is built for.

    Args:
        shape: Shape of one sample: [C, H, W] for images, [2] for points in the plane.
        data_range: Lowest and highest data value, to which sampling clips; None: unbounded.
        num_classes: Number of classes; None: no labels.
        image_channels: Channels of the condition image; 0: none.
        token_width: Width D of the condition's tokens; 0: none.
        words: All words of the data's captions, sorted; empty: there are none.
        caption_length: Words of the longest caption.
    """

    shape: tuple[int, ...]
    data_range: tuple[float, float] | None = (-1.0, 1.0)
    num_classes: int | None = None
    image_channels: int = 0
    token_width: int = 0
    words: tuple[str, ...] = ()
    caption_length: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "words", tuple(self.words))
        if self.data_range is not None:
            low, high = self.data_range
            object.__setattr__(self, "data_range", (float(low), float(high)))

    def plain(self) -> dict[str, Any]:
        """Convert to plain data, for a checkpoint; of captions only where there are some."""
        values = asdict(self)
        if not self.words:
            values = {k: v for k, v in values.items() if k not in ("words", "caption_length")}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}
