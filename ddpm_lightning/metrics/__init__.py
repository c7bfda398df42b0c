"""Feature extractors and the distances between sets of images."""

from ddpm_lightning.metrics.features import FeatureExtractor
from ddpm_lightning.metrics.frechet import Statistics, frechet_distance
from ddpm_lightning.metrics.inception import Inception
from ddpm_lightning.metrics.lenet import LeNet

__all__ = ["FeatureExtractor", "Inception", "LeNet", "Statistics", "frechet_distance"]
