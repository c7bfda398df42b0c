"""ColourNet: features of a photograph classifier that is small enough to ship with the package."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_lightning.metrics.shipped_classifier import ShippedClassifier

CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
"""CIFAR-10's classes, in the order of its labels and of the logits."""


class ColourNetwork(nn.Module):
    """Seven convolutions on 32×32 pixels; a narrow form of the network of Jordan (2024), sec. 3.1.

    With ReLU, trained first layer and average pooling at the end.

    Source: Jordan (2024), "94% on CIFAR-10 in 3.29 Seconds on a Single GPU".
    """

    widths = (24, 48, 96, 128)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(3, self.widths[0], kernel_size=2, bias=False),  # 31×31
            nn.BatchNorm2d(self.widths[0]),
            nn.ReLU(inplace=True),
        )
        pairs = zip(self.widths, self.widths[1:], strict=False)
        self.groups = nn.Sequential(*(_group(*pair) for pair in pairs))  # 15×15, 7×7, 3×3
        self.classifier = nn.Linear(self.widths[-1], len(CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        """Map images [B, 3, H, W] with values 0…255, 8-bit or float, to features [B, 128]."""
        x = images.float()
        if x.shape[2:] != (32, 32):
            x = F.interpolate(x, size=(32, 32), mode="bilinear", antialias=True)
        x = (x / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        return self.groups(self.first(x)).float().mean(dim=(2, 3))


def _group(inputs: int, outputs: int) -> nn.Sequential:
    """Two convolutions 3×3, and half the height and width after the first."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class ColourNet(ShippedClassifier):
    """Features of a small CIFAR-10 classifier, for colour images of any size from 8×8 on.

    The 128 features are the averages over the last feature map, as Inception's are. Images of
    other sizes than 32×32 are brought to it by a bilinear resize with anti-aliasing, which does
    not keep the aspect ratio. The distance is no FID: it compares only with distances by the same
    weights (``digest``), and on images that are no such photographs only with runs on the same
    data. The weights that ship were trained on CIFAR-10 as JPEG files, whose pixels differ a
    little from those of CIFAR-10's own files; test accuracy 85.88 %. Both stand in the metadata of
    the file, too.
    """

    name = "fd_colour"
    alias = "fd"
    dim = 128
    channels = (3,)
    min_size = 8
    classes = len(CLASSES)
    knows = ("CIFAR10",)
    resize = "antialiased-bilinear-32"
    architecture = ColourNetwork
    weights = Path(__file__).with_name("colour.safetensors")
