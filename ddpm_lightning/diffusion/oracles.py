"""Oracles: exact denoisers of known distributions, for tests, notebooks and benchmarks.

Called exactly like a learned denoiser, so samplers, guidance and likelihood run on them unchanged.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from ddpm_lightning.batch import Condition
from ddpm_lightning.diffusion.levels import Level, Schedule, Time, is_real
from ddpm_lightning.diffusion.prediction import FixedSmall, Prediction, Variance
from ddpm_lightning.errors import InputError


class Oracle(ABC):
    """A denoiser that knows the data's distribution; computed in x_t's dtype, float32 at least."""

    net = None
    """There is no network."""

    def __init__(
        self, schedule: Schedule, shape: tuple[int, ...], variance: Variance | None = None
    ) -> None:
        self.schedule = schedule
        self.shape = shape
        self.variance = variance or FixedSmall()

    @abstractmethod
    def expectation(self, x: Tensor, level: Level, condition: Condition) -> Tensor:
        """E[x0 | x_t] [B, d] for flat x_t [B, d] of one level, or of a level with alpha [B, 1]."""

    @abstractmethod
    def flat_log_density(self, x: Tensor, level: Level, condition: Condition) -> Tensor:
        """Log q(x_t | label) [B] for flat x_t [B, d], likewise."""

    def __call__(self, x_t: Tensor, t: Time, condition: Condition = Condition()) -> Prediction:
        """Give the exact E[x0 | x_t, label]; arguments as for any denoiser."""
        x_t = x_t.to(torch.promote_types(x_t.dtype, torch.float32))
        x0 = self._by_level(self.expectation, x_t, t, condition).view(x_t.shape)
        return Prediction(x0, x_t, self.schedule.level(t, like=x_t), self.variance)

    def log_density(self, x_t: Tensor, t: Time, condition: Condition = Condition()) -> Tensor:
        """Log-density of q(x_t | label) [B] in nats; arguments as for a call.

        t = 0 is the data's own, where it has one.
        """
        return self._by_level(self.flat_log_density, x_t, t, condition)

    def _by_level(self, function: Any, x_t: Tensor, t: Time, condition: Condition) -> Tensor:
        x = x_t.flatten(1)
        if not isinstance(t, Tensor):
            return function(x, self.schedule.level(t), condition)
        if is_real(t):
            return function(x, self.schedule.level(t, like=x), condition)
        places, parts = [], []
        for each in t.unique().tolist():
            rows = (t == each).nonzero()[:, 0]
            places.append(rows)
            parts.append(function(x[rows], self.schedule.level(each), condition.rows(rows)))
        return torch.cat(parts)[torch.cat(places).argsort()]


class Gaussian(Oracle):
    """Normal data N(mean, cov); mean [*shape] and cov [d, d], d the number of values in a sample.

    E[x0 | x_t] = mean + alpha·cov·(alpha²·cov + sigma²·I)⁻¹·(x_t − alpha·mean)

    Raises InputError: cov is not such a matrix.
    """

    def __init__(
        self, schedule: Schedule, mean: Tensor, cov: Tensor, variance: Variance | None = None
    ) -> None:
        super().__init__(schedule, tuple(mean.shape), variance)
        self.mean, self.cov = mean.double().flatten(), cov.double()
        d = len(self.mean)
        if self.cov.shape != (d, d) or not torch.allclose(self.cov, self.cov.T):
            raise InputError(
                f"Gaussian: cov of shape {list(cov.shape)}; give a symmetric [{d}, {d}]"
            )
        eigenvalues, self._basis = torch.linalg.eigh(self.cov)
        self._eigenvalues = eigenvalues.clamp(min=0)

    @override
    def expectation(self, x: Tensor, level: Level, condition: Condition) -> Tensor:
        alpha, sigma = level.alpha, level.sigma
        mean, basis, spread = (v.to(x) for v in (self.mean, self._basis, self._eigenvalues))
        gain = alpha * spread / (alpha**2 * spread + sigma**2)  # [d]
        return mean + ((x - alpha * mean) @ basis * gain) @ basis.T

    @override
    def flat_log_density(self, x: Tensor, level: Level, condition: Condition) -> Tensor:
        alpha, sigma = level.alpha, level.sigma
        mean, basis, spread = (v.to(x) for v in (self.mean, self._basis, self._eigenvalues))
        variances = alpha**2 * spread + sigma**2
        distances = ((x - alpha * mean) @ basis) ** 2 / variances
        return -0.5 * (distances + torch.log(2 * math.pi * variances)).sum(1)


class Mixture(Oracle):
    """A mixture of isotropic Gaussians, unconditional or with classes.

    E[x0 | x_t] = sum_k r_k·(m_k + alpha·v_k/(alpha²·v_k + sigma²)·(x_t − alpha·m_k)), where r_k is
    the probability that x_t came from component k.

    Args:
        schedule: The forward process.
        means: [K, *shape] of the components.
        variances: [K] of each value in a sample, ≥ 0.
        weights: [K], positive; scaled to sum to 1. None: equal.
        labels: int64 [K] the class of each component, which a label selects. None: ignored.
        variance: Variance of the reverse step; None: fixed-small.

    Raises:
        InputError: The tables do not fit together.
    """

    def __init__(
        self,
        schedule: Schedule,
        means: Tensor,
        variances: Tensor,
        weights: Tensor | None = None,
        labels: Tensor | None = None,
        variance: Variance | None = None,
    ) -> None:
        super().__init__(schedule, tuple(means.shape[1:]), variance)
        K = len(means)
        weights = torch.ones(K) if weights is None else weights
        for name, table in {"variances": variances, "weights": weights, "labels": labels}.items():
            if table is not None and tuple(table.shape) != (K,):
                raise InputError(
                    f"{type(self).__name__}: {name} of shape {list(table.shape)} for {K} "
                    f"components; give [{K}]"
                )
        self.means, self.variances = means.double().flatten(1), variances.double()
        self.weights = weights.double() / weights.double().sum()
        self.labels = labels

    @override
    def expectation(self, x: Tensor, level: Level, condition: Condition) -> Tensor:
        alpha, sigma = level.alpha, level.sigma
        means, variances = self.means.to(x), self.variances.to(x)
        share = self._log_joint(x, level, condition).softmax(dim=1)  # [B, K]
        gain = alpha * variances / (alpha**2 * variances + sigma**2)  # [K] or [B, K]
        return (share * (1 - alpha * gain)) @ means + (share * gain).sum(1, keepdim=True) * x

    @override
    def flat_log_density(self, x: Tensor, level: Level, condition: Condition) -> Tensor:
        return self._log_joint(x, level, condition).logsumexp(dim=1)

    def _log_joint(self, x: Tensor, level: Level, condition: Condition) -> Tensor:
        """Log of weight_k·N(x; alpha·m_k, alpha²·v_k + sigma²), [B, K]."""
        alpha, sigma = level.alpha, level.sigma
        variances = alpha**2 * self.variances.to(x) + sigma**2
        # Differences first: with the inner product, small sigma would lose every digit.
        mode = "donot_use_mm_for_euclid_dist"
        means = self.means.to(x)
        if isinstance(alpha, Tensor):  # [B, 1], a level a row
            x, means = x[:, None], alpha[..., None] * means
            distances = torch.cdist(x, means, compute_mode=mode)[:, 0] ** 2  # [B, K]
        else:
            distances = torch.cdist(x, alpha * means, compute_mode=mode) ** 2
        log_weights = self._weights_in_class(condition.label, len(x)).to(x).log()
        log_norm = 0.5 * x.shape[-1] * torch.log(2 * math.pi * variances)
        return log_weights - log_norm - 0.5 * distances / variances

    def _weights_in_class(self, label: Tensor | None, rows: int) -> Tensor:
        if label is None or self.labels is None:
            return self.weights.expand(rows, -1)
        chosen = (label[:, None].cpu() == self.labels.cpu()) | (label[:, None].cpu() < 0)  # [B, K]
        weights = self.weights * chosen
        totals = weights.sum(1, keepdim=True)
        if bool((totals == 0).any()):
            known = sorted(set(self.labels.tolist()))
            raise InputError(
                f"{type(self).__name__}: a label of {label.tolist()} has no component; the labels "
                f"are {known}, or −1 for all"
            )
        return weights / totals


class Empirical(Mixture):
    """A finite data set [N, *shape], as a network without limits would learn it.

    It is the mixture of points, all of variance 0; its samples are copies of the data. Labels are
    int64 [N] or None.
    """

    def __init__(
        self,
        schedule: Schedule,
        data: Tensor,
        labels: Tensor | None = None,
        variance: Variance | None = None,
    ) -> None:
        super().__init__(schedule, data, torch.zeros(len(data)), None, labels, variance)
