"""CIFAR-10 trained for some minutes by the command line: stopped, resumed, drawn from, scored.

    python -m benchmarks.gpu_run --root data/cifar10 --seconds 240 --out runs/card

ROOT holds train/CLASS/*.jpg and test/CLASS/*.jpg. fit runs configs/cifar10_jpg.yaml in bf16,
channels-last, with warm-up and average for a short run; it gets SIGTERM at half of the time and
goes on by --ckpt_path auto. Further words are given to fit, after all others. Prints what each
command took, images a second, the memory that nvidia-smi shows, and the score.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.report import machine
from ddpm_lightning.run_folder import last_checkpoint

PROGRAM = [sys.executable, "-m", "ddpm_lightning"]
SPEED = "train/images_per_second"


@dataclass
class Plan:
    """The run.

    Args:
        root: Folder of the images.
        out: Folder for everything.
        seconds: Wall time of training, both halves together, from when fit is set up.
        n: Samples that are scored.
        steps: Of the sampler.
        device: As sample and evaluate take it.
        words: Further words for fit.
        failures: Commands that ended otherwise than they should.
    """

    root: Path
    out: Path
    seconds: float
    n: int
    steps: int
    device: str
    words: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.out / "run"

    @property
    def checkpoint(self) -> Path:
        """Its checkpoint."""
        return last_checkpoint(self.run)

    def fit(self, seconds: float) -> None:
        """Train for some seconds from the last save, or from the start, and stop by SIGTERM."""
        config = Path(__file__).parent.parent / "configs" / "cifar10_jpg.yaml"
        words = f"fit --config {config} --data.root {self.root} --ckpt_path auto"
        words += f" --trainer.default_root_dir {self.run} --data.cache {self.out / 'cache'}"
        words += " --trainer.precision bf16-mixed --trainer.benchmark true --grid null"
        words += " --metrics null --trainer.callbacks+ FastKernels --trainer.limit_val_batches 0"
        words += " --model.warmup_steps 500"
        words += " --model.ema.decay 0.999 --model.ema.warmup true"
        code = self._call("fit", [*words.split(), *self.words], seconds)
        if code != 128 + signal.SIGTERM:
            self.failures.append(f"fit ended with code {code}, not 143")

    def draw(self) -> None:
        """Sample a grid, a class a column, and score samples against the training images."""
        how = f"--ckpt {self.checkpoint} --device {self.device} --sampler DDIM"
        how += f" --sampler.steps {self.steps}"
        grid = f"sample {how} --n 60 --grid.columns 10 --guidance 1.5 --out {self.out / 'grid'}"
        score = f"evaluate {how} --n {self.n} --metrics fd --extractor ColourNet"
        for name, words in {
            "sample": grid,
            "evaluate": f"{score} --out {self.out / 'score'}",
        }.items():
            if code := self._call(name, words.split()):
                self.failures.append(f"{name} ended with code {code}")

    def _call(self, name: str, words: list[str], seconds: float | None = None) -> int:
        """Run a command, with its output in a log; some seconds after it trains send SIGTERM."""
        start, used, since = time.time(), 0, float("inf")
        print("+", " ".join(["python -m ddpm_lightning", *words]), flush=True)
        with (self.out / f"{name}.log").open("a") as log:
            process = subprocess.Popen([*PROGRAM, *words], stdout=log, stderr=subprocess.STDOUT)
            asked = False
            while process.poll() is None:
                if (config := self.run / "config.yaml").exists():  # written as training begins
                    written = config.stat().st_mtime
                    since = written if written > start else since
                if seconds is not None and not asked and time.time() - since > seconds:
                    process.send_signal(signal.SIGTERM)
                    asked = True
                used = max(used, memory_used())
                time.sleep(0.5)
        print(
            f"{name}: code {process.returncode}, {time.time() - start:.1f} s, memory {used:,} MiB",
            flush=True,
        )
        if process.returncode not in (0, 128 + signal.SIGTERM):
            print((self.out / f"{name}.log").read_text()[-3000:])
        return process.returncode


def memory_used() -> int:
    """MiB in use on the first GPU; 0 without one."""
    if shutil.which("nvidia-smi") is None:
        return 0
    words = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    shown = subprocess.run(words, capture_output=True, text=True).stdout.split()
    return int(shown[0]) if shown and shown[0].isdigit() else 0


def speeds(run: Path) -> list[float]:
    """Read the images a second that a run has logged."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = []
    for file in sorted(run.rglob("events.out.tfevents.*")):
        events = EventAccumulator(str(file)).Reload()
        if SPEED in events.Tags()["scalars"]:
            found += [event.value for event in events.Scalars(SPEED)]
    return found


def main(args: list[str] | None = None) -> int:
    """Run the plan."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--root", type=Path, default=Path("data/cifar10"))
    parser.add_argument("--out", type=Path, default=Path("runs/card"))
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--n", type=int, default=5000)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--device", default="auto")
    given, words = parser.parse_known_args(args)
    plan = Plan(**vars(given), words=words)
    plan.out.mkdir(parents=True, exist_ok=True)
    for _ in range(2):
        plan.fit(plan.seconds / 2)
    plan.draw()
    found = speeds(plan.run)
    if found:
        low, high = min(found), max(found)
        middle = statistics.median(found)
        print(f"training: {middle:,.0f} images/s ({low:,.0f} to {high:,.0f})")
    for name in ("sample", "evaluate"):
        print((plan.out / f"{name}.log").read_text()[-1500:])
    print(machine())
    print(
        "\n".join(f"FAILED: {failure}" for failure in plan.failures) or "all ended as they should"
    )
    return 1 if plan.failures else 0


if __name__ == "__main__":
    sys.exit(main())
