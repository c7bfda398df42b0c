"""Distances between sets of images, through feature extractors, and between sets of points."""

from ddpm_lightning.metrics.features import FeatureExtractor
from ddpm_lightning.metrics.frechet import Statistics, frechet_distance
from ddpm_lightning.metrics.inception import Inception
from ddpm_lightning.metrics.lenet import LeNet
from ddpm_lightning.metrics.points import mmd, sliced_wasserstein

__all__ = [
    "FeatureExtractor",
    "Inception",
    "LeNet",
    "Statistics",
    "frechet_distance",
    "mmd",
    "sliced_wasserstein",
]
