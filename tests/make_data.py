"""Small random data sets in the real files' formats, for tests."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path

import numpy as np
from PIL import Image

Arrays = tuple[np.ndarray, np.ndarray]


def write_mnist(
    root: Path, name: str = "MNIST", train: int = 200, test: int = 50, seed: int = 0
) -> dict[str, Arrays]:
    """Write root/name/raw; returns {"train" | "test": (images [n, 28, 28], labels [n])}."""
    folder = Path(root) / name / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    written = {}
    for split, prefix, n in (("train", "train", train), ("test", "t10k", test)):
        images = random.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = random.integers(0, 10, n).astype(np.uint8)
        header = struct.pack(">BBBBIII", 0, 0, 8, 3, n, 28, 28)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = struct.pack(">BBBBI", 0, 0, 8, 1, n)
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
        written[split] = images, labels
    return written


def write_cifar10(
    root: Path, train: int = 200, test: int = 50, seed: int = 0, modern: bool = False
) -> dict[str, Arrays]:
    """Write root/cifar-10-batches-py; returns {"train" | "test": (images [n, 3, 32, 32], labels)}.

    Python 2's pickles like the originals, or with ``modern`` Python 3's in protocol 2.
    """
    folder = Path(root) / "cifar-10-batches-py"
    names = np.array_split(np.arange(train), 5)
    files = [(f"data_batch_{i}", rows) for i, rows in enumerate(names, start=1)]
    written = _random_images(train, test, classes=10, seed=seed)
    for name, rows in [*files, ("test_batch", np.arange(test))]:
        images, labels = written["test" if name == "test_batch" else "train"]
        batch = {b"batch_label": name.encode(), b"labels": labels[rows].tolist()}
        batch |= {b"data": images[rows].reshape(len(rows), -1), b"filenames": [b"a.png"]}
        _write(folder / name, batch, modern)
    meta = {b"num_cases_per_batch": train // 5, b"label_names": [b"x"] * 10, b"num_vis": 3072}
    _write(folder / "batches.meta", meta, modern)
    return written


def write_cifar100(
    root: Path, train: int = 200, test: int = 50, seed: int = 0
) -> dict[str, Arrays]:
    """Write root/cifar-100-python; returns {"train" | "test": (images [n, 3, 32, 32], labels)}."""
    folder = Path(root) / "cifar-100-python"
    written = _random_images(train, test, classes=100, seed=seed)
    for name, (images, labels) in written.items():
        batch = {b"fine_labels": labels.tolist(), b"coarse_labels": (labels // 5).tolist()}
        batch |= {b"data": images.reshape(len(images), -1), b"filenames": [b"a.png"]}
        _write(folder / name, batch)
    meta = {b"fine_label_names": [b"x"] * 100, b"coarse_label_names": [b"x"] * 20}
    _write(folder / "meta", meta)
    return written


def write_class_folders(root: Path, train: int = 40, test: int = 20, size: int = 40) -> None:
    """Write root/train/CLASS/*.jpg and root/test/CLASS/*.jpg of ten classes."""
    random = np.random.default_rng(0)
    for split, n in (("train", train), ("test", test)):
        for k in range(n):
            folder = Path(root) / split / f"class{k % 10}"
            folder.mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{k:04}.jpg")


def _random_images(train: int, test: int, classes: int, seed: int) -> dict[str, Arrays]:
    random = np.random.default_rng(seed)
    return {
        split: (
            random.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8),
            random.integers(0, classes, n),
        )
        for split, n in (("train", train), ("test", test))
    }


def _write(path: Path, value: object, modern: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        pickler = pickle.Pickler if modern else _Python2Pickler
        pickler(file, protocol=2).dump(value)


class _Python2Pickler(pickle._Pickler):
    """Writes what Python 2 wrote: all text as byte strings, numpy's names of that time."""

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012

    def save_string(self, text: bytes | str) -> None:
        content = text if isinstance(text, bytes) else text.encode("latin1")
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)

    dispatch[bytes] = save_string
    dispatch[str] = save_string

    def save_global(self, obj: object, name: str | None = None) -> None:
        if getattr(obj, "__name__", "") == "_reconstruct":
            self.write(pickle.GLOBAL + b"numpy.core.multiarray\n_reconstruct\n")
        else:
            super().save_global(obj, name)
