"""ShippedClassifier: features of a classifier whose weights are a file of this package."""

from __future__ import annotations

import hashlib
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from typing_extensions import override

from ddpm_lightning.metrics.features import FeatureExtractor, Features


class ShippedClassifier(FeatureExtractor):
    """A classifier of images that needs no download.

    Attributes:
        architecture: Maps images to features; its ``classifier`` maps features to logits.
        weights: Its safetensors file; what is float16 in it becomes float32.
    """

    architecture: type[nn.Module]
    weights: Path

    @override
    def load(self) -> tuple[nn.Module, str]:
        with torch.device("meta"):  # no memory, and no draw from the global generator
            network = self.architecture()
        content = self.weights.read_bytes()
        network.to_empty(device="cpu").load_state_dict(safetensors.torch.load(content))
        return network, hashlib.sha256(content).hexdigest()

    @override
    def features(self, images: Tensor) -> Tensor:
        return self.network(images)

    @override
    def features_and_logits(self, images: Tensor) -> Features:
        features = self.network(images)
        return Features(features, self.network.get_submodule("classifier")(features))
