"""The noise schedules, from clean data at level 0 to noise at level T."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from ddpm_lightning.diffusion.levels import Schedule
from ddpm_lightning.errors import InputError, above, at_least
from ddpm_lightning.memory import check_levels


class BetaSchedule(Schedule):
    """A schedule stated by its betas, which rise between two end points.

    A subclass states :meth:`betas`. The end points are meant for 1000 levels; for another T they
    are scaled by 1000/T, so that x_T is noise for every T.

    Args:
        T: Number of noise levels, more than 20 with the default end points.
        beta_start: beta_1 at 1000 levels.
        beta_end: beta_T at 1000 levels.
        rescale: Scale both by 1000/T; false takes them as they stand.

    Raises:
        InputError: A beta leaves (0, 1].
    """

    meant_for: ClassVar[int] = 1000
    """Number of levels that the end points are meant for."""

    def __init__(
        self,
        T: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        rescale: bool = True,
    ) -> None:
        check_levels(type(self).__name__, max(T, 1))
        scale = self.meant_for / T if T > 0 and rescale else 1.0
        first, last = scale * beta_start, scale * beta_end
        if T < 1 or not 0 < first <= last < 1:
            raise InputError(
                f"{type(self).__name__}(T={T}): betas from {first:.4g} to {last:.4g} do not rise "
                f"within (0, 1); use more levels (T > {scale * T * beta_end:.0f} with these end "
                "points) or smaller end points"
            )
        super().__init__(*tables_from_betas(self.betas(first, last, T).double()))

    @abstractmethod
    def betas(self, first: float, last: float, T: int) -> Tensor:
        """Give beta_1…beta_T, float64 [T], from the (scaled) end points."""


def tables_from_betas(betas: Tensor) -> tuple[Tensor, Tensor]:
    """Turn betas in (0, 1], float64 [T], into alpha and sigma of the levels 0…T.

    alpha_t² = prod_{i≤t} (1 − beta_i) (DDPM, above eq. 4); sigma_t² = 1 − alpha_t² by expm1, which
    keeps every digit where alpha_t² is close to 1.

    Raises InputError: A beta is outside (0, 1].
    """
    if not bool(((betas > 0) & (betas <= 1)).all()):
        raise InputError(
            f"betas must lie in (0, 1], but here they span {float(betas.min()):.4g} to "
            f"{float(betas.max()):.4g}"
        )
    log_alpha_bar = torch.cat([betas.new_zeros(1), torch.log1p(-betas).cumsum(0)])
    return torch.exp(0.5 * log_alpha_bar), torch.sqrt(-torch.expm1(log_alpha_bar))


class Linear(BetaSchedule):
    """Betas rise linearly (DDPM, sec. 4): the schedule of the CIFAR-10 recipe at T = 1000."""

    @override
    def betas(self, first: float, last: float, T: int) -> Tensor:
        return _rising(first, last, T)


class Quadratic(BetaSchedule):
    """Square roots of the betas rise linearly: latent diffusion's "scaled linear" schedule.

    beta_t = (linear from sqrt(beta_1) to sqrt(beta_T))² (Rombach et al. 2022, their code).
    Gentler than Linear: the defaults at T = 1000 end at alpha_T = 0.027 where Linear has 0.0064.
    """

    @override
    def betas(self, first: float, last: float, T: int) -> Tensor:
        return _rising(math.sqrt(first), math.sqrt(last), T).square()


class SigmoidBetas(BetaSchedule):
    """Betas rise along a sigmoid from −6 to 6 (the annotated diffusion model, GeoDiff's code).

    beta_t = σ(linear from −6 to 6)·(beta_T − beta_1) + beta_1.
    """

    span: ClassVar[tuple[float, float]] = (-6, 6)
    """Where on the sigmoid the betas begin and end."""

    @override
    def betas(self, first: float, last: float, T: int) -> Tensor:
        return torch.sigmoid(_rising(*self.span, T)) * (last - first) + first


class SohlDickstein(SigmoidBetas):
    """The swiss roll's schedule of the first diffusion paper (Sohl-Dickstein et al. 2015).

    beta_t = σ(linear from −18 to 10)·(0.3 − 1e-5) + 1e-5 at T = 40, as its re-implementations
    have it: beta_1 = 1.0005e-5, beta_40 = 0.29999, alpha_bar_40 = 0.00636. Both end points are
    scaled by 40/T for another T.

    Args:
        T: Number of noise levels, more than 12.
    """

    meant_for = 40
    span = (-18, 10)

    def __init__(self, T: int = 40) -> None:
        super().__init__(T, 1e-5, 0.3)


class Cosine(Schedule):
    """alpha_bar follows a squared cosine (improved DDPM, eq. 17); betas are capped from above.

    Use V or X0 with it: at t = T an error of eps is amplified 20,000-fold in x0.

    Args:
        T: Number of noise levels.
        offset: The paper's s, which keeps the first betas from vanishing.
        max_beta: Cap on beta_t, the paper's 0.999.
    """

    def __init__(self, T: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> None:
        check_levels("Cosine", T)
        t = torch.arange(T + 1, dtype=torch.float64) / T
        f = torch.cos((t + offset) / (1 + offset) * math.pi / 2).square()
        betas = 1 - f[1:] / f[:-1]
        self.offset = offset
        self.is_closed = bool((betas[:-1] <= max_beta).all())
        super().__init__(*tables_from_betas(betas.clamp(max=max_beta)))

    @override
    def curve(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Follow eq. 17 itself down to alpha_T, unless max_beta caps more than the last beta."""
        if not self.is_closed:
            return super().curve(u)
        first, here = (
            (share + self.offset) / (1 + self.offset) * math.pi / 2
            for share in (torch.zeros_like(u), u)
        )
        alpha = here.cos() / first.cos()
        # 1 − alpha² as a product, which keeps its digits near the data.
        sigma = ((here - first).sin() * (here + first).sin()).sqrt() / first.cos()
        return alpha.clamp(min=float(self.alpha[-1])), sigma.clamp(max=float(self.sigma[-1]))


class Sigmoid(Schedule):
    """alpha_bar falls along a sigmoid (Jabri et al. 2022, fig. 8; Chen 2023, alg. 1).

    alpha_bar(t/T) = (σ(end/tau) − σ((start + (end − start)·t/T)/tau)) / (σ(end/tau) −
    σ(start/tau)), stretched to go from 1 to 0 and floored at min_alpha_bar.

    Args:
        T: Number of noise levels.
        start: Where on the sigmoid data lies.
        end: Where noise lies.
        tau: Temperature: larger is straighter; smaller holds on to data and noise for longer.
        min_alpha_bar: Floor of alpha_bar, the papers' 1e-9; 0 gives zero terminal SNR.

    Raises:
        InputError: The arguments describe no falling curve.
    """

    def __init__(
        self,
        T: int = 1000,
        start: float = -3.0,
        end: float = 3.0,
        tau: float = 1.0,
        min_alpha_bar: float = 1e-9,
    ) -> None:
        check_levels("Sigmoid", T)
        above(0, self, tau=tau)
        curve = torch.sigmoid(_rising(start / tau, end / tau, T + 1))
        alpha_bar = ((curve[-1] - curve) / (curve[-1] - curve[0])).clamp(min=min_alpha_bar)
        # The same from the other side, which keeps the digits of 1 − alpha_bar near t = 0.
        one_minus = ((curve - curve[0]) / (curve[-1] - curve[0])).clamp(max=1 - min_alpha_bar)
        if not bool((alpha_bar[1:] < alpha_bar[:-1]).all()):
            raise InputError(
                f"Sigmoid(T={T}, tau={tau}, min_alpha_bar={min_alpha_bar}): several levels have "
                "the same alpha_bar, where the curve is flat or below the floor; use a larger tau "
                "or a smaller min_alpha_bar"
            )
        super().__init__(alpha_bar.sqrt(), one_minus.sqrt())


class Karras(Schedule):
    """Variance explodes: alpha = 1 and sigma from sigma_min to sigma_max (EDM eq. 5).

    sigma_t = (linear in t from sigma_min^(1/rho) to sigma_max^(1/rho))^rho. Use EDMPreconditioning
    with it: the other parameterizations hand the network x_t as it is, as large as sigma_max.

    Args:
        T: Number of noise levels.
        sigma_min: sigma_1, for data of standard deviation about 0.5.
        sigma_max: sigma_T.
        rho: Larger puts more of the levels near sigma_min; 7 is EDM's.
    """

    def __init__(
        self, T: int = 1000, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
    ) -> None:
        check_levels("Karras", T)
        at_least(2, self, T=T)
        above(0, self, sigma_min=sigma_min, rho=rho)
        above(sigma_min, self, sigma_max=sigma_max)
        sigma = _rising(sigma_min ** (1 / rho), sigma_max ** (1 / rho), T) ** rho
        self.ends = sigma_min, sigma_max
        self.rho = rho
        super().__init__(torch.ones(T + 1, dtype=torch.float64), torch.cat([_ZERO, sigma]))

    @override
    def curve(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Follow eq. 5 from level 1 up; below, sigma = sigma_min·t."""
        t = u * self.T
        first, last = (sigma ** (1 / self.rho) for sigma in self.ends)
        warped = first + (t.clamp(min=1) - 1) / (self.T - 1) * (last - first)
        return torch.ones_like(u), warped**self.rho * t.clamp(max=1)


class VP(Schedule):
    """The variance-preserving SDE, dx = −½·beta(u)·x du + √beta(u) dw (Song et al. 2021, eq. 11).

    beta(u) rises linearly in the time u = t/T in (0, 1], so alpha = exp(−½·B) and sigma² =
    1 − exp(−B) with B(u) = beta_min·u + ½·(beta_max − beta_min)·u² (app. C): the limit of Linear
    for many levels, and at T = 1000 close to it.

    Args:
        T: Number of noise levels.
        beta_min: beta at the data, above 0.
        beta_max: beta at the noise, beta_min or more.
    """

    def __init__(self, T: int = 1000, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        check_levels("VP", T)
        above(0, self, beta_min=beta_min)
        at_least(beta_min, self, beta_max=beta_max)
        self.beta_min = beta_min
        self.beta_max = beta_max
        super().__init__(*self.curve(_times(T, 0)))

    @override
    def curve(self, u: Tensor) -> tuple[Tensor, Tensor]:
        integral = u * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * u)
        return torch.exp(-integral / 2), torch.sqrt(-torch.expm1(-integral))


class VE(Schedule):
    """The variance-exploding SDE: alpha = 1, sigma = sigma_min·(sigma_max/sigma_min)^u, u = t/T.

    Geometric noise levels, those of score matching with Langevin dynamics (Song & Ermon 2019;
    Song et al. 2021, eq. 9 and app. C). Level 0 is clean data, while sigma tends to sigma_min
    above it. Use EDMPreconditioning with it: the other parameterizations hand the network x_t as
    it is.

    Args:
        T: Number of noise levels.
        sigma_min: sigma where u tends to 0, above 0.
        sigma_max: sigma_T, about the largest distance between two data (Song & Ermon 2020).
    """

    def __init__(self, T: int = 1000, sigma_min: float = 0.01, sigma_max: float = 50.0) -> None:
        check_levels("VE", T)
        above(0, self, sigma_min=sigma_min)
        above(sigma_min, self, sigma_max=sigma_max)
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max
        alpha, sigma = self.curve(_times(T, 1))
        super().__init__(torch.cat([1 - _ZERO, alpha]), torch.cat([_ZERO, sigma]))

    @override
    def curve(self, u: Tensor) -> tuple[Tensor, Tensor]:
        ratio = self.sigma_max / self.sigma_min
        return torch.ones_like(u), self.sigma_min * torch.exp(u * math.log(ratio))


class Straight(Schedule):
    """Straight lines from data to noise: alpha = 1 − t/T, sigma = t/T.

    Flow matching with the optimal-transport path (Lipman et al. 2023, eq. 20 with sigma_min = 0;
    rectified flow, Liu et al. 2023). Its natural parameterization is Velocity. alpha_T = 0.

    Args:
        T: Number of noise levels.
    """

    def __init__(self, T: int = 1000) -> None:
        check_levels("Straight", T)
        t = torch.arange(T + 1, dtype=torch.float64)
        super().__init__((T - t) / T, t / T)

    @override
    def curve(self, u: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - u, u


class ZeroTerminalSNR(Schedule):
    """Another schedule with alpha shifted and stretched so that alpha_T = 0 (Lin et al. 2023).

    Algorithm 1: alpha_t ← alpha_1·(alpha_t − alpha_T)/(alpha_1 − alpha_T), the first noise level
    stays; alpha² + sigma² stays what it was at every level. Use V or X0 with it.

    Args:
        schedule: The schedule to rescale; its alpha must fall.

    Raises:
        InputError: alpha does not fall (Karras), so nothing can be stretched.
    """

    def __init__(self, schedule: Schedule) -> None:
        alpha, sigma = schedule.alpha[1:], schedule.sigma[1:]
        first, last = alpha[0], alpha[-1]
        if not first > last:
            raise InputError(
                f"ZeroTerminalSNR({type(schedule).__name__}): alpha does not fall from level 1 "
                f"to level {schedule.T}, so it cannot be stretched down to 0; take a schedule "
                "that preserves variance, e.g. Linear, with two levels at least"
            )
        stretched = first * (alpha - last) / (first - last)
        lost = last * (first - alpha) / (first - last)  # alpha − stretched, without cancellation
        super().__init__(
            torch.cat([1 - _ZERO, stretched]),
            torch.cat([_ZERO, (sigma.square() + lost * (alpha + stretched)).sqrt()]),
        )


class Table(Schedule):
    """Levels of your own, number by number.

    Args:
        alpha: alpha_0…alpha_T, the first 1.
        sigma: sigma_0…sigma_T, the first 0; sigma/alpha must rise.
    """

    def __init__(self, alpha: list[float], sigma: list[float]) -> None:
        super().__init__(
            torch.tensor(alpha, dtype=torch.float64), torch.tensor(sigma, dtype=torch.float64)
        )


_ZERO = torch.zeros(1, dtype=torch.float64)


def _times(T: int, first: int) -> Tensor:
    """U = t/T of the levels from the first to T."""
    return torch.arange(first, T + 1, dtype=torch.float64) / T


def _rising(first: float, last: float, n: int) -> Tensor:
    return torch.linspace(first, last, n, dtype=torch.float64)
