"""MNIST and Fashion-MNIST in torchvision's folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor
from torchvision import datasets
from torchvision.datasets.mnist import read_image_file, read_label_file
from typing_extensions import override

from ddpm_lightning.data.image_data import ImageData, OfficialSplit
from ddpm_lightning.errors import InputError


class MNIST(ImageData):
    """MNIST: 70,000 handwritten digits, 28 × 28 grey (5,000 held out by default).

    60,000 are for training and 10,000 for testing. Read from MNIST/raw in ``root``, downloaded by
    torchvision.
    """

    native_shape = (1, 28, 28)
    num_classes = 10
    default_held_out = 5000
    _source = datasets.MNIST

    @override
    def files(self, split: OfficialSplit) -> list[Path]:
        folder = self.root / self._source.__name__ / "raw"
        prefix = "train" if split == "train" else "t10k"
        return [folder / f"{prefix}-images-idx3-ubyte", folder / f"{prefix}-labels-idx1-ubyte"]

    @override
    def fetch(self) -> None:
        self._source(self.root, download=True)

    @override
    def read(self, split: OfficialSplit) -> tuple[Tensor, Tensor]:
        images, labels = self.files(split)
        return _decode(read_image_file, images).unsqueeze(1), _decode(read_label_file, labels)


class FashionMNIST(MNIST):
    """Fashion-MNIST: 70,000 articles of clothing, 28 × 28 grey (5,000 held out by default).

    60,000 are for training and 10,000 for testing. Read from FashionMNIST/raw in ``root``,
    downloaded by torchvision.
    """

    _source = datasets.FashionMNIST


def _decode(decode: Callable[[str], Tensor], path: Path) -> Tensor:
    try:
        return decode(str(path))
    except Exception as error:
        raise InputError(
            f"{path} is truncated or no idx file of bytes; delete it and run again to download "
            "it, or replace it"
        ) from error
