"""Counter-based noise: every number is a function of (seed, stream, index, draw).

So sample k is the same for any batch size and number of processes, a resumed run sees the noise
of an uninterrupted one, and different keys give independent numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from ddpm_lightning.errors import InputError

LARGEST_SEED = 2**64 - 1
"""The generator's key has 64 bits."""


class Stream(IntEnum):
    """Independent streams of noise, one a purpose; 0 is taken by the data's order and flips."""

    SAMPLING = 1
    TRAINING = 2
    VALIDATION = 3
    STEP = 4
    LIKELIHOOD = 5


class Draw(IntEnum):
    """Draw numbers reserved for training and evaluation steps.

    They are 0 or far above those that samplers and timestep distributions count up from 1, so
    that custom ones never share a draw with them.
    """

    EPS = 0
    """The noise added to the data."""
    LABEL_DROPOUT = 2**32
    """The choice of labels to drop."""
    SELF_CONDITIONING = 2**32 + 1
    """The choice of steps whose network is shown its own estimate."""
    POSTERIOR = 2**32 + 2
    """The draw of latents from an encoder's posterior."""


NORMAL, UNIFORM = 0, 1


class IndexedNoise:
    """Noise keyed by sample index: row i depends on (seed, stream, indices[i], draw) alone.

    Args:
        seed: The run's seed, ≥ 0.
        indices: int64 [n] sample indices.
        stream: The purpose of the noise.
        device: Device of the result; the numbers are drawn on the CPU.
    """

    def __init__(
        self,
        seed: int,
        indices: Tensor,
        stream: Stream = Stream.SAMPLING,
        device: torch.device | str = "cpu",
    ) -> None:
        self.seed = seed
        self.indices = indices.tolist()
        self.stream = stream
        self.device = device

    def __call__(self, draw: int, shape: tuple[int, ...]) -> Tensor:
        """Standard normal float32 [n, *shape]."""
        rows = np.empty((len(self.indices), *shape), dtype=np.float32)
        for row, generator in zip(rows, self._generators(draw, NORMAL), strict=True):
            generator.standard_normal(dtype=np.float32, out=row)
        return self._move(rows)

    def uniform(self, draw: int) -> Tensor:
        """Uniform float32 [n] in [0, 1)."""
        generators = self._generators(draw, UNIFORM)
        rows = [generator.random(dtype=np.float32) for generator in generators]
        return self._move(np.array(rows, dtype=np.float32))

    def _generators(self, draw: int, kind: int) -> Iterator[np.random.Generator]:
        # One generator, whose key and counter are set per row because creating one is slow.
        bits = np.random.Philox(0)
        generator = np.random.Generator(bits)
        state = bits.state
        for index in self.indices:
            state["state"]["key"][:] = (self.seed, index)
            state["state"]["counter"][:] = (0, draw, self.stream, kind)
            bits.state = state
            yield generator

    def _move(self, rows: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(rows)
        if torch.device(self.device).type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)


class BatchNoise(IndexedNoise):
    """Noise for rows of the global batch of a training step.

    Args:
        seed: The run's seed, ≥ 0.
        step: The optimizer step.
        rows: int64 [n] rows in the global batch.
        global_batch_size: Samples per optimizer step, over all processes and micro-batches.
        device: Device of the result.
    """

    def __init__(
        self,
        seed: int,
        step: int,
        rows: Tensor,
        global_batch_size: int,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(seed, step * global_batch_size + rows, Stream.TRAINING, device)
        self.step = step
        self.rows = rows
        self.global_batch_size = global_batch_size

    def shared(self, draw: int) -> Tensor:
        """Uniform float32 [] in [0, 1), the same for every row of the step."""
        noise = IndexedNoise(self.seed, torch.tensor([self.step]), Stream.STEP, self.device)
        return noise.uniform(draw)[0]


def step_seed(seed: int, *key: int) -> int:
    """Mix a seed with a key (step, rank, …) into a seed for torch's global generator."""
    return int(np.random.SeedSequence((seed, *key)).generate_state(1, np.uint64)[0]) >> 1


def check_seed(seed: int) -> None:
    """Raise InputError unless the seed fits the generator's key."""
    if not 0 <= seed <= LARGEST_SEED:
        raise InputError(f"seed={seed}: give 0 or more, below 2**64")
