"""Time against image side, channels, batch, samples and processes, and the model behind each.

    python -m benchmarks.growth [--out runs/growth] [--rounds 5]

Processor time of a training step of a small U-Net with attention at half resolution, of sampling,
and of training by several processes, against what the operations say: a constant (Python, small
kernels) and powers. Coefficients are fitted with none below zero, by least relative squares; the
largest relative distance of a median from its model must stay below a limit. Writes growth.png.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from scipy.optimize import nnls

from benchmarks.data import Noise
from benchmarks.loops import Recipe, Step, bare_step
from benchmarks.report import Report
from benchmarks.timing import Spread, in_turn
from ddpm_lightning.diffusion.samplers import DDIM
from ddpm_lightning.plots.figure import new_figure, write_figure
from ddpm_lightning.sampling import Request

CPU = torch.device("cpu")
SMALL = Recipe(channels=32, multipliers=(1, 2), blocks=1, groups=8, dropout=0.0, side=16, batch=8)
LIMIT = 0.25
"""Of the largest relative distance from the model."""


@dataclass(frozen=True)
class Law:
    """What grows with what.

    Args:
        name: Of what is timed.
        quantity: What it is timed against.
        sizes: Its values.
        powers: Of the quantity, that the model adds up.
        make: Makes what is timed, of a value.
    """

    name: str
    quantity: str
    sizes: Sequence[int]
    powers: Sequence[int]
    make: Callable[[int], Step]


@dataclass
class Fit:
    """A law's times and its model.

    Args:
        law: The law.
        times: Seconds at each size.
        coefficients: Of its powers.
    """

    law: Law
    times: list[Spread]
    coefficients: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        terms = self._terms(self.law.sizes)
        medians = np.array([one.median for one in self.times])
        self.coefficients = list(nnls(terms / medians[:, None], np.ones(len(medians)))[0])

    def __call__(self, sizes: Sequence[float] | np.ndarray) -> np.ndarray:
        """Seconds by the model."""
        return self._terms(sizes) @ np.array(self.coefficients)

    @property
    def apart(self) -> float:
        """The largest relative distance of a median from the model."""
        medians = np.array([one.median for one in self.times])
        return float(np.abs(medians / self(self.law.sizes) - 1).max())

    @property
    def words(self) -> str:
        """The model as a formula, in milliseconds."""
        signs = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
        parts = []
        for power, value in zip(self.law.powers, self.coefficients, strict=True):
            symbol = "" if power == 0 else "x" + (str(power).translate(signs) if power > 1 else "")
            parts += [f"{1000 * value:.3g}{'·' * bool(power)}{symbol}"] if value else []
        return " + ".join(parts) + " ms"

    def _terms(self, sizes: Sequence[float] | np.ndarray) -> np.ndarray:
        return np.array(sizes, float)[:, None] ** np.array(self.law.powers, float)


def training(**changes: Any) -> Step:
    """A training step of the small network with some other setting."""
    return bare_step(replace(SMALL, **changes), CPU, None)


def sampling(n: int) -> Step:
    """Draw n samples of four evaluations each, in batches of 16."""
    module = SMALL.module()
    request = Request(DDIM(4), batch_size=16)
    return lambda: module.generate(torch.arange(n), request)


LAWS = [
    # Convolutions grow with the pixels, products of attention with their square.
    Law(
        "training step",
        "image side",
        [8, 16, 24, 32, 48],
        [0, 2, 4],
        lambda side: training(side=side),
    ),
    # Norms and activations grow with the channels, convolutions with their square.
    Law(
        "training step",
        "channels",
        [16, 32, 48, 64, 96],
        [0, 1, 2],
        lambda n: training(channels=n),
    ),
    Law("training step", "batch", [2, 4, 8, 16, 32], [0, 1], lambda n: training(batch=n)),
    Law("sampling", "samples", [16, 32, 64, 96], [0, 1], sampling),
]


def measured(law: Law, rounds: int) -> Fit:
    """Time a law's sizes in turn."""
    seconds = in_turn({str(size): law.make(size) for size in law.sizes}, rounds)
    return Fit(law, [Spread.of(taken.cpu) for taken in seconds.values()])


class Clock(Callback):
    """Times turns of fit on all processes together.

    Attributes:
        cpu: Processor seconds a step, of all processes, turn by turn.
        wall: Seconds a step by the clock of this one.

    Args:
        n: Steps a turn.
        warm: Steps before.
    """

    def __init__(self, n: int = 5, warm: int = 5) -> None:
        self.n = n
        self.warm = warm
        self.cpu: list[float] = []
        self.wall: list[float] = []
        self._since = 0.0, 0.0

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Keep a turn that has ended; the sum over processes is not timed."""
        step = trainer.global_step - self.warm
        if step < 0 or step % self.n:
            return
        wall, cpu = time.perf_counter() - self._since[0], time.process_time() - self._since[1]
        if step:
            total = trainer.strategy.reduce(torch.tensor(cpu), reduce_op="sum")
            self.cpu.append(float(total) / self.n)
            self.wall.append(wall / self.n)
        self._since = time.perf_counter(), time.process_time()


def child(processes: int, turns: int) -> None:
    """Train on one or more processes, 32 images a step in all; print the times as JSON."""
    clock = Clock()
    with TemporaryDirectory() as folder:
        trainer = Trainer(
            default_root_dir=folder,
            accelerator="cpu",
            devices=processes,
            strategy="ddp" if processes > 1 else "auto",
            max_steps=clock.warm + turns * clock.n,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[clock],
        )
        trainer.fit(SMALL.module(), Noise(3, SMALL.side, 32, n=256))
    if trainer.is_global_zero:
        print(json.dumps({"cpu": clock.cpu, "wall": clock.wall}))


def by_processes(report: Report, counts: Sequence[int], turns: int) -> Fit:
    """Start the child with every number of processes, on one thread each."""
    law = Law("training step, 32 images", "processes", counts, [0, 1], lambda _: lambda: None)
    found = []
    for count in counts:
        words = [sys.executable, "-m", "benchmarks.growth", "--processes", str(count)]
        words += ["--rounds", str(turns)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(words, capture_output=True, text=True, env=environment, check=True)
        line = next(one for one in done.stdout.splitlines() if one.startswith('{"cpu"'))
        found.append(json.loads(line))
    wall = [Spread.of(one["wall"]).median for one in found]
    for count, seconds in zip(counts[1:], wall[1:], strict=True):
        report.add(f"{count} processes / 1, by the clock", Spread.of([wall[0] / seconds]))
    return Fit(law, [Spread.of(one["cpu"]) for one in found])


def drawn(fits: Sequence[Fit], path: Path) -> None:
    """Draw times and models, a panel a law."""
    figure = new_figure(3.2 * len(fits), 3)
    for axes, fit in zip(np.atleast_1d(figure.subplots(1, len(fits))), fits, strict=True):
        sizes = fit.law.sizes
        line = np.geomspace(min(sizes), max(sizes), 100)
        axes.plot(line, 1000 * fit(line), label=fit.words)
        medians = [1000 * one.median for one in fit.times]
        spread = [
            [1000 * (one.median - one.low) for one in fit.times],
            [1000 * (one.high - one.median) for one in fit.times],
        ]
        axes.errorbar(sizes, medians, spread, fmt="o", capsize=2)
        axes.set(xscale="log", yscale="log", xlabel=fit.law.quantity)
        axes.set_xticks(sizes, map(str, sizes))
        low, high = axes.get_ylim()
        shown = [one * 10**k for k in range(5) for one in (1, 2, 5) if low < one * 10**k < high]
        axes.set_yticks(shown, map(str, shown))
        axes.minorticks_off()
        axes.set_title(fit.law.name, fontsize=9)
        axes.legend(fontsize=7)
    figure.axes[0].set_ylabel("processor time, ms")
    write_figure(path, figure)


def main(args: list[str] | None = None) -> int:
    """Print the table and draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/growth"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args(args)
    torch.set_num_threads(1)
    if given.processes:
        child(given.processes, given.rounds)
        return 0
    report, fits = Report("Growth: processor time on one thread, and the model behind it"), []
    for law in (*LAWS, None):
        fit = measured(law, given.rounds) if law else by_processes(report, [1, 2, 4], given.rounds)
        fits.append(fit)
        law = fit.law
        for size, taken in zip(law.sizes, fit.times, strict=True):
            milliseconds = Spread(*(1000 * s for s in (taken.median, taken.low, taken.high)))
            report.add(f"{law.name}, {law.quantity} {size}: ms", milliseconds)
        name = f"{law.name} by {law.quantity}: farthest from its model"
        report.add(name, Spread.of([fit.apart]), at_most=LIMIT, note=fit.words)
    given.out.mkdir(parents=True, exist_ok=True)
    drawn(fits, given.out / "growth.png")
    print(f"the plot: {given.out / 'growth.png'}")
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
