"""Speed of the loader alone, without a network: images a second from each store of a folder.

    python -m tests.loader DIR [--size 32] [--batches 300] [--rounds 5]

Stores take turns, and the ratio to memory is the median over rounds, so that other work on the
machine falls on all. A ratio of processor time counts only this process, not the workers.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Iterator
from itertools import cycle
from typing import Any

from ddpm_lightning.data import ImageFolder

STORES: dict[str, dict[str, Any]] = {
    "memory": {},
    "mapped": {},
    "streamed": {"workers": 2},
}


def endless(data: ImageFolder) -> Iterator[Any]:
    """Every batch of one epoch after another."""
    for loader in cycle([data.train_dataloader()]):
        yield from loader


def timed(batches: Iterator[Any], n: int) -> tuple[float, float]:
    """Seconds by the clock and of this process, of n batches."""
    clock, process = time.perf_counter(), time.process_time()
    for _ in range(n):
        next(batches)
    return time.perf_counter() - clock, time.process_time() - process


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--batches", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cache", default="data/cache")
    given = parser.parse_args()
    runs = {}
    for store, settings in STORES.items():
        data = ImageFolder(
            given.root,
            size=given.size,
            store=store,  # type: ignore[arg-type]
            flip=True,
            cache=given.cache,
            global_batch_size=given.batch,
            **settings,
        )
        data.prepare_data()
        runs[store] = endless(data)
        timed(runs[store], 20)
    print(f"load average {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores")
    seconds: dict[str, list[tuple[float, float]]] = {store: [] for store in STORES}
    for _ in range(given.rounds):
        for store, batches in runs.items():
            n = given.batches if store != "streamed" else max(1, given.batches // 10)
            wall, own = timed(batches, n)
            seconds[store].append((wall / n, own / n))
    for store, found in seconds.items():
        speed = given.batch / statistics.median(wall for wall, _ in found)
        pairs = list(zip(seconds["memory"], found, strict=True))
        ratio = statistics.median(a[0] / b[0] for a, b in pairs)
        own = statistics.median(a[1] / b[1] for a, b in pairs)
        print(f"{store:9s} {speed:12,.0f} images/s   ratio {ratio:.3f}   of CPU time {own:.3f}")
    print(f"load average {os.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    main()
