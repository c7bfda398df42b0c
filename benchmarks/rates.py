"""Images that a peer sees in the time in which ours sees one: fit and the peers, in turn.

    python -m benchmarks.rates                                   # digits, two minutes
    python -m benchmarks.rates --data-root DIR --data CIFAR10

`benchmarks.time_to_quality` reads the medians where it goes on elsewhere than it began. The shares
depend on the processor's vector instructions; its speed, and other work on it, fall on all alike.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import yaml

from benchmarks.peers.length import OURS
from benchmarks.peers.peer import Peer, after_seconds, train
from benchmarks.report import Report, machine
from benchmarks.time_to_quality import PEERS, RATES, TASKS, Task, peer_named
from benchmarks.timing import Spread, ratio
from benchmarks.trial import Data, Trial
from ddpm_lightning.errors import InputError
from ddpm_lightning.files import write_json


def main() -> int:
    """Measure, print and write the shares."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", "--data.root", default="data", help="folder of the data")
    parser.add_argument("--data", choices=TASKS, default="Digits")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10, help="of training, each in a round")
    parser.add_argument("--out", type=Path, default=RATES)
    options = parser.parse_args()
    data, task = Data(options.data, options.data_root), TASKS[options.data]
    images = data().images("train")[0]
    assert isinstance(images, torch.Tensor)
    speeds = {OURS: partial(speed_of_ours, task, data)}
    for name in PEERS:
        peer = peer_named(name)(images.shape[1], images.shape[2])
        speeds[name] = partial(speed_of_peer, peer, images)
    found: dict[str, list[float]] = {name: [] for name in speeds}
    for i in range(options.rounds):
        for name in list(speeds)[:: 1 if i % 2 == 0 else -1]:
            found[name].append(speeds[name](options.seconds))
    report = Report(f"Training beside ours: {options.data}, images a second")
    for name, values in found.items():
        report.add(name, Spread.of(values))
    shares = {name: ratio(found[name], found[OURS]) for name in PEERS}
    for name, share in shares.items():
        report.add(f"{name} / ours", share)
    kept = json.loads(options.out.read_text("utf-8")) if options.out.exists() else {}
    kept[options.data] = {name: share.median for name, share in shares.items()}
    kept[options.data]["machine"] = machine()
    write_json(options.out, kept)
    return report.finish()


def speed_of_ours(task: Task, data: Data, seconds: float) -> float:
    """Images a second of fit over about so many seconds, by its own clock of training."""
    settings = yaml.safe_load(Path(task.config).read_text("utf-8"))
    batch = settings["data"]["init_args"]["global_batch_size"]
    steps, took = 8, 0.0
    with TemporaryDirectory() as name:
        clock = Path(name, "clock.json")
        callback = {
            "class_path": "benchmarks.callbacks.TrainingClock",
            "init_args": {"file": str(clock)},
        }
        while took < seconds / 2:  # a longer run each time, since the speed is not known before
            steps = min(8 * steps, round(steps * seconds / took)) if took else steps
            Trial(task.config, data=data).fit(Path(name, f"{steps}"), steps, [callback])
            took = json.loads(clock.read_text())["seconds"]
    return batch * steps / took


def speed_of_peer(peer: Peer, images: torch.Tensor, seconds: float) -> float:
    """Images a second of a peer."""
    trained = train(peer, images, after_seconds(seconds), seed=0)
    return trained.images / trained.seconds


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        sys.exit(f"error: {error}")
