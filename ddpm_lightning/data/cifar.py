"""CIFAR-10 and CIFAR-100 in torchvision's folders, unpickled without executing code.

The files are Python pickles, which may call any function. Here the few names that an array needs
are replaced by inert records, and any other name is refused.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchvision import datasets
from torchvision.datasets.utils import download_and_extract_archive
from typing_extensions import override

from ddpm_lightning.data.image_data import ImageData, OfficialSplit
from ddpm_lightning.errors import InputError


class CIFAR10(ImageData):
    """CIFAR-10: 60,000 photographs of 10 classes, 32 × 32 RGB (5,000 held out by default).

    50,000 are for training and 10,000 for testing. Read from cifar-10-batches-py in ``root``,
    downloaded from its authors. Published FIDs train on all 50,000: held_out 0.
    """

    native_shape = (3, 32, 32)
    num_classes = 10
    default_held_out = 5000
    _source = datasets.CIFAR10
    _label_key = "labels"
    _warned = False

    @override
    def files(self, split: OfficialSplit) -> list[Path]:
        return [self.root / self._source.base_folder / name for name in self._digests(split)]

    @override
    def fetch(self) -> None:
        source = self._source
        download_and_extract_archive(
            source.url, str(self.root), filename=source.filename, md5=source.tgz_md5
        )

    @override
    def read(self, split: OfficialSplit) -> tuple[Tensor, Tensor]:
        digests = self._digests(split)
        images, labels = [], []
        for path in self.files(split):
            content = path.read_bytes()
            batch_images, batch_labels = _decode(content, path, self._label_key)
            digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
            if digest != digests[path.name] and not self._warned:
                rank_zero_warn(
                    f"{path} is not the published file (its MD5 differs); results may not compare "
                    f"with published ones of {type(self).__name__}"
                )
                self._warned = True
            images.append(batch_images)
            labels += batch_labels
        pixels = np.concatenate(images).reshape(-1, *self.native_shape)
        return torch.from_numpy(pixels), torch.tensor(labels)

    def _digests(self, split: OfficialSplit) -> dict[str, str]:
        return dict(self._source.train_list if split == "train" else self._source.test_list)


class CIFAR100(CIFAR10):
    """CIFAR-100: 60,000 photographs of 100 classes, 32 × 32 RGB (5,000 held out by default).

    50,000 are for training and 10,000 for testing. Read from cifar-100-python in ``root``,
    downloaded from its authors. Labels are the fine classes.
    """

    num_classes = 100
    _source = datasets.CIFAR100
    _label_key = "fine_labels"


def _decode(content: bytes, path: Path, label_key: str) -> tuple[np.ndarray, list[int]]:
    """Decode a batch file to pixels uint8 [n, 3072], channel by channel, and n labels."""
    try:
        batch = _Unpickler(content, path).load()
        entries = {key.decode() if isinstance(key, bytes) else key: batch[key] for key in batch}
        pixels, labels = entries["data"].array(), entries[label_key]
        if pixels.shape != (len(labels), 3072) or not all(type(k) is int for k in labels):
            raise ValueError("not [n, 3072] with n integers")
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{path} is truncated or no CIFAR batch of data [n, 3072] with n {label_key}; delete "
            "the folder and run again to download it, or replace the file"
        ) from error
    return pixels, labels


class _Record:
    """Replaces a callable of the pickle: stores the arguments and does nothing."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def array(self) -> np.ndarray:
        """Build the uint8 array of a state (version, shape, dtype, Fortran order, bytes)."""
        _, shape, dtype, fortran, content = self.state
        if dtype.arguments[0] not in ("u1", b"u1"):
            raise ValueError("not an array of bytes")
        return np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran else "C")


def _encode(text: str, encoding: str) -> bytes:
    """Encode text to bytes, as which Python 3 pickles bytes in the older protocols."""
    if encoding != "latin1":
        raise ValueError(f"bytes in the encoding {encoding}")
    return text.encode("latin1")


class _Unpickler(pickle.Unpickler):
    """Unpickler of numbers, strings, lists, dicts and array records; refuses anything else."""

    names: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): _Record,
        ("numpy._core.multiarray", "_reconstruct"): _Record,
        ("numpy", "ndarray"): _Record,
        ("numpy", "dtype"): _Record,
        ("_codecs", "encode"): _encode,
    }

    def __init__(self, content: bytes, path: Path) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.names[module, name]
        except KeyError:
            raise InputError(
                f"{self.path} asks to run {module}.{name}, which no CIFAR file needs; nothing was "
                "run. Delete the file and get it from a source you trust"
            ) from None
