"""Start-up: python -m benchmarks.startup.

Processor time of whole processes, beside that of one which only imports torch, or torch, Lightning
and torchvision. The commands run on scikit-learn's digits, by configs/digits.yaml.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lightning.pytorch import Callback

from benchmarks.report import Report
from benchmarks.timing import Seconds, Spread, in_turn, ratio
from ddpm_lightning.stored_help import FOLDER

TRAINING = ("fit", "validate", "test", "predict")
IMPORTS = "import torch, lightning, torchvision"
BUILDS = f"""{IMPORTS}
from ddpm_lightning.networks import UNet
from ddpm_lightning.batch import DataSpec
data = DataSpec(shape=(1, 8, 8), num_classes=10)
UNet(data, 1, channels=32, multipliers=[1, 2], blocks=2, attention_levels=[1], groups=8)
"""


class FirstStep(Callback):
    """Ends the process where the first training step would begin."""

    def on_train_batch_start(self, *_: Any) -> None:
        """Leave as a program does, because unloading takes time, too."""
        sys.exit(0)


def start(*words: str) -> None:
    """Run Python with these words to its end, and raise if it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr[-2000:]}")


def starting(*words: str) -> Callable[[], None]:
    """A way for :func:`in_turn`: one process."""
    return lambda: start(*words)


def program(*words: str) -> tuple[str, ...]:
    """The words after ``python`` of a command line of ours."""
    return ("-m", "ddpm_lightning", *words)


def plain_helps() -> list[tuple[str, ...]]:
    """The command lines that ask for the help of the program, and of each plain command."""
    commands = sorted(path.stem.split(".")[1:] for path in FOLDER.glob("*.txt"))
    return [program(*words, "--help") for words in commands if len(words) < 2]


def fit(folder: Path, *words: str) -> tuple[str, ...]:
    """A run of configs/digits.yaml without pictures and metrics."""
    run = ("--config", "digits", "--trainer.default_root_dir", str(folder))
    return program("fit", *run, "--grid", "null", "--metrics", "null", *words)


def first_step(folder: Path) -> Callable[[], None]:
    """A way: fit up to its first step; each time into a new folder."""
    stops = "--trainer.callbacks=[{class_path: benchmarks.startup.FirstStep}]"
    return lambda: start(*fit(Path(_new(folder)), stops))


def one_sample(checkpoint: Path, folder: Path) -> Callable[[], None]:
    """A way: sample one image by one evaluation; each time into a new folder."""
    least = ("--n", "1", "--sampler", "DDIM", "--sampler.steps", "1")
    command = program("sample", "--ckpt", str(checkpoint), *least)
    return lambda: start(*command, "--out", _new(folder))


def _new(folder: Path) -> str:
    return str(folder / str(len(list(folder.iterdir()))))


def measure(rounds: int) -> int:
    """Time the starts, print the table, and return the exit code."""
    with TemporaryDirectory() as name:
        root = Path(name)
        (runs := root / "runs").mkdir()
        (samples := root / "samples").mkdir()
        start(*fit(root / "run", "--trainer.max_steps", "1", "--trainer.callbacks", "[]"))
        checkpoint = root / "run" / "checkpoints" / "last.ckpt"
        ways = {
            "torch": starting("-c", "import torch"),
            "all": starting("-c", IMPORTS),
            "build": starting("-c", BUILDS),
            **{" ".join(words[2:]): starting(*words) for words in plain_helps()},
            **{f"{name} --help": starting(*program(name, "--help")) for name in TRAINING},
            "fit": first_step(runs),
            "sample": one_sample(checkpoint, samples),
        }
        return report(in_turn(ways, rounds, warm=0)).finish()


def report(seconds: dict[str, Seconds]) -> Report:
    """Compare what was measured with what it has to import."""

    def beside(name: str, base: str) -> Spread:
        return ratio(seconds[name].cpu, seconds[base].cpu)

    table = Report("Start-up: processor time of a process, by that of one which only imports")
    for name, of in {
        "torch": "import torch",
        "all": IMPORTS,
        "build": "that, and the network",
    }.items():
        wall = Spread.of(seconds[name].wall)
        table.add(f"{of}, seconds", Spread.of(seconds[name].cpu), note=f"wall {wall}")
    trained = {f"{name} --help" for name in TRAINING}
    for name in seconds.keys() - {"torch", "all", "build", "fit", "sample"} - trained:
        table.add(f"{name} / import torch", beside(name, "torch"), at_most=1.3)
    for name in sorted(trained):
        table.add(f"{name} / {IMPORTS}", beside(name, "all"), at_most=1.3)
    table.add("fit to its first step / imports and network", beside("fit", "build"), at_most=1.25)
    table.add("sample of one image / imports and network", beside("sample", "build"), at_most=1.25)
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    sys.exit(measure(parser.parse_args().rounds))
