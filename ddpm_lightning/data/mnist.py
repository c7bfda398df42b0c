"""MNIST and Fashion-MNIST in torchvision's folders."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor
from torchvision import datasets
from typing_extensions import override

from ddpm_lightning.data.image_data import ImageData, OfficialSplit
from ddpm_lightning.errors import InputError

BYTES = 0x0800
"""First four bytes of an idx file of bytes, less the rank."""

MOST_BYTES = 2**31
"""More than any such data set has."""


class MNIST(ImageData):
    """MNIST: 70,000 handwritten digits, 28 × 28 grey (5,000 held out by default).

    60,000 are for training and 10,000 for testing. Read from MNIST/raw in ``root``, plain or
    gzipped (.gz) as they are published; downloaded by torchvision.
    """

    native_shape = (1, 28, 28)
    num_classes = 10
    default_held_out = 5000
    _source = datasets.MNIST

    @override
    def files(self, split: OfficialSplit) -> list[Path]:
        folder = self.root / self._source.__name__ / "raw"
        prefix = "train" if split == "train" else "t10k"
        names = f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"
        return [_plain_or_gzipped(folder / name) for name in names]

    @override
    def fetch(self) -> None:
        self._source(self.root, download=True)

    @override
    def read(self, split: OfficialSplit) -> tuple[Tensor, Tensor]:
        images, labels = self.files(split)
        return _read_idx(images, 3).unsqueeze(1), _read_idx(labels, 1).long()


class FashionMNIST(MNIST):
    """Fashion-MNIST: 70,000 articles of clothing, 28 × 28 grey (5,000 held out by default).

    60,000 are for training and 10,000 for testing. Read from FashionMNIST/raw in ``root``,
    downloaded by torchvision.
    """

    _source = datasets.FashionMNIST


def _plain_or_gzipped(path: Path) -> Path:
    """The .gz of a file, if only that is there."""
    gzipped = path.with_name(f"{path.name}.gz")
    return gzipped if gzipped.is_file() and not path.is_file() else path


def _read_idx(path: Path, rank: int) -> Tensor:
    """Read an idx file of bytes, gzipped if its name ends in .gz, as uint8 of this rank."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            kind, *shape = struct.unpack(f">{1 + rank}I", file.read(4 + 4 * rank))
            if kind != BYTES + rank or math.prod(shape) > MOST_BYTES:
                raise ValueError("it says to be something else")
            content = file.read(math.prod(shape) + 1)
        if len(content) != math.prod(shape):
            raise ValueError("it is shorter or longer than it says")
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise InputError(
            f"{path} is truncated or no idx file of bytes ({error}); delete it and run again to "
            "download it, or replace it"
        ) from error
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).view(*shape)
