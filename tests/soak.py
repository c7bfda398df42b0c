"""Stop real runs from outside, let them go on, and compare all that they leave behind.

    python -m tests.soak --runs 50 --seed 0               every kind of stop, at random moments
    python -m tests.soak --ranks 2 --sigterms 20          SIGTERM to two processes
    python -m tests.soak --table                          1, 2 and 3 processes: largest differences

A run is a process of its own that runs the command line; it is forked from one that has imported
everything. A callback of the run marks the moments at which to stop it, and only slows it down.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from tests.outcome import differences, largest_difference, outcome

ROOT = Path(__file__).parent.parent
STEPS = 23
PAUSE = 0.02
LIMIT = 240.0
"""Seconds after which a process that neither trains nor ends counts as hung."""

MOMENTS = ("save", "saved", "validation", "grid", "last", "anywhere")
STOPS = ("SIGKILL", "SIGTERM", "SIGINT", "exception", "full disk")
CODES = {"SIGKILL": -9, "SIGTERM": 143, "SIGINT": 130}

SETTINGS = {
    "data": "Digits",
    "data.global_batch_size": 24,
    "data.subset": 192,  # 8 steps an epoch
    "model.net": "UNet",
    "model.net.channels": 8,
    "model.net.multipliers": "[1,2]",
    "model.net.blocks": 1,
    "model.net.groups": 4,
    "model.net.attention_levels": "[]",
    "model.net.dropout": 0.0,
    "model.schedule": "Linear",
    "model.schedule.T": 40,
    "model.conditional": "true",
    "model.timesteps": "LossSecondMoment",
    "model.timesteps.history": 1,
    "model.warmup_steps": 5,
    "model.ema.decay": 0.9,
    "trainer.accelerator": "cpu",
    "trainer.max_steps": STEPS,
    "trainer.log_every_n_steps": 3,
    "trainer.check_val_every_n_epoch": "null",
    "trainer.gradient_clip_val": 1.0,
    "trainer.enable_progress_bar": "false",
    "trainer.enable_model_summary": "false",
    "checkpoint.every_n_steps": 4,
    "grid": "SampleGrid",
    "grid.every_n_steps": 6,
    "grid.n": 6,
    "grid.columns": 3,
    "grid.frames": 2,
    "grid.sampler": "DDIM",
    "grid.sampler.steps": 2,
    "metrics": "GenerativeMetrics",
    "metrics.extractor": "LeNet",
    "metrics.every_n_steps": 12,
    "metrics.n": 24,
    "metrics.neighbours": 2,
    "metrics.sampler": "DDIM",
    "metrics.sampler.steps": 2,
}


class Marks(Callback):
    """Writes the moment and the step to a file, and pauses; raises at one moment, if asked to.

    Args:
        file: The file.
        fails: The moment and step at which to raise, e.g. "validation 12"; "": never.
    """

    def __init__(self, file: str, fails: str = "") -> None:
        self.file = file
        self.fails = fails

    def mark(self, trainer: Any, moment: str) -> None:
        """Write the moment, and pause."""
        line = f"{moment} {trainer.global_step}"
        if trainer.is_global_zero:
            with open(self.file, "a", encoding="utf-8") as file:
                file.write(line + "\n")
        if line == self.fails:
            raise RuntimeError(f"test: {line}")
        time.sleep(PAUSE)

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        """Mark the steps after a save."""
        step = trainer.global_step
        self.mark(trainer, "saved" if step and step % 4 == 0 else "anywhere")

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """Mark the steps before a grid."""
        self.mark(trainer, "anywhere" if trainer.global_step % 6 else "grid")

    def on_validation_batch_end(self, trainer: Any, *_: Any) -> None:
        """Mark a batch of a validation."""
        if not trainer.sanity_checking:
            self.mark(trainer, "validation")

    def on_save_checkpoint(self, trainer: Any, *_: Any) -> None:
        """Mark a save: all is logged, nothing is written."""
        self.mark(trainer, "save")

    def on_train_end(self, trainer: Any, *_: Any) -> None:
        """Mark the end, before the final pictures and metrics."""
        self.mark(trainer, "last")


@dataclass(frozen=True)
class Run:
    """A run folder and how to train in it.

    Args:
        folder: The run folder.
        accumulate: Micro-batches per optimizer step.
        ranks: Number of processes.
    """

    folder: Path
    accumulate: int = 1
    ranks: int = 1

    @property
    def marks(self) -> Path:
        """The file of the moments."""
        return self.folder.with_suffix(".marks")

    def start(self, fails: str = "") -> list[BaseProcess]:
        """Start the command that begins the run or goes on with it, in processes of its own."""
        self.marks.unlink(missing_ok=True)
        marks: dict[str, Any] = {
            "class_path": "tests.soak.Marks",
            "init_args": {"file": str(self.marks)},
        }
        marks["init_args"]["fails"] = fails
        words = ["fit", *(f"--{name}={value}" for name, value in SETTINGS.items())]
        words += [
            f"--trainer.default_root_dir={self.folder}",
            f"--trainer.accumulate_grad_batches={self.accumulate}",
            f"--trainer.val_check_interval={12 * self.accumulate}",
            "--ckpt_path=auto",
            "--trainer.callbacks+=LossByTimestep",
            "--trainer.callbacks+=TrainingMonitor",
            "--trainer.callbacks+=LearningRateMonitor",
            f"--trainer.callbacks+={json.dumps(marks)}",
        ]
        if self.ranks > 1:
            words += [f"--trainer.devices={self.ranks}", "--trainer.strategy=ddp"]
        port, context = _free_port(), multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["ddpm_lightning.cli"])
        log = str(self.folder.with_suffix(".log"))
        found: list[BaseProcess] = []
        for rank in range(self.ranks):
            place = (rank, self.ranks, port)
            found.append(context.Process(target=_train, args=(words, log, place)))
            found[-1].start()
        return found

    def finish(self) -> None:
        """Train to the end; raise RuntimeError if that fails."""
        processes = self.start()
        codes = _join(processes)
        if any(codes):
            raise RuntimeError(f"exit codes {codes}: {self.tail()}")

    def tail(self) -> str:
        """The end of what the processes have printed."""
        return self.folder.with_suffix(".log").read_text(encoding="utf-8")[-1500:]


def _train(words: list[str], log: str, place: tuple[int, int, int]) -> None:
    """Run the command line in this process, as one of torchrun's."""
    rank, world, port = place
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    import torch

    torch.set_num_threads(1)
    if world > 1:
        from lightning.pytorch.utilities.rank_zero import rank_zero_only

        rank_zero_only.rank = rank
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GROUP_RANK": "0"}
        os.environ |= {"LOCAL_WORLD_SIZE": str(world), "TORCHELASTIC_RUN_ID": "soak"}
    from ddpm_lightning.cli import main

    main(words)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _join(processes: Sequence[BaseProcess]) -> list[int | None]:
    """Wait for processes to end; None: it hung, and was killed."""
    end, codes = time.monotonic() + LIMIT, []
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
        codes.append(process.exitcode)
        if process.exitcode is None:
            process.kill()
            process.join()
    return codes


def _wait_for(run: Run, moment: str, step: int, processes: Sequence[BaseProcess]) -> bool:
    """Wait until a run reaches a moment at a step or later; False: it ended before."""
    end = time.monotonic() + LIMIT
    while time.monotonic() < end and any(process.is_alive() for process in processes):
        lines = (
            run.marks.read_text(encoding="utf-8").split("\n")[:-1] if run.marks.exists() else []
        )
        for name, at in (line.split() for line in lines):
            if moment in (name, "anywhere") and int(at) >= step:
                return True
        time.sleep(0.002)
    return False


def _full(folder: Path) -> Path:
    """Fill the file system of a folder; return the file that does."""
    filler = folder / "filler"
    try:
        with filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"\0" * 65536)
    except OSError:
        return filler


def stop_once(run: Run, stop: str, moment: str, chance: random.Random) -> list[int | None]:
    """Start a run, stop it at a moment and return the exit codes, 0 if it ended before."""
    step = 0 if moment == "last" else chance.randrange(1, STEPS - 4)
    if stop == "exception":
        steps = {"validation": 12, "grid": 6 * chance.randint(1, 3), "last": STEPS}
        steps["anywhere"] = chance.choice((5, 7, 11, 13, 17))  # neither saved nor drawn then
        step = steps.get(moment, 4 * chance.randint(1, 5))
        return _join(run.start(f"{moment} {step}"))
    processes = run.start()
    if _wait_for(run, moment, min(step, 12) if moment == "validation" else step, processes):
        time.sleep(chance.uniform(0, 3 * PAUSE))
        if stop == "full disk":
            filler = _full(run.folder.parent)
            codes = _join(processes)
            filler.unlink()
            return codes
        for process in processes:
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, getattr(signal, stop))
                time.sleep(chance.uniform(0, PAUSE) * (chance.random() < 0.5))
    return _join(processes)


def _faults(run: Run, stop: str, codes: Sequence[int | None], reference: Any) -> list[str]:
    """Go on with a stopped run, and name what is not as it should be."""
    if None in codes:
        return ["it hung"]
    expected = {CODES.get(stop, codes[0])}
    if stop in CODES and set(codes) not in (expected, {0}):
        return [f"exit codes {codes}, not {expected}: {run.tail()}"]
    if stop not in CODES and not all(codes):
        return ["it ended as if nothing had been"] if stop == "exception" else []
    run.finish()
    return differences(outcome(run.folder), reference)


def _tmpfs(folder: Path) -> str | None:
    """Mount a small file system; return why it cannot be."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        return str(error)
    return done.stderr.strip() or "refused" if done.returncode else None


def soak(count: int, seed: int, folder: Path, ranks: int = 1, stops: Sequence[str] = STOPS) -> int:
    """Stop ``count`` runs, each once, print the tally, and return how many ended alike."""
    chance, references = random.Random(seed), {}
    print(f"seed {seed}, {ranks} process(es), runs in {folder}", flush=True)
    for accumulate in (1, 4):
        whole = Run(folder / f"whole{accumulate}", accumulate, ranks)
        whole.finish()
        references[accumulate] = outcome(whole.folder)
    small = folder / "small"
    if "full disk" in stops and (reason := _tmpfs(small)):
        print(f"no full disk: {reason}")
        stops = [stop for stop in stops if stop != "full disk"]
    pairs = [(stop, moment) for moment in MOMENTS for stop in stops]
    tally: Counter[str] = Counter()
    for i in range(count):
        # In an order that meets every moment and every kind of stop early.
        stop, moment = stops[i % len(stops)], MOMENTS[(i + i // len(pairs)) % len(MOMENTS)]
        place, accumulate = small if stop == "full disk" else folder, (1, 4)[(i // 2) % 2]
        run = Run(place / f"run{i}", accumulate, ranks)
        try:
            codes = stop_once(run, stop, moment, chance)
            faults = _faults(run, stop, codes, references[accumulate])
        except RuntimeError as error:
            codes, faults = [], [str(error)]
        good = not faults
        tally[f"{stop} in {moment}"] += 1
        tally["alike"] += good
        print(f"{i + 1:3} {stop:10} {moment:10} accumulate {accumulate} exit {codes}", end=" ")
        print("alike" if good else f"NOT ALIKE: {faults[:5]} ({len(faults)})", flush=True)
        if good:
            shutil.rmtree(run.folder, ignore_errors=True)
    if small.is_mount():
        subprocess.run(["umount", str(small)], check=True)
    kinds = [f"{n}× {kind}" for kind, n in sorted(tally.items()) if kind != "alike"]
    print(f"{', '.join(kinds)}\n{tally['alike']} of {count} alike")
    return tally["alike"]


def table(folder: Path, most: int = 3) -> None:
    """Print how far runs on several processes are from one on one process."""
    for accumulate in (1, 4):
        found = {}
        for ranks in range(1, most + 1):
            run = Run(folder / f"{ranks}ranks{accumulate}", accumulate, ranks)
            run.finish()
            found[ranks] = outcome(run.folder)
        for ranks in range(2, most + 1):
            print(f"accumulate {accumulate}, {ranks} against 1 process:", end=" ")
            parts = {
                "weights": "checkpoint.state_dict",
                "logged": " at ",
                "metrics": "metrics.json",
            }
            for name, word in parts.items():
                ours, one = ({k: v for k, v in found[n].items() if word in k} for n in (ranks, 1))
                alone = f", {len(ours.keys() ^ one.keys())} of one alone"
                most_far, where = largest_difference(ours, one)
                print(f"{name} {most_far:.1e} ({where}{alone});", end=" ")
            print(flush=True)


def main() -> None:
    """Parse the command line and run it; exit code 1 unless all runs ended alike."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--sigterms", type=int, help="send SIGTERM alone, to so many runs")
    parser.add_argument("--table", action="store_true", help="compare 1, 2 and 3 processes")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder = Path(tempfile.mkdtemp(prefix="soak"))
    if arguments.table:
        table(folder)
        return
    count = arguments.sigterms or arguments.runs
    stops = ["SIGTERM"] if arguments.sigterms else list(STOPS)
    sys.exit(soak(count, arguments.seed, folder, arguments.ranks, stops) < count)


if __name__ == "__main__":
    main()
