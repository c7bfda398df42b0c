"""Two-dimensional toy distributions."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.random import RandomState
from torch import Tensor
from typing_extensions import override

from ddpm_lightning.batch import Batch, Condition
from ddpm_lightning.data.data_module import InMemoryData, RawBatch, Split
from ddpm_lightning.errors import at_least
from ddpm_lightning.memory import check_memory

Kind = Literal["swiss_roll", "moons", "mixture", "checkerboard"]

COMPONENTS = 8
"""Number of Gaussians of the mixture, evenly spaced on the unit circle."""

NOISE: dict[Kind, float] = {"swiss_roll": 0.05, "moons": 0.05, "mixture": 0.1, "checkerboard": 0.0}
"""Default noise of each kind."""

CLASSES: dict[Kind, int] = {"moons": 2, "mixture": COMPONENTS}


class Toy2D(InMemoryData):
    """Two-dimensional toy data: x0 float32 [B, 2], unbounded, mostly within 1.5 of the origin.

    Every split is an independent draw of n points. swiss_roll: the spiral of scikit-learn's,
    divided by 10 (Sohl-Dickstein et al. 2015, fig. 1); moons: scikit-learn's, centred at 0, the
    moon is the class; mixture: 8 Gaussians on the unit circle, the Gaussian is the class;
    checkerboard: uniform on the black squares of 4 × 4 over [−1, 1]². Without classes every label
    is 0.

    Args:
        kind: The distribution.
        n: Points in each of the three splits.
        noise: Standard deviation of the Gaussian noise, in the points' units; by default 0.05 for
            swiss_roll and moons, 0.1 for mixture, 0 for checkerboard.
        global_batch_size: Points per optimizer step = processes × accumulation × per device.
        predict_n: Number of points that `predict` draws.
        seed: Seed of the points and of their order in training. By default 0 for the points, and
            the run's seed for the order.
    """

    num_classes: int | None
    data_range = None

    def __init__(
        self,
        kind: Kind = "swiss_roll",
        n: int = 10_000,
        noise: float | None = None,
        global_batch_size: int = 256,
        predict_n: int = 1000,
        seed: int | None = None,
    ) -> None:
        super().__init__(global_batch_size, predict_n, seed)
        check_memory(f"n {n} of three splits", 3 * 8 * n)
        self.kind = kind
        self.n = n
        self.noise = NOISE[kind] if noise is None else noise
        at_least(1, self, n=n)
        at_least(0, self, noise=self.noise)
        self.num_classes = CLASSES.get(kind)
        self._drawn: dict[Split, tuple[Tensor, Tensor]] = {}

    @property
    @override
    def shape(self) -> tuple[int, ...]:
        return (2,)

    @override
    def samples(self, split: Split) -> tuple[Tensor, Tensor]:
        if split not in self._drawn:
            key = (self.seed or 0, ("train", "val", "test").index(split))
            random = RandomState(np.random.MT19937(np.random.SeedSequence(key)))
            points, labels = draw(self.kind, self.n, self.noise, random)
            self._drawn[split] = (
                torch.from_numpy(points.astype(np.float32)),
                torch.from_numpy(labels.astype(np.int64)),
            )
        return self._drawn[split]

    @override
    def finish(self, raw: RawBatch) -> Batch:
        return Batch(raw.samples, Condition(raw.labels), raw.index, raw.row)


def draw(kind: Kind, n: int, noise: float, random: RandomState) -> tuple[np.ndarray, np.ndarray]:
    """Draw points float64 [n, 2] and labels [n] of a distribution with Gaussian noise."""
    from sklearn.datasets import make_moons, make_swiss_roll  # here, for it takes half a second

    if kind == "swiss_roll":
        spiral, _ = make_swiss_roll(n, noise=10 * noise, random_state=random)
        return spiral[:, [0, 2]] / 10, np.zeros(n)
    if kind == "moons":
        points, labels = make_moons(n, noise=noise, random_state=random)
        return points - [0.5, 0.25], labels
    if kind == "mixture":
        labels = random.randint(COMPONENTS, size=n)
        angles = 2 * np.pi * labels / COMPONENTS
        centres = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        return centres + noise * random.randn(n, 2), labels
    column, half = random.randint(4, size=n), random.randint(2, size=n)
    row = 2 * half + column % 2  # black where column and row are both even or both odd
    corner = np.stack([column, row], axis=1)
    points = (corner + random.rand(n, 2)) / 2 - 1
    return points + noise * random.randn(n, 2), np.zeros(n)
