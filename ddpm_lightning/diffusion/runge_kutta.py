"""An adaptive Runge–Kutta method with steps of its own for each row of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ddpm_lightning.errors import InputError

Slope = Callable[[Tensor, Tensor], Tensor]
"""slope(a, y) → dy/da [B, N] at places a [B] and states y [B, N]."""


class RungeKutta45:
    """Dormand–Prince 5(4) with local extrapolation: coefficients and step control of scipy's RK45.

    Every row has its own step, accepted or repeated by its own error, so that what becomes of a
    row does not depend on the batch that it is in. The state stays on its device; what comes to
    the CPU is one answer a step, whether rows are left. A row that is done waits for the others.

    Args:
        slope: The right-hand side.
        start: Where all rows begin.
        y: [B, N] the states there.
        rtol: Relative tolerance of a step's error, root mean square over a row.
        atol: Absolute tolerance, likewise.
        most: Evaluations of the slope after which it gives up.

    Attributes:
        y: [B, N] the states at the end of the last :meth:`advance`.
        slope: [B, N] the slope there.
        evaluations: Evaluations of the slope so far, of all rows each.
    """

    def __init__(
        self, slope: Slope, start: float, y: Tensor, rtol: float, atol: float, most: int
    ) -> None:
        from scipy.integrate import RK45

        self._function = slope
        self._tolerance = rtol, atol
        self._most = most
        self._a, self._b, self._c, self._e = RK45.A, RK45.B, RK45.C, RK45.E
        wide = torch.float32 if y.device.type == "mps" else torch.float64  # MPS has no float64
        self._at = torch.full((len(y),), start, dtype=wide, device=y.device)
        self._step: Tensor | None = None  # [B], above 0; None before the first
        self._repeated = torch.zeros(len(y), dtype=torch.bool, device=y.device)
        self.evaluations = 0
        self.y = y
        self.slope = self._evaluate(self._at, y)

    def advance(self, end: float) -> None:
        """Integrate all rows to the place ``end``.

        Raises InputError: The tolerance is not reached within the evaluations allowed.
        """
        while bool((left := (end - self._at).abs()).gt(0).any()):
            if self._step is None:
                self._step = self._first_step(end, left)
            h = torch.minimum(self._step, left)  # 0 for a row that is done
            signed = h * (end - self._at).sign()
            y, slope, error = self._try(signed)
            # One that is not finite passes, and is found in the samples.
            passed = ~(error >= 1) & (left > 0)
            reached = torch.where(h < left, self._at + signed, end)
            self._at = torch.where(passed, reached, self._at)
            self.y = torch.where(passed[:, None], y, self.y)
            self.slope = torch.where(passed[:, None], slope, self.slope)
            self._step = torch.where(left > 0, h * self._factor(error, passed), self._step)
            self._repeated = ~passed & (left > 0)

    def _try(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """State and slope [B, N] after signed steps h [B], and error over tolerance [B]."""
        k, signed = [self.slope], h[:, None].to(self.y.dtype)
        for weights, share in zip(self._a[1:], self._c[1:], strict=True):
            y = self.y + signed * _combined(weights, k)
            k.append(self._evaluate(self._at + float(share) * h, y))
        y = self.y + signed * _combined(self._b, k)
        k.append(self._evaluate(self._at + h, y))
        scale = self._scale(torch.maximum(y.abs(), self.y.abs()))
        return y, k[-1], _rms(signed * _combined(self._e, k) / scale).to(h.dtype)

    def _factor(self, error: Tensor, passed: Tensor) -> Tensor:
        """By how much the next step is longer, [B]: a fifth to ten times, none after a repeat."""
        factor = (0.9 * error.clamp(min=1e-30) ** -0.2).clamp(0.2, 10)
        return torch.where(~passed | self._repeated, factor.clamp(max=1), factor)

    def _first_step(self, end: float, left: Tensor) -> Tensor:
        """The first step [B] by Hairer, Nørsett & Wanner, sec. II.4, from one evaluation more."""
        scale = self._scale(self.y.abs())
        size, slope = (_rms(v / scale).to(left.dtype) for v in (self.y, self.slope))
        h = torch.where((size < 1e-5) | (slope < 1e-5), 1e-6, 0.01 * size / slope).minimum(left)
        signed = h * (end - self._at).sign()
        ahead = self._evaluate(self._at + signed, self.y + signed[:, None].to(self.y) * self.slope)
        bend = _rms((ahead - self.slope) / scale).to(left.dtype) / h
        largest = torch.maximum(slope, bend)
        longer = torch.where(largest <= 1e-15, (1e-3 * h).clamp(min=1e-6), (0.01 / largest) ** 0.2)
        return torch.minimum(100 * h, longer).minimum(left)

    def _scale(self, size: Tensor) -> Tensor:
        rtol, atol = self._tolerance
        return atol + rtol * size

    def _evaluate(self, at: Tensor, y: Tensor) -> Tensor:
        self.evaluations += 1
        if self.evaluations > self._most:
            rtol, atol = self._tolerance
            raise InputError(
                f"the ODE is not solved to rtol {rtol:g} and atol {atol:g} within {self._most} "
                "evaluations; give larger tolerances, e.g. rtol 1e-4 and atol 1e-4"
            )
        return self._function(at, y)


def _combined(weights: Sequence[float], slopes: list[Tensor]) -> Tensor:
    """Sum slopes by the first of these weights."""
    terms = zip(weights, slopes, strict=False)  # the tableau's rows end in zeros
    return torch.stack([float(weight) * slope for weight, slope in terms]).sum(0)


def _rms(values: Tensor) -> Tensor:
    return values.square().mean(1).sqrt()
