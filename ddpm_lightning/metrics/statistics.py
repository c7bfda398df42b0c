"""Mean and covariance of feature vectors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ddpm_lightning.errors import InputError


@dataclass(frozen=True, eq=False)
class Statistics:
    """The mean and the covariance of n feature vectors, on the CPU.

    Attributes:
        mean: float64 [d].
        cov: float64 [d, d], divided by n − 1.
        n: Number of vectors.
    """

    mean: Tensor
    cov: Tensor
    n: int

    @classmethod
    def of(cls, features: Tensor) -> Statistics:
        """Summarise features [n, d]; refuse n < 2 and values that are not finite."""
        if features.ndim != 2 or len(features) < 2:
            raise InputError(
                f"a covariance needs features [n, d] with n ≥ 2, got {list(features.shape)}; "
                "use more images"
            )
        features = features.cpu()
        mean = features.mean(dim=0, dtype=torch.float64)
        if not mean.isfinite().all():
            raise InputError(
                "the features are not finite; look at the images and the weights of the extractor"
            )
        cov = torch.zeros(len(mean), len(mean), dtype=torch.float64)
        for rows in features.split(4096):  # float64 of all rows would take gigabytes
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
        """The symmetric root of the covariance [d, d], kept for the next distance."""
        return _root(self.cov)


def _root(cov: Tensor) -> Tensor:
    """Compute the symmetric root of a covariance [d, d], of whatever rank."""
    eigenvalues, vectors = torch.linalg.eigh(cov)  # ascending
    rounding = len(cov) * torch.finfo(cov.dtype).eps * eigenvalues[-1]
    return (vectors * eigenvalues.where(eigenvalues > rounding, 0).sqrt()) @ vectors.T
