"""Image files, data sets, tables and results with altered bytes."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ddpm_lightning.data import CIFAR10, MNIST
from ddpm_lightning.diffusion import AnalyticVariance
from ddpm_lightning.images import UniformFolder, read_image, read_mask
from ddpm_lightning.metrics.result import read_results
from tests.fuzz import Case, Maker, kind
from tests.fuzz.checkpoints import _bytes_altered, _emptied
from tests.make_data import write_cifar10, write_mnist

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")
MODES = ("L", "RGB", "RGBA", "LA", "P", "1", "I;16", "CMYK")


def _altered(rng: random.Random, content: bytes) -> tuple[str, bytes]:
    while True:
        try:
            return _bytes_altered(rng, content)
        except Exception:  # an edit of a zip file, which this is not
            continue


def _used(read: Callable[[], object]) -> Callable[[], bool]:
    return lambda: read() is not None


@kind("images")
def images(folder: Path) -> Maker:
    """Read an altered image file as an image, a mask, or one of a folder."""
    random_pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    picture = Image.fromarray(random_pixels)

    def make(rng: random.Random, place: Path) -> Case:
        _emptied(place)
        kind_of, mode = rng.choice(FORMATS), rng.choice(MODES)
        buffer = io.BytesIO()
        try:
            one = picture.convert("L").convert("I;16") if mode == "I;16" else picture.convert(mode)
            one.save(buffer, kind_of)
        except (OSError, ValueError):  # no such image of that format
            return make(rng, place)
        name, content = _altered(rng, buffer.getvalue())
        path = place / f"a.{rng.choice((kind_of.lower(), 'png', 'jpg'))}"
        path.write_bytes(content if rng.random() < 0.9 else buffer.getvalue())
        uses = {
            "image": lambda: read_image(path, (1, 8, 8)),
            "colour image": lambda: read_image(path, (3, 8, 8)),
            "mask": lambda: read_mask(path, (1, 8, 8)),
            "folder": lambda: [batch for batch in UniformFolder(place).batches(4)],
        }
        use = rng.choice(list(uses))
        return Case(f"{kind_of} {mode} as {use}: {name}", _used(uses[use]), may_differ=True)

    return make


@kind("data")
def data(folder: Path) -> Maker:
    """Read an altered file of MNIST, CIFAR-10, a variance table or results."""
    write_mnist(folder, train=20, test=10)
    write_cifar10(folder, train=20, test=10)
    table = io.BytesIO()
    np.savez(table, x0_error=np.linspace(0.1, 1, 21), n=1, seed=0, weights="ema", network="0")
    record = {"format": 1, "step": 1, "metric": "fd", "value": 1.0, "standard_error": None}
    record |= {
        "samples": {"n": 2},
        "reference": None,
        "extractor": None,
        "smaller_is_better": True,
    }
    results = json.dumps([record]).encode()

    paths = {
        "MNIST": "MNIST/raw/train-images-idx3-ubyte",
        "MNIST labels": "MNIST/raw/train-labels-idx1-ubyte",
        "CIFAR10": "cifar-10-batches-py/data_batch_1",
        "table": "a.npz",
        "results": "results.json",
    }
    sources = {"table": table.getvalue(), "results": results}
    sources |= {of: (folder / path).read_bytes() for of, path in paths.items() if "/" in path}

    def make(rng: random.Random, place: Path) -> Case:
        _emptied(place)
        of = rng.choice(list(sources))
        name, content = _altered(rng, sources[of])
        path = place / paths[of]
        if of.startswith("MNIST"):
            write_mnist(place, train=20, test=10)
        elif of == "CIFAR10":
            write_cifar10(place, train=20, test=10)
        path.write_bytes(content)
        reads: dict[str, Callable[[], object]] = {
            "CIFAR10": lambda: _first(CIFAR10(root=str(place), download=False)),
            "table": lambda: AnalyticVariance(str(path)),
            "results": lambda: read_results(path),
        }
        read = reads.get(of, lambda: _first(MNIST(root=str(place), download=False)))
        return Case(f"{of}: {name}", _used(read), may_differ=True)

    return make


def _first(source: MNIST | CIFAR10) -> torch.Tensor:
    source.held_out = 0
    return source.finished("train", 4).x0
