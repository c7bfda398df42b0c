"""From network to prediction of x0, given images beside x_t, and classifier-free guidance."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar, overload

import torch
from torch import Tensor

from ddpm_lightning.diffusion.parameterizations import Parameterization
from ddpm_lightning.diffusion.schedules import Scalar, Schedule
from ddpm_lightning.diffusion.variances import FixedSmall, Variance
from ddpm_lightning.errors import InputError
from ddpm_lightning.networks.network import NULL_LABEL, Network


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a denoiser says about noisy data: x0, and from it eps and the reverse variance.

    Args:
        x0: [B, ...] expectation of the data given x_t.
        x_t: [B, ...] the noisy input.
        t: Its level(s), an int or int64 [B].
        schedule: The forward process.
        reverse_variance: The rule behind :meth:`variance`.
        output: [B, ...] the network's raw output F; None where x0 was changed since.
        extra: [B, ...] the network's extra channels for a learned variance, or None.
    """

    x0: Tensor
    x_t: Tensor
    t: int | Tensor
    schedule: Schedule
    reverse_variance: Variance
    output: Tensor | None = None
    extra: Tensor | None = None

    @property
    def eps(self) -> Tensor:
        """[B, ...] the noise that belongs to x0: (x_t − alpha·x0) / sigma, whatever changed x0."""
        alpha, sigma = self.schedule.at(self.t, like=self.x_t)
        return (self.x_t - alpha * self.x0) / sigma

    def variance(self, s: int | Tensor) -> Scalar:
        """Variance of the reverse step p(x_s | x_t), for any s < t."""
        return self.reverse_variance(self, s)

    def clip(
        self, data_range: tuple[float, float] | None, threshold: float | None = None
    ) -> Prediction:
        """Limit x0 to the data's range; eps follows. Without a range nothing changes.

        Args:
            data_range: [low, high], or None.
            threshold: Share of each sample's values that stays, for dynamic thresholding (Imagen,
                sec. 2.3): with r their reach from the range's middle, in half ranges, x0 is cut
                at r and divided by it where r > 1. None cuts at the range.
        """
        if data_range is None:
            return self
        low, high = data_range
        if threshold is None:
            return replace(self, x0=self.x0.clamp(low, high), output=None)
        middle, half = (low + high) / 2, (high - low) / 2
        scaled = (self.x0 - middle) / half
        distances = scaled.abs().flatten(1)
        # A hair down: 0.55·100 is a little more than 55 in floating point.
        kept = math.ceil(threshold * distances.shape[1] - 1e-9)
        # kthvalue, because quantile refuses more than 2^24 numbers.
        reach = distances.kthvalue(max(kept, 1), dim=1).values.clamp(min=1)
        reach = reach.view(-1, *[1] * (self.x0.ndim - 1))  # [B, 1, …]
        return replace(self, x0=middle + half * scaled.clamp(-reach, reach) / reach, output=None)


class Denoises(Protocol):
    """What samplers take: a :class:`Denoiser`, a :class:`Guided` one or an oracle."""

    @property
    def net(self) -> Network | None:
        """The network inside, or None."""

    @property
    def schedule(self) -> Schedule:
        """The forward process."""

    def __call__(self, x_t: Tensor, t: int | Tensor, y: Tensor | None = None) -> Prediction:
        """Predict x0 from x_t [B, ...] at level(s) t, with labels y [B] or None."""


AnyDenoiser = TypeVar("AnyDenoiser", bound=Denoises)


@dataclass(frozen=True, eq=False)
class Denoiser:
    """A network read as a prediction of x0. A plain value: it registers and owns nothing.

    Args:
        net: The learned function F.
        schedule: The forward process.
        parameterization: How x0 is read off F.
        variance: Variance of the reverse step.
        condition: [B, K, ...] given images, which the network sees as K more channels of its
            input; None for none. See :func:`given`.

    Raises:
        InputError: The parameterization cannot work with this schedule.
    """

    net: Network
    schedule: Schedule
    parameterization: Parameterization
    variance: Variance = FixedSmall()  # noqa: RUF009 (a value without state)
    condition: Tensor | None = None

    def __post_init__(self) -> None:
        if self.condition is None:  # given() binds one to a denoiser that was checked
            self.parameterization.check(self.schedule)

    def __call__(self, x_t: Tensor, t: int | Tensor, y: Tensor | None = None) -> Prediction:
        """Predict x0 = c_skip·x_t + c_out·F(c_in·x_t, c_noise, y) (EDM eq. 7).

        Everything but the network itself is computed in float32 at least. A condition is stacked
        onto c_in·x_t as it is, for it holds no noise (as in SR3, Saharia et al. 2021).

        Args:
            x_t: [B, C, ...] noisy data.
            t: Its level in 1…T, or int64 [B].
            y: int64 [B] class labels (−1: unconditional), or None.

        Raises:
            InputError: The level or the network's channels do not fit.
        """
        if isinstance(t, int) and not 1 <= t <= self.schedule.T:
            raise InputError(f"level {t}: noisy data is at a level from 1 to {self.schedule.T}")
        x_t = x_t.to(torch.promote_types(x_t.dtype, torch.float32))
        c = self.parameterization.coefficients(self.schedule, t, like=x_t)
        c_noise = c.c_noise
        if not isinstance(c_noise, Tensor):
            c_noise = x_t.new_full((len(x_t),), c_noise)
        net_dtype = next(self.net.parameters(), x_t).dtype
        x = self._with_condition((c.c_in * x_t).to(net_dtype))
        output = self.net(x, c_noise, y).to(x_t.dtype)
        channels = x_t.shape[1]
        expected = channels + self.variance.extra_channels(channels)
        if output.shape[1] != expected:
            raise InputError(
                f"{type(self.net).__name__} gives {output.shape[1]} channels, but "
                f"{type(self.variance).__name__} on data of {channels} needs {expected}; build it "
                "with the out_channels it is asked for"
            )
        output, extra = output[:, :channels], output[:, channels:]
        return Prediction(
            x0=c.c_skip * x_t + c.c_out * output,
            x_t=x_t,
            t=t,
            schedule=self.schedule,
            reverse_variance=self.variance,
            output=output,
            extra=extra if extra.shape[1] else None,
        )

    def _with_condition(self, x: Tensor) -> Tensor:
        if self.condition is None:
            return x
        times, rest = divmod(len(x), len(self.condition))
        if rest:
            raise InputError(
                f"{len(self.condition)} condition images for a batch of {len(x)}; give one each"
            )
        # Guidance and the like repeat the whole batch.
        condition = self.condition.to(x).repeat(times, *[1] * (x.ndim - 1))
        return torch.cat([x, condition], dim=1)


@dataclass(frozen=True)
class Guidance:
    """How strongly samples are pulled towards their class, and where.

    Args:
        scale: x0 = x0_null + scale·(x0_cond − x0_null): 0 is unconditional, 1 conditional, more
            pulls towards the class (Ho & Salimans 2022, eq. 6 with scale = 1 + w).
        interval: Guide only at levels low < t/T ≤ high, e.g. [0.2, 0.8]; elsewhere the prediction
            is the plain conditional one, at half the cost (Kynkäänniemi et al. 2024, sec. 3, who
            state the interval in sigma). null guides everywhere.
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
        if not math.isfinite(self.scale):
            raise InputError(f"guidance scale {self.scale}: give a finite number")
        if self.scale == 1 and (self.interval is not None or self.rescale):
            raise InputError(
                "guidance interval and rescale change nothing at strength 1; give a strength, too"
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
        """What it is called in the names of results, e.g. guidance3_rescale0.7; "" for none."""
        if self.scale == 1:
            return ""
        parts = [f"guidance{self.scale:g}"]
        if self.interval is not None:
            parts.append(f"interval{self.interval[0]:g}-{self.interval[1]:g}")
        if self.rescale:
            parts.append(f"rescale{self.rescale:g}")
        return "_".join(parts)


@dataclass(frozen=True, eq=False)
class Guided:
    """Classifier-free guidance: a denoiser made of a conditional denoiser.

    Args:
        denoiser: A denoiser that takes labels.
        guidance: Its strength, as a number or with the settings of :class:`Guidance`.
    """

    denoiser: Denoises
    guidance: float | Guidance

    @property
    def net(self) -> Network | None:
        """The network inside."""
        return self.denoiser.net

    @property
    def schedule(self) -> Schedule:
        """The forward process."""
        return self.denoiser.schedule

    def __call__(self, x_t: Tensor, t: int | Tensor, y: Tensor | None = None) -> Prediction:
        """Predict x0 under guidance; both halves go through the network as one batch.

        Where only one counts, outside the interval or at scale 0, the other is not computed.

        Args:
            x_t: [B, C, ...] noisy data.
            t: Its level in 1…T, or int64 [B].
            y: int64 [B] class labels to guide towards.

        Raises:
            InputError: There are no labels.
        """
        if y is None:
            raise InputError("guidance needs labels; give labels, or guidance 1 to leave it out")
        guidance = as_guidance(self.guidance)
        if isinstance(t, int) and not self._guides(t):
            return self.denoiser(x_t, t, y)
        if guidance.scale == 0 and not guidance.rescale and isinstance(t, int):
            return self.denoiser(x_t, t, torch.full_like(y, NULL_LABEL))
        both_t = t if isinstance(t, int) else torch.cat([t, t])
        both_y = torch.cat([y, torch.full_like(y, NULL_LABEL)])
        both = self.denoiser(torch.cat([x_t, x_t]), both_t, both_y)
        x0_cond, x0_null = both.x0.chunk(2)
        x0 = x0_null + guidance.scale * (x0_cond - x0_null)
        if guidance.rescale:
            x0 = x0 * (1 - guidance.rescale + guidance.rescale * _spread_ratio(x0_cond, x0))
        if not isinstance(t, int) and guidance.interval is not None:
            rows = (-1,) + (1,) * (x0.ndim - 1)
            x0 = torch.where(self._guides(t).view(rows), x0, x0_cond)
        return replace(
            both,
            x0=x0,
            x_t=both.x_t[: len(x_t)],
            t=t,
            output=None,
            extra=None if both.extra is None else both.extra[: len(x_t)],
        )

    @overload
    def _guides(self, t: int) -> bool: ...
    @overload
    def _guides(self, t: Tensor) -> Tensor: ...
    def _guides(self, t: int | Tensor) -> bool | Tensor:
        low, high = as_guidance(self.guidance).interval or (0, 1)
        # Whole levels, once: 0.29·100 is a little less than 29 in floating point.
        first, last = (math.floor(share * self.schedule.T + 1e-6) for share in (low, high))
        return (t > first) & (t <= last)


def guide(denoiser: AnyDenoiser, guidance: float | Guidance) -> AnyDenoiser | Guided:
    """Wrap a denoiser in classifier-free guidance; strength 1 leaves it as it is."""
    return denoiser if as_guidance(guidance).scale == 1 else Guided(denoiser, guidance)


def given(denoiser: AnyDenoiser, condition: Tensor | None) -> AnyDenoiser:
    """Bind condition images: from p(x0 | x_t) to p(x0 | x_t, condition).

    What is done with the denoiser afterwards (sampling, guidance, a loss, a bound) does not see
    the difference.

    Args:
        denoiser: A :class:`Denoiser` whose network takes more channels than the data has, guided
            or not.
        condition: [B, K, ...], row b for row b of the batch; a batch of k·B rows uses them k
            times. None leaves the denoiser as it is.
    """
    if condition is None:
        return denoiser
    if isinstance(denoiser, Guided):
        return replace(denoiser, denoiser=given(denoiser.denoiser, condition))
    if isinstance(denoiser, Denoiser):
        return replace(denoiser, condition=condition)
    raise InputError(f"{type(denoiser).__name__} takes no condition images")


def as_guidance(guidance: float | Guidance) -> Guidance:
    """Read a number as guidance of that strength."""
    return guidance if isinstance(guidance, Guidance) else Guidance(guidance)


def _spread_ratio(wanted: Tensor, x: Tensor) -> Tensor:
    """std(wanted) / std(x) over each sample, [B, 1, …]; 1 where x is constant."""
    axes = list(range(1, x.ndim))
    std_wanted = wanted.std(axes, correction=0, keepdim=True)
    std = x.std(axes, correction=0, keepdim=True)
    return torch.where(std > 0, std_wanted / std, 1.0)
