"""What a peer of a comparison must offer, and its training for a time or a number of images."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.timing import wait_for_gpu


class Peer(ABC):
    """A small network of another library with that library's own recipe.

    Attributes:
        name: The library.
        model: The network that is trained.
        batch_size: Images of a step.
        flips: Whether the recipe mirrors half of its images.
        device: Where the network is.
    """

    name: str
    model: nn.Module
    batch_size: int
    flips: bool = True
    device: str = "cpu"

    @abstractmethod
    def step(self, images: Tensor, progress: float) -> None:
        """Take an optimizer step.

        Args:
            images: float32 [B, C, H, W] in [−1, 1].
            progress: Share of the training that is over, for the learning rate.
        """

    @abstractmethod
    def sample(self, n: int, seed: int) -> Tensor:
        """Draw float32 [n, C, H, W] in [−1, 1] by 50 steps of DDIM with averaged weights."""

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(weight.numel() for weight in self.model.parameters())


@dataclass(frozen=True)
class Trained:
    """What a training took.

    Args:
        seconds: Wall time.
        cpu_seconds: Processor time of the process, all threads together.
        images: Images seen.
    """

    seconds: float
    cpu_seconds: float
    images: int


Progress = Callable[[float, int], float]
"""The share of a training that is over, of its seconds and images so far; it ends at 1."""


def after_seconds(limit: float) -> Progress:
    """Let a training end after a wall time."""
    return lambda seconds, images: seconds / limit


def after_images(limit: int) -> Progress:
    """Let a training end after a number of images."""
    return lambda seconds, images: images / limit


def train(peer: Peer, images: Tensor, progress: Progress, seed: int) -> Trained:
    """Train a peer on images uint8 [N, C, H, W] in memory until its progress is 1.

    The images come from memory, which is faster than the peers' own pipelines. Digits are not
    mirrored, whatever the recipe says: it would teach shapes that the data has not.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    mirrored = peer.flips and images.shape[1] == 3
    start, cpu, seen, seconds = time.perf_counter(), time.process_time(), 0, 0.0
    while (done := progress(seconds, seen)) < 1:
        rows = torch.randint(len(images), (peer.batch_size,), generator=generator)
        batch = images[rows].float().div_(127.5).sub_(1)
        if mirrored:
            flip = torch.rand(len(batch), 1, 1, 1, generator=generator) < 0.5
            batch = torch.where(flip, batch.flip(-1), batch)
        peer.step(batch.to(peer.device), done)
        seen += peer.batch_size
        seconds = time.perf_counter() - start
    wait_for_gpu()
    seconds = time.perf_counter() - start
    return Trained(seconds, time.process_time() - cpu, seen)
