"""MNIST and Fashion-MNIST in torchvision's folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor
from torchvision import datasets
from torchvision.datasets.mnist import read_image_file, read_label_file

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

    def files(self, split: OfficialSplit) -> list[Path]:
        """List the two files of a split: images and labels."""
        folder = self.root / self._source.__name__ / "raw"
        prefix = "train" if split == "train" else "t10k"
        return [folder / f"{prefix}-images-idx3-ubyte", folder / f"{prefix}-labels-idx1-ubyte"]

    def fetch(self) -> None:
        """Download by torchvision, which checks the files' digests."""
        self._source(self.root, download=True)

    def read(self, split: OfficialSplit) -> tuple[Tensor, Tensor]:
        """Read the split's idx files."""
        images, labels = self.files(split)
        return _decoded(read_image_file, images).unsqueeze(1), _decoded(read_label_file, labels)


class FashionMNIST(MNIST):
    """Fashion-MNIST: 70,000 articles of clothing, 28 × 28 grey (5,000 held out by default).

    60,000 are for training and 10,000 for testing. Read from FashionMNIST/raw in ``root``,
    downloaded by torchvision.
    """

    _source = datasets.FashionMNIST


def _decoded(decode: Callable[[str], Tensor], path: Path) -> Tensor:
    try:
        return decode(str(path))
    except Exception as error:
        raise InputError(
            f"{path} is truncated or no idx file of bytes; delete it and run again to download "
            "it, or replace it"
        ) from error
