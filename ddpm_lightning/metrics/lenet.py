"""LeNet: features of a digit classifier that is small enough to ship with the package."""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_lightning.metrics.shipped_classifier import ShippedClassifier


class LeNetNetwork(nn.Module):
    """Two convolutions and three linear layers on 28×28 pixels, after LeCun et al. (1998), fig. 2.

    Wider than LeNet-5 in the convolutions, with ReLU and max-pooling.
    """

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, 16, kernel_size=5, padding=2),  # 28×28
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, kernel_size=5),  # 10×10
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.penultimate = nn.Linear(32 * 5 * 5, 84)
        self.classifier = nn.Sequential(nn.ReLU(), nn.Linear(84, 10))

    def forward(self, images: Tensor) -> Tensor:
        """Map images [B, 1, H, W] with values 0…255, 8-bit or float, to features [B, 84]."""
        x = F.interpolate(images.float() / 255, size=(28, 28), mode="bilinear")
        return self.penultimate(self.convolutions(x))


class LeNet(ShippedClassifier):
    """Features of a small MNIST classifier, for grey images of any size from 8×8 on.

    The 84 features are the input of the last hidden layer's ReLU, where a class looks more like
    the Gaussian that the Fréchet distance takes it for than after it. The distance is no FID: it
    compares only with distances by the same weights (``digest``), and on images that are not
    digits only with runs on the same data.
    """

    name = "fd_lenet"
    alias = "fd"
    dim = 84
    channels = (1,)
    min_size = 8
    classes = 10
    knows = ("MNIST", "Digits")
    resize = "bilinear-28"
    architecture = LeNetNetwork
    weights = Path(__file__).with_name("lenet.safetensors")
