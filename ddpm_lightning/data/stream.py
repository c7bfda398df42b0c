"""Order of the samples: an endless shuffled training stream, and evaluation in order.

The training order is a function of (seed, optimizer step). Row r of the global batch of step k
has position p = k·global_batch + r, and position p holds sample ``permutation_e[p mod n]`` with
e = p // n. So every sample is seen once per n positions, every batch is full, and the samples of
step k depend neither on the number of processes nor on resuming.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import KW_ONLY, dataclass
from enum import IntEnum
from functools import lru_cache
from itertools import product
from math import ceil
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddpm_lightning.errors import InputError

Indices = NDArray[np.int64]
Flips = NDArray[np.bool_]


class Purpose(IntEnum):
    """Independent streams of random numbers, one a purpose."""

    ORDER = 0
    FLIP = 1
    SUBSET = 2
    CROP = 3
    HELD_OUT = 4


@dataclass(frozen=True)
class Layout:
    """Division of a global batch over processes (rank of world) and gradient accumulation."""

    global_batch: int
    rank: int = 0
    world: int = 1
    accumulate: int = 1

    @property
    def batch(self) -> int:
        """Samples per micro-batch on one process, rounded up."""
        return ceil(self.global_batch / (self.world * self.accumulate))

    def first_row(self, micro: int) -> int:
        """Return the row of the global batch at which this process's micro-batch begins."""
        return (micro * self.world + self.rank) * self.batch

    def check(self) -> None:
        """Raise InputError unless the global batch divides evenly."""
        parts = self.world * self.accumulate
        if self.global_batch % parts:
            below = self.global_batch // parts * parts
            nearest = " or ".join(str(size) for size in (below, below + parts) if size)
            raise InputError(
                f"global_batch_size {self.global_batch} does not divide by {self.world} processes "
                f"× {self.accumulate} accumulated micro-batches = {parts}; use {nearest}"
            )


class Places(NamedTuple):
    """The samples of a batch: indices in the split int64 [B], and the rows to mirror bool [B].

    ``row`` are rows in the global batch of the optimizer step, int64 [B]; None outside training.
    ``crop`` are random numbers that place the crops, float64 [B, k] in [0, 1); None: none.
    """

    index: Indices  # type: ignore[assignment]  # hides tuple.index
    flip: Flips | None = None
    row: Indices | None = None
    crop: NDArray[np.float64] | None = None


MakeBatches = Callable[[Iterable[Places]], Iterator[Any]]
"""Function from the Places of each batch to the batches, in order; it may prefetch."""


@dataclass(eq=False)
class TrainingStream:
    """The endless stream of a process's micro-batches; an iterator yields one epoch of them.

    Each new iterator continues where the last one stopped, at the first micro-batch of the first
    unfinished step. Lightning stores the position in checkpoints by ``state_dict``.

    Args:
        n: Number of samples.
        layout: This process's share of a global batch.
        make_batches: From places to batches.
        seed: Seed of order and flips, ≥ 0.
        flip: Flip half of the rows, decided by (seed, position).
        shuffle: False repeats the samples in order.
        crop_draws: Random numbers per row that place its crop, by (seed, position).
        steps_per_epoch: Optimizer steps per iterator; 0: n // global_batch, at least 1.
        step: The optimizer step to start from.

    Raises:
        InputError: The global batch does not divide evenly.
    """

    n: int
    layout: Layout
    make_batches: MakeBatches
    _: KW_ONLY
    seed: int = 0
    flip: bool = False
    shuffle: bool = True
    crop_draws: int = 0
    steps_per_epoch: int = 0
    step: int = 0

    def __post_init__(self) -> None:
        self.layout.check()
        self.steps_per_epoch = self.steps_per_epoch or max(1, self.n // self.layout.global_batch)

    def __len__(self) -> int:
        """Micro-batches per epoch."""
        return self.steps_per_epoch * self.layout.accumulate

    def __iter__(self) -> Iterator[Any]:
        """Yield the micro-batches of the next ``steps_per_epoch`` steps."""
        steps = range(self.step, self.step + self.steps_per_epoch)
        plan = list(product(steps, range(self.layout.accumulate)))
        batches = self.make_batches(self.places(step, micro) for step, micro in plan)
        for (step, micro), batch in zip(plan, batches, strict=True):
            if micro == self.layout.accumulate - 1:
                # Before the yield, because with the last micro-batch the step is complete.
                self.step = step + 1
            yield batch

    def places(self, step: int, micro: int) -> Places:
        """The samples of this process at a step and micro-batch."""
        row = self.layout.first_row(micro) + np.arange(self.layout.batch)
        first = step * self.layout.global_batch + int(row[0])
        flip = coin_flips(self.seed, first, len(row)) if self.flip else None
        crop = uniform(self.seed, first, len(row), self.crop_draws) if self.crop_draws else None
        return Places(self._indices(first, len(row)), flip, row, crop)

    def state_dict(self) -> dict[str, int]:
        """The number of completed optimizer steps as ``{"step": n}``."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restore the position; raise InputError if the state is none."""
        step = state.get("step")
        if type(step) is not int or step < 0:
            raise InputError(f"the checkpoint's position in the data is {step!r:.40}, not a step")
        self.step = step

    def _indices(self, first: int, rows: int) -> Indices:
        epochs, indices = np.divmod(np.arange(first, first + rows), self.n)
        if self.shuffle:
            for epoch in np.unique(epochs):
                in_epoch = epochs == epoch
                indices[in_epoch] = permutation(self.seed, self.n, int(epoch))[indices[in_epoch]]
        return indices


class EvaluationLoader:
    """Loader of every sample once over all processes, in order: r, r + world, … on process r.

    All processes get the same number of non-empty batches, because a collective call in a step
    would otherwise wait for a process that has finished.

    Raises InputError: There are more processes than samples.
    """

    def __init__(self, n: int, layout: Layout, make_batches: MakeBatches) -> None:
        if n < layout.world:
            raise InputError(
                f"{n} samples cannot be shared by {layout.world} processes; use at most {n} "
                "(--trainer.devices) or more samples"
            )
        # The largest share sets the number of batches, the smallest one limits it.
        batches = min(ceil(ceil(n / layout.world) / layout.batch), n // layout.world)
        self.chunks = np.array_split(np.arange(layout.rank, n, layout.world), batches)
        self.make_batches = make_batches

    def __len__(self) -> int:
        """Batches per process."""
        return len(self.chunks)

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches in order."""
        return self.make_batches(Places(chunk) for chunk in self.chunks)


@lru_cache(maxsize=2)
def permutation(seed: int, n: int, epoch: int, purpose: Purpose = Purpose.ORDER) -> Indices:
    """A permutation of 0…n − 1, int64 [n], by (seed, epoch, purpose) alone."""
    return np.argsort(_words(seed, purpose, epoch, 0, n), kind="stable")


def coin_flips(seed: int, first: int, n: int) -> Flips:
    """Fair coin flips, bool [n], of the positions first…first + n − 1."""
    return (_words(seed, Purpose.FLIP, 0, first, n) & np.uint64(1)).astype(bool)


def uniform(seed: int, first: int, n: int, draws: int) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), float64 [n, draws], of the positions first…first + n − 1."""
    words = _words(seed, Purpose.CROP, 0, first * draws, n * draws).reshape(n, draws)
    return (words >> np.uint64(11)) * 2.0**-53


def _words(seed: int, purpose: Purpose, epoch: int, first: int, n: int) -> NDArray[np.uint64]:
    """The random numbers first…first + n − 1 of a Philox sequence, uint64 [n]."""
    # Raw words, because the methods of numpy's Generator may change with numpy's version.
    block, skip = divmod(first, 4)  # a Philox counter gives four words
    bits = np.random.Philox(
        key=np.array([seed, purpose], dtype=np.uint64),
        counter=np.array([block, 0, 0, epoch], dtype=np.uint64),
    )
    return bits.random_raw(skip + n)[skip:]
