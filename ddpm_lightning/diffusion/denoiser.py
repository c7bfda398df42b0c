"""From a network to a prediction of x0."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ddpm_lightning.batch import Condition
from ddpm_lightning.diffusion.levels import Schedule, Time
from ddpm_lightning.diffusion.parameterizations import Parameterization
from ddpm_lightning.diffusion.prediction import FixedSmall, Prediction, Variance
from ddpm_lightning.errors import InputError
from ddpm_lightning.networks.network import Network
from ddpm_lightning.typed import kind_of


class Denoises(Protocol):
    """What samplers take: a :class:`Denoiser`, a guided one or an oracle."""

    @property
    def net(self) -> Network | None:
        """The network inside, or None."""

    @property
    def schedule(self) -> Schedule:
        """The forward process."""

    def __call__(self, x_t: Tensor, t: Time, condition: Condition = Condition()) -> Prediction:
        """Predict x0 from x_t [B, ...] at level(s) t, given a condition of B rows."""


@dataclass(frozen=True, eq=False)
class Denoiser:
    """A network read as a prediction of x0. A plain value: it registers and owns nothing.

    The parameterization says how x0 is read off the network, and must suit the schedule.

    Raises:
        InputError: The parameterization cannot work with this schedule.
    """

    net: Network
    schedule: Schedule
    parameterization: Parameterization
    variance: Variance = FixedSmall()  # noqa: RUF009 (a value without state)

    def __post_init__(self) -> None:
        self.parameterization.check(self.schedule)

    def __call__(self, x_t: Tensor, t: Time, condition: Condition = Condition()) -> Prediction:
        """Predict x0 = c_skip·x_t + c_out·F(c_in·x_t, c_noise, condition) (EDM eq. 7).

        Everything but the network itself is computed in float32 at least. Arguments as for
        Denoises.
        """
        if isinstance(t, int) and not 1 <= t <= self.schedule.T:
            raise InputError(f"level {t}: noisy data is at a level from 1 to {self.schedule.T}")
        if isinstance(t, float) and not 0 < t <= self.schedule.T:
            raise InputError(f"real time {t}: give one above 0, up to {self.schedule.T}")
        for name, part in condition._asdict().items():
            if part is not None and len(part) != len(x_t):
                raise InputError(
                    f"a condition with {len(part)} rows ({name}) for a batch of {len(x_t)}"
                )
        x_t = x_t.to(torch.promote_types(x_t.dtype, torch.float32))
        level = self.schedule.level(t, like=x_t)
        c = self.parameterization.coefficients(level)
        c_noise = c.c_noise
        if not isinstance(c_noise, Tensor):
            c_noise = x_t.new_full((len(x_t),), c_noise)
        net_dtype = next(self.net.parameters(), x_t).dtype
        output = self.net((c.c_in * x_t).to(net_dtype), c_noise, condition)
        if not isinstance(output, Tensor):
            raise InputError(f"{type(self.net).__name__} returns {kind_of(output)}, not a tensor")
        output = output.to(x_t.dtype)
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
            level=level,
            reverse_variance=self.variance,
            output=output,
            coefficients=c,
            extra=extra if extra.shape[1] else None,
        )


@contextmanager
def evaluation_mode(net: nn.Module | None) -> Iterator[None]:
    """Put a network in evaluation mode; afterwards each part has its own mode back."""
    training = [module for module in net.modules() if module.training] if net is not None else []
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
