"""What fit costs beside a bare loop: python -m benchmarks.overhead.

Training of a small network on 28×28 digits in batches of 64, with the callbacks of the command
line between two of their events, in turn with a loop of plain PyTorch around the same network,
loss, optimizer, clipping and average; and the share of the average and of the keyed noise.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from tempfile import TemporaryDirectory

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import TensorBoardLogger

from benchmarks.loops import SMALL, Recipe, Step, bare_step
from benchmarks.report import Report
from benchmarks.timing import Seconds, Spread, ratio
from benchmarks.turns import Turns
from ddpm_lightning import DiffusionModule
from ddpm_lightning.callbacks import (
    LossByTimestep,
    RunCheckpoint,
    SampleGrid,
    StepProgressBar,
    TrainingMonitor,
)
from ddpm_lightning.data import Digits
from ddpm_lightning.diffusion.samplers import DDIM
from ddpm_lightning.randomness import BatchNoise, Draw

CPU = torch.device("cpu")
SELDOM = 10**6
"""Steps from one event to the next: none while we look."""


def parts(recipe: Recipe) -> dict[str, Step]:
    """The average's update and the noise of a batch, on their own."""
    module, rows = recipe.module(), torch.arange(recipe.batch)

    def noise() -> None:
        drawn = BatchNoise(0, 1, rows, len(rows))
        drawn(Draw.EPS, recipe.spec.shape)
        drawn.uniform(1)

    return {"EMA": lambda: module.ema.update(module.net, 10), "keyed noise": noise}


def timed(recipe: Recipe, turns: int, n: int) -> dict[str, Seconds]:
    """Seconds a step: of fit, of the bare loop, and of the parts."""
    module: DiffusionModule = recipe.module()
    watch = Turns({"bare loop": bare_step(recipe, CPU, None), **parts(recipe)}, n, warm=2)
    with TemporaryDirectory() as folder:
        trainer = Trainer(
            default_root_dir=folder,
            accelerator="cpu",
            devices=1,
            max_steps=2 + n * turns,
            gradient_clip_val=1.0,
            limit_val_batches=0,
            logger=TensorBoardLogger(folder),
            enable_model_summary=False,
            callbacks=[
                watch,
                LossByTimestep(),
                LearningRateMonitor(),
                StepProgressBar(),
                SampleGrid(SELDOM, n=1, sampler=DDIM(1)),
                TrainingMonitor(),
                RunCheckpoint(every_n_steps=SELDOM),
            ],
        )
        trainer.fit(module, Digits(image_size=recipe.side, global_batch_size=recipe.batch))
    return watch.seconds


def main(words: Sequence[str] | None = None, recipe: Recipe = SMALL) -> int:
    """Measure, print the table and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--steps", type=int, default=10, help="steps a turn")
    given = parser.parse_args(words)
    seconds = timed(recipe, given.turns, given.steps)
    report = Report("fit beside a bare PyTorch loop: processor time")
    for name, own in seconds.items():
        report.add(f"{name}, ms a step", Spread.of([1000 * one for one in own.cpu]))
    step = seconds["fit"].cpu
    report.add("fit / bare loop", ratio(seconds["bare loop"].cpu, step), at_least=0.97)
    report.add("share of the EMA", ratio(seconds["EMA"].cpu, step), at_most=0.02)
    report.add("share of keyed noise", ratio(seconds["keyed noise"].cpu, step), at_most=0.03)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
