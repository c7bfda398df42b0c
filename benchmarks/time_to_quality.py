"""Quality after the same minutes of training: ours and two peers, in turn.

    python -m benchmarks.time_to_quality                        # digits, a minute or two
    python -m benchmarks.time_to_quality --data-root DIR        # MNIST, 7 minutes each
    python -m benchmarks.time_to_quality --data-root DIR --data CIFAR10
    python -m benchmarks.time_to_quality --data MNIST --print   # the results, without the data

Ours is fit with the preset of the data set, as it is; its steps are a share of the preset's where
other minutes are asked for. The first seed of each peer is then trained for as long as ours took.
Wall time of training counts, sampling does not. Its other seeds, its other learning rate, and
those on Fashion-MNIST, whose images are as large as MNIST's, see as many images as it saw in that
time, and so can be trained elsewhere (--device cuda). Where ours was trained on other cores or
vector instructions, the first seed also sees a number of images: ours times the share that
`benchmarks.rates` measured.

Ours is told the classes, in training and, in the training set's shares, for its samples, and is
guided; the peers are as their examples are, without classes or guidance, and are sampled by 50
steps of DDIM, so the ratios measure that, too. Their learning rate is their example's, which is
for longer runs; with the first seed each is trained once more with ten times that. 1,000 samples
of 50 evaluations at most are compared with all training images, by two extractors, of which the
second is not tuned for. What is in the results is not trained again, so a stopped benchmark goes
on.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from benchmarks.judges import SAMPLES
from benchmarks.peers.length import OURS, TIME, Entry, Length, length_of
from benchmarks.peers.peer import Peer, train
from benchmarks.report import Report, machine
from benchmarks.timing import Spread, ratio
from benchmarks.trial import Data, Trial, distances_of_run, judge_of
from ddpm_lightning.diffusion.samplers import DPMSolverPPSDE
from ddpm_lightning.errors import InputError
from ddpm_lightning.files import write_json
from ddpm_lightning.sampling import Request

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "time_to_quality.json"
RATES = HERE / "results" / "rates.json"
PEERS = ("diffusers", "lucidrains")
FASTER = {f"{peer}, lr 1e-3": peer for peer in PEERS}
"""The peers at ten times the learning rate of their examples, by their names in the results."""


@dataclass(frozen=True)
class Task:
    """A preset, and what is asked of it.

    Args:
        preset: Name of the config.
        minutes: Of training.
        request: How its samples are drawn.
        times_lower: How many times lower than each peer's its distance is to be; None: not asked.
        floors: How many times the floor it may be; None: not asked.
        steps: Of training, in place of the preset's.
        samples: Number of samples.
    """

    preset: str
    minutes: float
    request: Request
    times_lower: float | None = None
    floors: float | None = None
    steps: int | None = None
    samples: int = SAMPLES

    @property
    def config(self) -> str:
        """Path of the preset."""
        return str(HERE.parent / "configs" / f"{self.preset}.yaml")

    def steps_of(self, minutes: float) -> int:
        """Optimizer steps of so many minutes, the preset's own where they are its own."""
        steps = self.steps
        if steps is None:
            steps = yaml.safe_load(Path(self.config).read_text("utf-8"))["trainer"]["max_steps"]
        return max(1, round(steps * minutes / self.minutes))


GREY, COLOUR = (Request(DPMSolverPPSDE(25), guidance=scale) for scale in (1.25, 2.0))
"""50 evaluations a sample, since guidance takes two a step; as in the presets."""

TASKS = {
    "MNIST": Task("mnist_quick", 7, GREY, times_lower=10, floors=3),
    "FashionMNIST": Task("mnist_quick", 7, GREY, times_lower=1),
    "CIFAR10": Task("cifar10_quick", 30, COLOUR, times_lower=3),
    "Digits": Task("mnist_quick", 0.25, GREY, steps=200, samples=200),
}
"""By the name of the data set."""


def main() -> int:
    """Train what the results lack, then print the table; exit code 1 where a bound is missed."""
    options = parse()
    data, task = Data(options.data, options.data_root or "data"), TASKS[options.data]
    results: dict[str, Any] = {"floors": {}, "runs": []}
    if options.out.exists():
        results = json.loads(options.out.read_text("utf-8"))
        if isinstance(results, list):  # as files were until the floors lay in them
            results = {"floors": {}, "runs": results}
    runs: list[Entry] = results["runs"]
    for seed in range(options.seeds):
        for who in (OURS, *PEERS, *(FASTER if seed == 0 else ())):
            wanted = {"data": options.data, "minutes": options.minutes, "who": who, "seed": seed}
            if options.print or any(wanted.items() <= run.items() for run in runs):
                continue
            if who == OURS:
                keep = options.keep and options.keep / f"{data.name}_seed{seed}"
                found = ours(task, data, options.minutes, seed, keep)
            else:
                rates = json.loads(RATES.read_text("utf-8")) if RATES.exists() else {}
                length = length_of(FASTER.get(who, who), wanted, runs, rates)
                if length.told == TIME and options.device != "cpu":
                    raise InputError(
                        f"{who} trains for as long as ours took on a processor: leave out "
                        f"--device {options.device}"
                    )
                found = of_peer(who, task, data, length, seed, options.device)
            runs.append({**wanted, **found, "machine": machine()})
            save(results, options.out)
            said = f"{who}, seed {seed}: {found['distances']} after {found['images']} images"
            print(f"  … {said} in {found['seconds']:.0f} s", file=sys.stderr, flush=True)
    kept = [run for run in runs if (run["data"], run["minutes"]) == (data.name, options.minutes)]
    if not kept:
        asked = f"{data.name}, {options.minutes:g} minutes"
        raise InputError(f"{options.out} has no run on {asked}; without --print it trains them")
    if data.name not in results["floors"]:
        results["floors"][data.name] = judge_of(data, "cpu").floor(task.samples)
        if not options.print:
            save(results, options.out)
    return report(kept, task, results["floors"][data.name], data.name).finish()


def save(results: dict[str, Any], path: Path) -> None:
    """Write the runs, and the distances of test images by the data set."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, results)


def ours(task: Task, data: Data, minutes: float, seed: int, keep: Path | None) -> Entry:
    """Train the preset and measure its samples."""
    trial, steps = Trial(task.config, data=data, seed=seed), task.steps_of(minutes)
    found = distances_of_run(trial, steps, {OURS: task.request}, samples=task.samples, keep=keep)
    settings = yaml.safe_load(Path(task.config).read_text("utf-8"))
    batch = settings["data"]["init_args"]["global_batch_size"]
    return {
        "seconds": found["seconds"],
        "cpu_seconds": found["cpu_seconds"],
        "images": steps * batch,
        "evaluations": found["evaluations"][OURS],
        "distances": found["distances"][OURS],
    }


def of_peer(name: str, task: Task, data: Data, length: Length, seed: int, device: str) -> Entry:
    """Train a peer and measure its samples."""
    judge = judge_of(data, "cpu")
    images = judge.data.images("train")[0]
    assert isinstance(images, Tensor)
    torch.manual_seed(seed)
    torch.backends.cudnn.allow_tf32 = False  # float32 throughout, as on a CPU
    settings = {"lr": 1e-3} if name in FASTER else {}
    make = peer_named(FASTER.get(name, name))
    peer = make(images.shape[1], images.shape[2], device=device, **settings)
    trained = train(peer, images, length.progress, seed)
    samples = peer.sample(task.samples, seed)
    return {
        **asdict(trained),
        "length": length.told,
        "evaluations": 50.0,
        "distances": judge(samples),
    }


def peer_named(name: str) -> Callable[..., Peer]:
    """The peer of a name, imported now because its library need not be installed.

    Raises:
        InputError: It is not installed.
    """
    try:
        if name == "diffusers":
            from benchmarks.peers.diffusers_example import DiffusersExample

            return DiffusersExample
        from benchmarks.peers.lucidrains import Lucidrains

        return Lucidrains
    except ImportError as error:
        raise InputError(
            f"a peer is missing ({error}): pip install diffusers denoising-diffusion-pytorch"
        ) from error


def report(runs: list[Entry], task: Task, floor: dict[str, float], data: str) -> Report:
    """Distances of all, and the ratios that are asked for, over the seeds."""
    names = list(dict.fromkeys(run["who"] for run in runs))
    found = Report(f"Time to quality: {data} (each run's machine is in the results file)")

    def values(who: str, key: str, beside: str | None = None) -> list[float]:
        """Of all seeds, or of those that another has, too, in their order."""
        seeds = {run["seed"] for run in runs if run["who"] == (beside or who)}
        kept = [run for run in runs if run["who"] == who and run["seed"] in seeds]
        kept.sort(key=lambda run: run["seed"])
        return [run[key] if key in run else run["distances"][key] for run in kept]

    first = next(iter(floor))
    for who in names:
        first_run = min((run for run in runs if run["who"] == who), key=lambda run: run["seed"])
        note = f"{len(values(who, 'images'))} seeds; {first_run['images']} images"
        if first_run.get("length", TIME) == TIME:
            cpu = first_run["cpu_seconds"]
            note += f" in {first_run['seconds']:.0f} s, {cpu:.0f} s of processors (seed 0)"
        for name in floor:
            found.add(f"{name} of {who}", Spread.of(values(who, name)), note=note)
    for name, value in floor.items():
        found.add(f"{name} of test images", Spread.of([value]), note="the floor")
        over = [one / value for one in values(OURS, name)]
        limit = task.floors if name == first else None
        found.add(f"ours over the floor, {name}", Spread.of(over), at_most=limit)
        for who in dict.fromkeys((*PEERS, *names)):
            if who == OURS:
                continue
            if who not in names:
                found.fail(f"{who} over ours, {name}", "not trained yet")
                continue
            limit = task.times_lower if name == first else task.times_lower and 1.0
            limit = limit if who in PEERS else None
            times = ratio(values(who, name, OURS), values(OURS, name, who))
            found.add(f"{who} over ours, {name}", times, at_least=limit)
    return found


def parse() -> Namespace:
    """The command line."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", "--data.root", help="folder of the data; default: digits")
    parser.add_argument("--data", choices=TASKS, help="MNIST, or Digits without --data-root")
    parser.add_argument("--minutes", type=float, help="of training; default: the preset's")
    parser.add_argument("--seeds", type=int, help="how many; 3, of digits 1")
    parser.add_argument("--print", action="store_true", help="train nothing, print the table")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--device", default="cpu", help="of peers that see a number of images")
    parser.add_argument("--keep", type=Path, help="folder that our runs stay in; default: deleted")
    options = parser.parse_args()
    options.data = options.data or ("MNIST" if options.data_root else "Digits")
    options.minutes = options.minutes or TASKS[options.data].minutes
    options.seeds = options.seeds or (1 if options.data == "Digits" else 3)
    return options


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        sys.exit(f"error: {error}")
