"""Distances between sets of images, through feature extractors, and between sets of points."""

from ddpm_lightning.metrics.cached import Features, reference_features
from ddpm_lightning.metrics.extrapolation import (
    Extrapolation,
    extrapolated_frechet,
    frechet_spread,
)
from ddpm_lightning.metrics.features import Extracted, FeatureExtractor
from ddpm_lightning.metrics.frechet import Statistics, frechet_distance
from ddpm_lightning.metrics.inception import Inception
from ddpm_lightning.metrics.inception_score import inception_score
from ddpm_lightning.metrics.jackknife import Estimate
from ddpm_lightning.metrics.kernel import kid, kid_error
from ddpm_lightning.metrics.lenet import LeNet
from ddpm_lightning.metrics.manifold import manifold
from ddpm_lightning.metrics.measure import Measures, Score
from ddpm_lightning.metrics.pixels import Pixels
from ddpm_lightning.metrics.points import mmd, sliced_wasserstein

__all__ = [
    "Estimate",
    "Extracted",
    "Extrapolation",
    "FeatureExtractor",
    "Features",
    "Inception",
    "LeNet",
    "Measures",
    "Pixels",
    "Score",
    "Statistics",
    "extrapolated_frechet",
    "frechet_distance",
    "frechet_spread",
    "inception_score",
    "kid",
    "kid_error",
    "manifold",
    "mmd",
    "reference_features",
    "sliced_wasserstein",
]
