"""Classifier-free guidance: its settings, and the denoisers that apply it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from typing_extensions import override

from ddpm_lightning.batch import Condition
from ddpm_lightning.diffusion.denoiser import Denoises
from ddpm_lightning.diffusion.levels import Schedule, Time
from ddpm_lightning.diffusion.prediction import Prediction
from ddpm_lightning.errors import InputError
from ddpm_lightning.networks.network import Network

ROWS_APART = 32
"""Rows from which a CPU predicts with and without the condition apart: a doubled batch that large
costs more than twice as much, because its activations come as fresh pages from the system."""


@dataclass(frozen=True)
class Guidance:
    """Settings of classifier-free guidance.

    Args:
        scale: x0 = x0_null + scale·(x0_cond − x0_null): 0 is unconditional, 1 conditional, more
            pulls towards the class (Ho & Salimans 2022, eq. 6 with scale = 1 + w).
        interval: Guide only at levels low < t/T ≤ high, e.g. [0.2, 0.8]; elsewhere the prediction
            costs half (Kynkäänniemi et al. 2024, sec. 3, in sigma). null guides everywhere.
        rescale: Strong guidance widens x0; bring its standard deviation over each sample back to
            the conditional one's by this share, 0 (not at all) to 1 (Lin et al. 2023, sec. 3.4,
            on x0 so that it means the same under any parameterization; they use 0.7).

    Raises:
        InputError: interval or rescale is outside 0 to 1, or without a scale to act on.
    """

    scale: float = 1.0
    interval: tuple[float, float] | None = None
    rescale: float = 0.0

    def __post_init__(self) -> None:
        if self.scale is None or not math.isfinite(self.scale):
            raise InputError(f"guidance scale {self.scale}: give a finite number")
        if self.scale == 1 and (self.interval is not None or self.rescale):
            raise InputError(
                "guidance interval and rescale change nothing at scale 1; give another scale, too"
            )
        if self.interval is not None and not 0 <= self.interval[0] < self.interval[1] <= 1:
            raise InputError(
                f"guidance interval {list(self.interval)}: give [low, high] as shares of the "
                "levels, 0 ≤ low < high ≤ 1, e.g. [0.2, 0.8]"
            )
        if not 0 <= self.rescale <= 1:
            raise InputError(
                f"guidance rescale {self.rescale:g}: it lies between 0 (plain guidance) and 1"
            )

    @property
    def tag(self) -> str:
        """Name for files and tags, e.g. ``guidance3_rescale0.7``; empty at scale 1."""
        if self.scale == 1:
            return ""
        parts = [f"guidance{self.scale:g}"]
        if self.interval is not None:
            parts.append(f"interval{self.interval[0]:g}-{self.interval[1]:g}")
        if self.rescale:
            parts.append(f"rescale{self.rescale:g}")
        return "_".join(parts)


def as_guidance(guidance: float | Guidance) -> Guidance:
    """Read a number as guidance of that scale."""
    return guidance if isinstance(guidance, Guidance) else Guidance(guidance)


def guide(
    denoiser: Denoises, guidance: float | Guidance, negative: Condition = Condition()
) -> Denoises:
    """Wrap a conditional denoiser in classifier-free guidance; scale 1 returns it unchanged.

    Args:
        denoiser: The denoiser.
        guidance: The settings, or a scale.
        negative: One row of tokens to lead away from, in place of the null condition's.
    """
    guidance = as_guidance(guidance)
    if guidance.scale == 1:
        return denoiser
    guided: Denoises
    if guidance.rescale:
        guided = RescaledGuided(denoiser, guidance.scale, guidance.rescale, negative=negative)
    elif guidance.scale == 0:
        guided = Unconditional(denoiser)
    else:
        guided = Guided(denoiser, guidance.scale, negative=negative)
    return guided if guidance.interval is None else InInterval(denoiser, guided, guidance.interval)


@dataclass(frozen=True, eq=False)
class _Wrapper:
    denoiser: Denoises

    @property
    def net(self) -> Network | None:
        """The network inside."""
        return self.denoiser.net

    @property
    def schedule(self) -> Schedule:
        """The forward process."""
        return self.denoiser.schedule


@dataclass(frozen=True, eq=False)
class Unconditional(_Wrapper):
    """A denoiser that ignores its label and tokens: guidance of scale 0."""

    def __call__(self, x_t: Tensor, t: Time, condition: Condition = Condition()) -> Prediction:
        """Predict x0 without label and tokens; arguments as for any denoiser."""
        return self.denoiser(x_t, t, condition.null())


@dataclass(frozen=True, eq=False)
class Guided(_Wrapper):
    """Classifier-free guidance: x0 = x0_null + scale·(x0_cond − x0_null).

    With a negative condition, of one row, its tokens stand in place of the null tokens.
    """

    scale: float
    negative: Condition = field(default=Condition(), kw_only=True)

    def __call__(self, x_t: Tensor, t: Time, condition: Condition = Condition()) -> Prediction:
        """Predict x0 under guidance, on a GPU and for few rows by one pass of a doubled batch."""
        if condition.label is None and condition.tokens is None:
            raise InputError(
                "guidance needs labels, or a prompt; give one, or guidance 1 to leave it out"
            )
        null = condition.null()
        if self.negative.tokens is not None:
            negative = self.negative.repeated(torch.zeros(len(x_t), dtype=torch.int64))
            null = null._replace(tokens=negative.tokens, mask=negative.mask)
        if x_t.device.type == "cpu" and len(x_t) >= ROWS_APART:
            conditional = self.denoiser(x_t, t, condition)
            other = self.denoiser(x_t, t, null)
        else:
            both_t = torch.cat([t, t]) if isinstance(t, Tensor) else t
            both = self.denoiser(torch.cat([x_t, x_t]), both_t, condition.followed_by(null))
            conditional, other = both.rows(slice(len(x_t))), both.rows(slice(len(x_t), None))
        return conditional.with_x0(self.combine(conditional.x0, other.x0))

    def combine(self, conditional: Tensor, null: Tensor) -> Tensor:
        """Guided x0 from the conditional and the unconditional one, [B, ...] each."""
        return null + self.scale * (conditional - null)


@dataclass(frozen=True, eq=False)
class RescaledGuided(Guided):
    """Classifier-free guidance with its standard deviation rescaled to the conditional one's.

    x0·(1 − rescale + rescale·std(x0_cond)/std(x0)), over each sample (Lin et al. 2023, sec. 3.4).
    """

    rescale: float

    @override
    def combine(self, conditional: Tensor, null: Tensor) -> Tensor:
        x0 = super().combine(conditional, null)
        axes = list(range(1, x0.ndim))
        wanted = conditional.std(axes, correction=0, keepdim=True)
        std = x0.std(axes, correction=0, keepdim=True)
        ratio = torch.where(std > 0, wanted / std, 1.0)  # 1 where x0 is constant
        return x0 * (1 - self.rescale + self.rescale * ratio)


@dataclass(frozen=True, eq=False)
class InInterval(_Wrapper):
    """Guidance interval: ``inside`` at levels low < t/T ≤ high, the denoiser elsewhere."""

    inside: Denoises
    interval: tuple[float, float]

    def __call__(self, x_t: Tensor, t: Time, condition: Condition = Condition()) -> Prediction:
        """Predict x0; arguments as for any denoiser."""
        # Whole levels, because 0.29·100 is a little less than 29 in floating point.
        first, last = (math.floor(share * self.schedule.T + 1e-6) for share in self.interval)
        if not isinstance(t, Tensor):
            denoiser = self.inside if first < t <= last else self.denoiser
            return denoiser(x_t, t, condition)
        inside, outside = (d(x_t, t, condition) for d in (self.inside, self.denoiser))
        chosen = ((t > first) & (t <= last)).view(-1, *[1] * (x_t.ndim - 1))
        extra = None
        if inside.extra is not None and outside.extra is not None:
            extra = torch.where(chosen, inside.extra, outside.extra)
        x0 = torch.where(chosen, inside.x0, outside.x0)
        return replace(inside.with_x0(x0), extra=extra)
