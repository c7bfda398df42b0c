"""Distances between sets of images, through feature extractors, and between sets of points."""

# ruff: noqa: F401 (exports)

from ddpm_lightning.metrics.accuracy import Accuracy
from ddpm_lightning.metrics.choice import choice_in_words, chosen_before, chosen_extractor
from ddpm_lightning.metrics.colour import ColourNet
from ddpm_lightning.metrics.extrapolation import (
    ExtrapolatedFrechetDistance,
    extrapolated_frechet,
)
from ddpm_lightning.metrics.features import FeatureExtractor, Features
from ddpm_lightning.metrics.frechet import FrechetDistance, frechet_distance
from ddpm_lightning.metrics.inception import Inception
from ddpm_lightning.metrics.inception_score import InceptionScore, inception_score
from ddpm_lightning.metrics.kernel import KID, kid
from ddpm_lightning.metrics.lenet import LeNet
from ddpm_lightning.metrics.manifold import PrecisionRecall, manifold
from ddpm_lightning.metrics.measures import Measures, Reference
from ddpm_lightning.metrics.metric import Comparison, Floor, Metric, Score, as_metrics
from ddpm_lightning.metrics.pixels import Pixels
from ddpm_lightning.metrics.points import MMD, SlicedWasserstein, mmd, sliced_wasserstein
from ddpm_lightning.metrics.result import Result
from ddpm_lightning.metrics.statistics import Statistics
from ddpm_lightning.metrics.text_alignment import ShapeReader, TextAlignment
