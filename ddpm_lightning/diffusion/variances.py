"""Learned and measured variances of the reverse step p(x_s | x_t), for any levels s < t."""

from __future__ import annotations

import zipfile
from abc import abstractmethod

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from ddpm_lightning.diffusion.levels import Level, Scalar, as_tensor
from ddpm_lightning.diffusion.posterior import first_variance, posterior, transition_variance
from ddpm_lightning.diffusion.prediction import Prediction, Variance
from ddpm_lightning.errors import InputError


class _Learned(Variance):
    """A variance from one extra output channel for each of the data's."""

    @override
    def extra_channels(self, channels: int) -> int:
        return channels

    @override
    def __call__(self, prediction: Prediction, s: Level) -> Scalar:
        if prediction.extra is None:
            raise InputError(
                f"{type(self).__name__} reads the network's extra channels, which this prediction "
                "does not have; take FixedSmall or FixedLarge with it"
            )
        return self.learned(prediction.extra, s, prediction.level)

    @override
    def decoder(self, prediction: Prediction) -> Scalar:
        return self(prediction, prediction.level.at(0))

    @abstractmethod
    def learned(self, extra: Tensor, s: Level, t: Level) -> Tensor:
        """Variance of p(x_s | x_t) from the extra channels [B, ...]."""


class LearnedRange(_Learned):
    """Learned range, between beta_tilde and beta on a log scale (improved DDPM eq. 15).

    exp(v·ln beta + (1 − v)·ln beta_tilde) with v = (extra + 1)/2 from one extra output channel for
    each of the data's; beta and beta_tilde are those of the pair (s, t), so levels may be
    skipped. At s = 0, where beta_tilde is 0, beta_tilde_2 takes its place. Only the bound trains
    it: use the objective Hybrid or VariationalBound.
    """

    @override
    def learned(self, extra: Tensor, s: Level, t: Level) -> Tensor:
        large = as_tensor(transition_variance(s, t), extra)
        small = as_tensor(posterior(s, t).variance, extra)
        small = torch.where(small == 0, first_variance(t.schedule), small)
        v = (extra + 1) / 2
        return torch.exp(v * large.log() + (1 - v) * small.log())


class LearnedDiagonal(_Learned):
    """Learned diagonal, any variance in each dimension (Sohl-Dickstein et al. 2015, table App.1).

    The step t → t − 1 has beta_t·exp(extra), from one extra output channel for each of the data's:
    a network that says 0 starts from FixedLarge. A step to another s has the variance that
    follows from it, beta_tilde + A²·Var[x_0 | x_t] with A the posterior's coefficient of x_0, and
    Var[x_0 | x_t] solved from the same equation at t − 1 and floored at 0. Only the bound trains
    it: use the objective VariationalBound or Hybrid.
    """

    @override
    def learned(self, extra: Tensor, s: Level, t: Level) -> Tensor:
        before = t.previous
        learned = self.unit(before, t) * extra.exp()
        one, any_ = posterior(before, t), posterior(s, t)
        excess = (learned - one.variance).clamp(min=0)
        implied = any_.variance + (any_.x0 / one.x0) ** 2 * excess
        is_before = torch.as_tensor(s.t == before.t, device=extra.device)
        return torch.where(is_before.view(-1, *[1] * (extra.ndim - 1)), learned, implied)

    def unit(self, before: Level, t: Level) -> Scalar:
        """Variance of the step t → t − 1 where the network says 0."""
        return transition_variance(before, t)


class LearnedLogVariance(LearnedDiagonal):
    """Learned log-variance: the step t → t − 1 has the variance exp(extra), whatever beta_t is.

    As tutorials of Sohl-Dickstein et al. (2015) have it. Otherwise as LearnedDiagonal: a network
    with layers of its own for each level can say the same by either, but starts from 1 here, so
    that errors of the mean weigh little at first.
    """

    @override
    def unit(self, before: Level, t: Level) -> Scalar:
        return 1.0


class AnalyticVariance(Variance):
    """Analytic-DPM: the optimal variance that does not depend on x_t (Bao et al. 2022, thm. 1).

    beta_tilde + A²·e_t, with A the posterior's coefficient of x_0 and e_t the mean squared error
    of x0_hat at level t, a number a dimension: what the network leaves unexplained. For an exact
    x0_hat this is theorem 1; for a learned one it is what is optimal with this very mean (Bao et
    al. 2022b, "Estimating the optimal covariance with imperfect mean").

    Args:
        table: e_0…e_T, T + 1 numbers of which the first is 0 and unused; or the path of an .npz
            file that holds them as ``x0_error``, as the analytic_variance command writes it.

    Attributes:
        network: The sha256 of the weights that the file was measured with; None where unknown.

    Raises:
        InputError: The file is missing or holds something else, or a number is negative.
    """

    network: str | None = None

    def __init__(self, table: list[float] | str) -> None:
        if isinstance(table, str):
            errors, self.network = _read_table(table)
        else:
            errors = np.asarray(table, np.float64)
        # A checkpoint holds the numbers, so that it loads wherever the file is.
        self._arguments["table"] = errors.tolist()
        if errors.ndim != 1 or not bool((np.isfinite(errors) & (errors >= 0)).all()):
            raise InputError(
                "AnalyticVariance: the table must be a list of T + 1 mean squared errors, finite "
                "and 0 or larger"
            )
        self.errors = torch.from_numpy(errors)

    @override
    def __call__(self, prediction: Prediction, s: Level) -> Scalar:
        schedule = prediction.schedule
        if len(self.errors) != schedule.T + 1:
            raise InputError(
                f"AnalyticVariance: the table has {len(self.errors)} entries, but "
                f"{type(schedule).__name__} has the levels 0…{schedule.T}; estimate it anew for "
                "this schedule"
            )
        q = posterior(s, prediction.level)
        return q.variance + q.x0**2 * prediction.level.entry(self.errors)

    @override
    def decoder(self, prediction: Prediction) -> Scalar:
        floor = first_variance(prediction.schedule)
        variance = self(prediction, prediction.level.at(0))
        return variance.clamp(min=floor) if isinstance(variance, Tensor) else max(variance, floor)


def replacing(trained: Variance, asked: Variance, channels: int) -> Variance:
    """Make the variance that samples shall have fit a network that was trained with another.

    Raises InputError: The one that is asked for would have to be learned.
    """
    if asked.extra_channels(channels) and type(asked) is not type(trained):
        raise InputError(
            f"{type(asked).__name__} is learned, but the checkpoint was trained with "
            f"{type(trained).__name__}; use FixedSmall, FixedLarge or AnalyticVariance"
        )
    if trained.extra_channels(channels) and not asked.extra_channels(channels):
        return _InsteadOfLearned(asked, trained)
    return asked


class _InsteadOfLearned(Variance):
    """Another variance for a network that has learned one, whose extra channels are ignored."""

    def __init__(self, variance: Variance, learned: Variance) -> None:
        self.variance = variance
        self.learned = learned

    @override
    def extra_channels(self, channels: int) -> int:
        return self.learned.extra_channels(channels)

    @override
    def __call__(self, prediction: Prediction, s: Level) -> Scalar:
        return self.variance(prediction, s)

    @override
    def decoder(self, prediction: Prediction) -> Scalar:
        return self.variance.decoder(prediction)


def _read_table(path: str) -> tuple[np.ndarray, str | None]:
    try:
        with np.load(path, allow_pickle=False) as file:
            network = str(file["network"]) if "network" in file else None
            return np.asarray(file["x0_error"], np.float64), network
    except FileNotFoundError as error:
        raise InputError(
            f"AnalyticVariance: there is no table {path}; estimate it first: python -m "
            "ddpm_lightning analytic_variance --ckpt CHECKPOINT"
        ) from error
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(
            f"AnalyticVariance: {path} is no .npz file with an array x0_error: {error}"
        ) from error
