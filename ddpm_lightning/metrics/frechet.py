"""The Fréchet distance between two sets of feature vectors, each seen as a Gaussian; FID."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from typing_extensions import override

from ddpm_lightning.errors import InputError
from ddpm_lightning.metrics.features import FeatureExtractor
from ddpm_lightning.metrics.jackknife import BLOCKS, jackknife, shuffled
from ddpm_lightning.metrics.metric import Comparison, Metric, Score
from ddpm_lightning.metrics.statistics import Statistics, check_features


class FrechetDistance(Metric):
    """The Fréchet distance; FID when the features are Inception's."""

    name = "fd"
    needs_pairs = False

    @override
    def check(self, extractor: FeatureExtractor | None, n: int, real_n: int | None = None) -> None:
        super().check(extractor, n, real_n)
        dim = None if extractor is None else extractor.dim
        if dim is not None and n <= dim and real_n is None:  # said once, of the settings alone
            warnings.warn(
                f"{self.name} of {n} samples in {dim} dimensions is mostly bias; compare it at "
                "the same n only, or use more",
                stacklevel=2,
            )

    @override
    def __call__(self, sets: Comparison) -> dict[str, Score]:
        samples, reference = sets.samples, sets.real.statistics
        error = left_out = None
        if sets.errors and len(samples) >= 2 * BLOCKS:
            left_out = distances_left_out(samples.features, reference, seed=sets.seed)
            error = jackknife(left_out)
        value = frechet_distance(samples.statistics, reference)
        return {self.name: Score(value, error, left_out=left_out)}

    @override
    def names(self, score: str, extractor: FeatureExtractor | None) -> tuple[str, str]:
        if extractor is None:
            return score, score
        limit = score.removeprefix("fd")  # of fd_inf
        return extractor.name + limit, extractor.alias + limit


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """The squared Fréchet distance |m_a − m_b|² + Tr(C_a + C_b − 2·(C_a·C_b)^½) ≥ 0, in float64.

    The trace of the last root is the sum of the singular values of C_a^½·C_b^½: real numbers, no
    root of a matrix that is not symmetric, and covariances may be singular (n ≤ d). Publications
    call it FID when features are Inception's.

    Raises InputError: The features have different lengths.

    Source: Dowson and Landau (1982); for images Heusel et al. (2017), eq. 6.
    """
    _check_lengths(a, b)
    overlap = torch.linalg.matrix_norm(a.root @ b.root, ord="nuc")
    distance = (a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * overlap
    return max(distance.item(), 0.0)  # rounding may leave −1e-12 between equals


def distances_left_out(
    features: Tensor, reference: Statistics, blocks: int = BLOCKS, seed: int = 0
) -> list[float]:
    """The Fréchet distance of features [n, d], n ≥ 2·blocks, without each block in turn.

    Costs two products and the eigenvalues of one matrix [d, d] a block, whatever n: nothing for
    LeNet, about a minute on one core for Inception.

    Raises InputError: Too few features, of another length than the reference's, or not finite.
    """
    check_features(features, least=2 * blocks, metric="the distance's standard error")
    everything = Statistics.of(features)
    _check_lengths(everything, reference)
    return [
        quick_distance(everything.without(Statistics.of(features[rows])), reference)
        for rows in shuffled(len(features), seed).tensor_split(blocks)
    ]


def quick_distance(a: Statistics, b: Statistics) -> float:
    """The Fréchet distance for differences of such: fewer digits, a third of the time.

    Eigenvalues of C_b^½·C_a·C_b^½ need no root of C_a, but rounding leaves 1e-8 of the largest
    singular value on each small one.
    """
    eigenvalues = torch.linalg.eigvalsh(b.root @ a.cov @ b.root)
    overlap = eigenvalues.clamp(min=0).sqrt().sum()
    means = (a.mean - b.mean).square().sum()
    return (means + a.cov.trace() + b.cov.trace() - 2 * overlap).item()


def _check_lengths(a: Statistics, b: Statistics) -> None:
    if len(a.mean) != len(b.mean):
        raise InputError(
            f"features of length {len(a.mean)} cannot be compared with features of length "
            f"{len(b.mean)}; compute both with the same extractor"
        )
