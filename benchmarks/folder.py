"""A folder of image files: decoding beside Pillow's own rate, each store, and a memory limit.

    python -m benchmarks.folder [--data-root DIR] [--size 32] [--rounds 3]

Without --data-root it draws JPEG files. Decoding is timed in processor time, ours that of the
workers together, since the cores may be shared; by the clock the ratio is Pillow's rate times the
cores. At the end a set of ten times a memory limit is read through within that limit.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from benchmarks.data import endless, take
from benchmarks.report import Report
from benchmarks.timing import Spread, in_turn, ratio
from ddpm_lightning.data import ImageFolder

MIB = 2**20
STORES: dict[Any, dict[str, Any]] = {"memory": {}, "mapped": {}, "streamed": {"workers": 2}}


def draw_files(folder: Path, n: int, side: int) -> None:
    """Write n JPEG files, of 50 pictures: smooth colours with some noise."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    pictures = []
    for _ in range(50):
        coarse = generator.integers(256, size=(8, 8, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
        noise = generator.integers(-8, 9, size=(side, side, 3))
        pixels = np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, "JPEG", quality=90)
        pictures.append(content.getvalue())
    for i in range(n):
        (folder / f"{i:06d}.jpg").write_bytes(pictures[i % len(pictures)])


def decoded(file: Path, size: int) -> np.ndarray:
    """Decode a file by Pillow alone: uint8 [size, size, 3]."""
    image: Image.Image = Image.open(file).convert("RGB")
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)


def decoding(
    report: Report, root: Path, size: int, rounds: int, at_least: float | None = None
) -> None:
    """Compare decoding by as many workers as there are cores with Pillow in one process."""
    cores = os.cpu_count() or 1
    names = sorted(root.rglob("*.jpg"))
    files = names[:1000]
    clocks, processors = [], []
    for _ in range(rounds):
        clock, own = time.perf_counter(), time.process_time()
        for file in files:
            decoded(file, size)
        one = (time.perf_counter() - clock) / len(files), (time.process_time() - own) / len(files)
        data = ImageFolder(str(root), size=size, store="memory", workers=cores)
        len(data.collection)  # as the files of the other are listed already
        clock, spent = time.perf_counter(), processor_time()
        data.source("train")
        all_ = (time.perf_counter() - clock) / len(names), (processor_time() - spent) / len(names)
        clocks.append(one[0] / cores / all_[0])
        processors.append(one[1] / all_[1])
    with Image.open(names[0]) as first:
        kind = f"files of {first.width}×{first.height} to {size}×{size}"
    share = Spread.of(processors)
    report.add(f"{kind}: of Pillow's rate, by processor time", share, at_least=at_least)
    report.add(f"{kind}: of Pillow's rate × {cores} cores, by the clock", Spread.of(clocks))
    report.add(f"{kind}: Pillow's images a CPU second", Spread.of([1 / one[1]]))


def processor_time() -> float:
    """Seconds of processor time of this process and of those that it started and that ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def stores(report: Report, root: Path, size: int, rounds: int, cache: str) -> None:
    """Compare the stores: training batches of 128 images from each."""
    ways, counts = {}, {store: 300 if store != "streamed" else 20 for store in STORES}
    for store, settings in STORES.items():
        data = ImageFolder(
            str(root),
            size=size,
            store=store,
            flip=True,
            cache=cache,
            global_batch_size=128,
            **settings,
        )
        data.prepare_data()
        ways[store] = partial(take, endless(data.train_dataloader()), counts[store])
    seconds = in_turn(ways, rounds)
    an_image = {
        store: [s / counts[store] / 128 for s in taken.wall] for store, taken in seconds.items()
    }
    for store, taken in an_image.items():
        report.add(f"store {store}: images/s", Spread.of([1 / s for s in taken]))
    own = {store: [s / counts[store] for s in taken.cpu] for store, taken in seconds.items()}
    report.add(
        "mapped / memory, by processor time", ratio(own["memory"], own["mapped"]), at_least=0.8
    )


def below_a_limit(report: Report, folder: Path, limit: int, side: int) -> None:
    """Read a set of ten times a limit, in bytes of decoded pixels, from the stores on the disk."""
    root = folder / "large"
    n = -(-10 * limit // (3 * side * side))
    draw_files(root, n, side)
    for store in ("streamed", "mapped"):
        words = [sys.executable, "-m", "benchmarks.folder", "--child", store, "--size", str(side)]
        words += ["--data-root", str(root), "--cache", str(folder / "cache")]
        # Because glibc keeps freed blocks of some MiB otherwise: 380 MiB, whatever the set.
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(MIB)}
        done = subprocess.run(words, capture_output=True, text=True, env=environment)
        name = f"{n * 3 * side**2 / MIB:,.0f} MiB of pixels, store {store}: MiB that it adds"
        if done.returncode:
            report.fail(name, done.stderr.strip().splitlines()[-1])
            continue
        grown = Spread.of([float(done.stdout.strip().splitlines()[-1])])
        report.add(name, grown, at_most=limit / MIB)


def child(root: Path, size: int, store: Any, cache: str) -> None:
    """Go through a set once; print the most MiB that this process and its workers have added."""
    data = ImageFolder(
        str(root), size=size, store=store, cache=cache, workers=1, global_batch_size=8
    )
    len(data.collection)
    before = memory_added()
    most, done = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.02):
            most = max(most, memory_added(before))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        data.prepare_data()
        take(endless(data.train_dataloader()), len(data.source("train")) // 8)
    finally:
        done.set()
        watcher.join()
    print(most / MIB)


def memory_added(before: int = 0) -> int:
    """Bytes that this process and each worker hold beyond what it began with.

    A worker begins with the pages of this process, which are shared until one of both writes to
    them. Pages of mapped files are left out, because the system drops them where memory is short.

    Args:
        before: Bytes of private memory of this process at the beginning.
    """
    own = str(os.getpid())
    children = Path(f"/proc/{own}/task/{own}/children").read_text().split()
    total = 0
    for process in (own, *children):
        try:
            lines = Path(f"/proc/{process}/status").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
        sizes = {line.split()[0]: 1024 * int(line.split()[1]) for line in lines if " kB" in line}
        if "RssAnon:" in sizes:
            total += max(0, sizes["RssAnon:"] - before) + sizes["RssShmem:"]
    return total


def main(args: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", "--data.root", type=Path)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", choices=list(STORES), help=argparse.SUPPRESS)
    parser.add_argument("--cache", default="data/cache", help=argparse.SUPPRESS)
    given = parser.parse_args(args)
    torch.set_num_threads(1)
    if given.child:
        child(given.data_root, given.size, given.child, given.cache)
        return 0
    report = Report(f"Image files at {given.size}×{given.size}")
    with TemporaryDirectory() as folder:
        root = given.data_root
        if root is None:
            root = Path(folder) / "images"
            draw_files(root, 12_000, given.size)
            photographs = Path(folder) / "photographs"
            draw_files(photographs, 3000, 400)
            decoding(report, photographs, 64, given.rounds, at_least=0.8)
        decoding(report, root, given.size, given.rounds, at_least=0.8)
        stores(report, root, given.size, given.rounds, str(Path(folder) / "cache"))
        below_a_limit(report, Path(folder), limit=64 * MIB, side=256)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
