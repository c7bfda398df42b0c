"""Feature vectors: what they must be, their mean and their covariance."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ddpm_lightning.errors import InputError

ROWS = 512
"""Vectors that are float64 at a time, because all of them would take gigabytes."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """Mean [d] and covariance [d, d] (by n − 1) of n feature vectors, float64, on the CPU."""

    mean: Tensor
    cov: Tensor
    n: int

    @classmethod
    def of(cls, features: Tensor) -> Statistics:
        """Summarise features [n, d], n ≥ 2."""
        check_features(features, least=2, metric="a covariance")
        features = features.cpu()
        mean = mean_of(features)
        cov = torch.zeros(len(mean), len(mean), dtype=torch.float64)
        for rows in features.split(ROWS):
            centred = rows.double() - mean
            cov += centred.T @ centred
        return cls(mean, cov / (len(features) - 1), len(features))

    def without(self, part: Statistics) -> Statistics:
        """Take out some of the vectors, given their own statistics; at least two remain."""
        n = self.n - part.n
        mean = (self.n * self.mean - part.n * part.mean) / n
        between = part.mean - mean
        scatter = (self.n - 1) * self.cov - (part.n - 1) * part.cov
        scatter -= (n * part.n / self.n) * between.outer(between)
        return Statistics(mean, scatter / (n - 1), n)

    @cached_property
    def root(self) -> Tensor:
        """The symmetric root of the covariance [d, d], of whatever rank."""
        eigenvalues, vectors = torch.linalg.eigh(self.cov)  # ascending
        rounding = len(self.cov) * torch.finfo(self.cov.dtype).eps * eigenvalues[-1]
        return (vectors * eigenvalues.where(eigenvalues > rounding, 0).sqrt()) @ vectors.T


def mean_of(features: Tensor) -> Tensor:
    """Mean [d], float64, of feature vectors [n, d]."""
    total = torch.stack([rows.double().sum(dim=0) for rows in features.split(ROWS)]).sum(dim=0)
    return total / len(features)


def check_features(*sets: Tensor, least: int, metric: str) -> None:
    """Refuse sets [n, d] of different lengths d, with fewer than ``least`` rows or not finite.

    Raises InputError: They are no matrices of equally long rows, too few or not finite.
    """
    shapes = " and ".join(str(list(rows.shape)) for rows in sets)
    if any(rows.ndim != 2 for rows in sets) or len({rows.shape[1] for rows in sets}) > 1:
        raise InputError(
            f"{metric} reads features [n, d] of one length d, got {shapes}; compute them all with "
            "the same extractor"
        )
    if min(map(len, sets)) < least:
        raise InputError(
            f"{metric} needs {least} or more feature vectors, got {shapes}; use more images"
        )
    parts = (part for rows in sets for part in rows.split(ROWS))
    if not all(bool(part.isfinite().all()) for part in parts):
        raise InputError(
            f"{metric}: the features are not finite; look at the images and the weights of the "
            "extractor"
        )
