"""Images a second of the in-memory data path beside the usual one, image by image.

    python -m benchmarks.data [--data-root data] [--rounds 7]

The usual one is torchvision's: a data set whose items become PIL images, ToTensor, Normalize (and
for colour a random flip), in a shuffled DataLoader without workers, which is the faster for small
images. Ours gives the same float images in [−1, 1], shuffled and flipped, with their labels. By
default the images are random; --data-root takes the real MNIST in that folder instead of them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.report import Report
from benchmarks.timing import Spread, in_turn, ratio
from ddpm_lightning.data import MNIST
from ddpm_lightning.data.image_data import ImageData, OfficialSplit

BATCH = 128


class Noise(ImageData):
    """Random images in memory, in place of a data set.

    Args:
        channels: 1 or 3.
        side: Height and width.
        batch: Images a step.
        n: Images of a split.
        flip: Mirror half of them.
    """

    num_classes = 10

    def __init__(
        self, channels: int, side: int, batch: int = BATCH, n: int = 10_000, flip: bool = False
    ) -> None:
        self.native_shape = (channels, side, side)
        self.n = n
        super().__init__(flip=flip, global_batch_size=batch)

    def read(self, split: OfficialSplit) -> tuple[Tensor, Tensor]:
        """Draw them."""
        generator = torch.Generator().manual_seed(0)
        shape = (self.n, *self.native_shape)
        images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
        return images, torch.arange(self.n) % self.num_classes


class PerImage(Dataset[Any]):
    """Items as torchvision's MNIST and CIFAR10 make them.

    Args:
        images: uint8 [N, C, H, W].
        labels: int64 [N].
        flip: Mirror half of them.
    """

    def __init__(self, images: Tensor, labels: Tensor, flip: bool) -> None:
        self.arrays = images.permute(0, 2, 3, 1).squeeze(-1).contiguous().numpy()
        self.labels = labels
        middle = (0.5,) * images.shape[1]
        steps = [transforms.RandomHorizontalFlip()] if flip else []
        steps += [transforms.ToTensor(), transforms.Normalize(middle, middle)]
        self.transform = transforms.Compose(steps)

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.arrays[place])), int(self.labels[place])


def endless(loader: Any) -> Iterator[Any]:
    """Every batch, one epoch after the other."""
    for one in cycle([loader]):
        yield from one


def take(batches: Iterator[Any], n: int) -> None:
    """Get n batches."""
    for _ in range(n):
        next(batches)


def compare(report: Report, name: str, data: ImageData, rounds: int, at_least: float) -> None:
    """Time both paths over the same images."""
    usual = PerImage(*data.images("train"), flip=data.flip)
    loader = DataLoader(usual, BATCH, shuffle=True, drop_last=True)
    counts = {"in memory": 200, "image by image": 10}
    paths = {"in memory": data.train_dataloader(), "image by image": loader}
    ways = {way: partial(take, endless(paths[way]), counts[way]) for way in paths}
    seconds = in_turn(ways, rounds)
    an_image = {
        way: [s / counts[way] / BATCH for s in taken.cpu] for way, taken in seconds.items()
    }
    for way, taken in an_image.items():
        report.add(f"{name}, {way}: images a CPU second", Spread.of([1 / s for s in taken]))
    faster = ratio(an_image["image by image"], an_image["in memory"])
    report.add(f"{name}: in memory / image by image", faster, at_least=at_least)


def main(args: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", "--data.root", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args(args)
    torch.set_num_threads(1)
    report = Report("The data path: batches of 128 in [−1, 1], by processor time")
    grey: ImageData = Noise(1, 28)
    if given.data_root is not None:
        grey = MNIST(str(given.data_root), download=False, global_batch_size=BATCH)
    compare(report, "grey 28×28", grey, given.rounds, at_least=30)
    compare(report, "colour 32×32, flipped", Noise(3, 32, flip=True), given.rounds, at_least=10)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
