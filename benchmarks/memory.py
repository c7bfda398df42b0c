"""Peak memory: a training step, activation checkpointing, evaluation, precision and recall.

python -m benchmarks.memory [--batch 32] [--features 50000]

Every figure is of a process of its own: the peak of its memory less what the imports took; on CUDA
what torch allocated at most. Time is processor time, the ways in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.report import Report
from benchmarks.timing import Spread, in_turn, ratio
from ddpm_lightning.batch import DataSpec
from ddpm_lightning.networks import DiT, UNet

CIFAR = DataSpec((3, 32, 32), (-1.0, 1.0))
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def diffusers_unet() -> nn.Module:
    """The network of google/ddpm-cifar10-32, which is DDPM's for CIFAR-10."""
    from diffusers import UNet2DModel

    down = ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D")
    up = ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    network: Any = UNet2DModel(
        sample_size=32,
        block_out_channels=(128, 256, 256, 256),
        down_block_types=down,
        up_block_types=up,
        attention_head_dim=256,
        downsample_padding=0,
        dropout=0.1,
    )
    assert isinstance(network, nn.Module)
    return network


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "UNet": lambda: UNet(CIFAR, 3),
    "UNet, checkpointing": lambda: UNet(CIFAR, 3, activation_checkpointing=True),
    "UNet2DModel": diffusers_unet,
    "DiT": lambda: DiT(CIFAR, 3),
    "DiT, checkpointing": lambda: DiT(CIFAR, 3, activation_checkpointing=True),
}


def training_step(name: str, batch: int) -> Callable[[], None]:
    """A step of Adam on the mean squared error, with the network of that name."""
    torch.manual_seed(0)
    net = NETWORKS[name]().to(DEVICE).train()
    optimizer = torch.optim.Adam(net.parameters(), 2e-4)
    x, t = torch.randn(batch, 3, 32, 32, device=DEVICE), torch.full((batch,), 500.0, device=DEVICE)

    def step() -> None:
        optimizer.zero_grad()
        output = net(x, t)
        output = output if isinstance(output, Tensor) else output.sample
        (output - x).square().mean().backward()
        optimizer.step()

    return step


def steps_peak(name: str, batch: int) -> float:
    """Peak of two steps: the second finds the optimizer's moments there."""
    step = training_step(name, batch)
    step()
    step()
    return peak()


def manifold_peak(count: int) -> float:
    """Peak of precision, recall, density and coverage of two sets of features [count, 2048]."""
    from ddpm_lightning.metrics import Comparison, Features, PrecisionRecall

    x, y = torch.randn(count, 2048), torch.randn(count, 2048)
    PrecisionRecall()(Comparison(Features(x), Features(y)))
    return peak()


def evaluation_peak(checkpoint: str, count: int) -> float:
    """Peak of evaluate with so many samples."""
    from ddpm_lightning.cli import main

    with tempfile.TemporaryDirectory() as folder:
        words = [f"--ckpt={checkpoint}", f"--out={folder}/out", f"--n={count}", "--device=cpu"]
        main(["evaluate", *words, "--sampler=DDIM", "--sampler.steps=1", "--batch_size=64"])
    return peak()


MEASURES: dict[str, Callable[..., float]] = {
    "steps": steps_peak,
    "manifold": manifold_peak,
    "evaluation": evaluation_peak,
}


def peak() -> float:
    """The most memory that this process has had, in bytes; on CUDA what torch had allocated."""
    if DEVICE == "cuda":
        return float(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would count the parent before exec
        line = next(one for one in status.read_text().splitlines() if one.startswith("VmHWM"))
        return float(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit


def measured(name: str, *arguments: object) -> dict[str, float]:
    """Run a measure in a process of its own: bytes above what the imports took, and seconds."""
    call = [sys.executable, "-m", "benchmarks.memory", "--measure", json.dumps([name, *arguments])]
    # So that what is freed goes back to the system, and the peak is that of what is in use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(call, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(words: str) -> None:
    """Do one measure in this process, and print it as JSON."""
    import ddpm_lightning.cli
    import ddpm_lightning.metrics  # noqa: F401 (so that the base has all imports)

    name, *arguments = json.loads(words)
    if DEVICE == "cpu":
        torch.randn(8, 8).mm(torch.randn(8, 8))
    base, start = peak(), time.perf_counter()
    found = MEASURES[name](*arguments) - base
    print(json.dumps({"bytes": found, "seconds": time.perf_counter() - start}))


def add_steps(report: Report, batch: int, rounds: int) -> None:
    """Compare the steps of all networks."""
    peaks = {name: measured("steps", name, batch)["bytes"] for name in NETWORKS}
    note = {name: f"{value / 2**20:.0f} MiB" for name, value in peaks.items()}
    report.add(
        "peak of a CIFAR step, UNet / diffusers' UNet2DModel",
        Spread.of([peaks["UNet"] / peaks["UNet2DModel"]]),
        at_most=1.0,
        note=f"{note['UNet']} and {note['UNet2DModel']}",
    )
    for name in ("UNet", "DiT"):
        saving = f"{name}, checkpointing"
        report.add(
            f"peak with activation checkpointing / without, {name}",
            Spread.of([peaks[saving] / peaks[name]]),
            at_most=0.6,
            note=f"{note[saving]} and {note[name]}",
        )
        ways = {one: training_step(one, batch) for one in (name, saving)}
        seconds = in_turn(ways, rounds)
        report.add(
            f"CPU time with activation checkpointing / without, {name}",
            ratio(seconds[saving].cpu, seconds[name].cpu),
            at_most=1.35,
        )


def add_evaluation(report: Report) -> None:
    """Compare evaluations of few and of many samples, of 784 pixels each."""
    from ddpm_lightning.cli import main

    few, many = 2000, 8000  # below, Python's table of interned strings has yet to double
    with tempfile.TemporaryDirectory() as folder:
        words = ["--config=configs/mnist_quick.yaml", "--data=Letters", "--model.net.channels=8"]
        words += ["--trainer.max_steps=1", "--trainer.callbacks=[]", "--grid=null"]
        words += ["--metrics=null", "--trainer.limit_val_batches=0"]
        main(["fit", *words, f"--trainer.default_root_dir={folder}/run"])
        checkpoint = f"{folder}/run/checkpoints/last.ckpt"
        peaks = [measured("evaluation", checkpoint, n)["bytes"] for n in (few, many)]
    report.add(
        "bytes that another sample costs evaluate; its features are 376",
        Spread.of([(peaks[1] - peaks[0]) / (many - few)]),
        at_most=1000,
        note=f"{peaks[0] / 2**20:.0f} MiB with {few:,}, {peaks[1] / 2**20:.0f} with {many:,}",
    )


def main() -> int:
    """Print the table; 1 if a limit does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=32, help="images of a step")
    parser.add_argument("--rounds", type=int, default=3, help="timed steps of each way")
    parser.add_argument("--features", type=int, default=50_000, help="of precision and recall")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.measure:
        measure(settings.measure)
        return 0
    report = Report(f"Memory, batches of {settings.batch} on {DEVICE}")
    add_steps(report, settings.batch, settings.rounds)
    add_evaluation(report)
    found = measured("manifold", settings.features)
    report.add(
        f"GB, precision and recall of two sets of {settings.features:,} × 2048, with them",
        Spread.of([found["bytes"] / 1e9]),
        at_most=1.0,
        note=f"{found['seconds'] / 60:.1f} minutes",
    )
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
