"""Training runs of benchmarks: fit by its own flags, then samples and their distances."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import lru_cache
from io import StringIO
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml

import ddpm_lightning.data
from benchmarks.judges import SAMPLES, Distances, Judge
from ddpm_lightning.batch import Condition
from ddpm_lightning.callbacks.stop_signals import Stopped
from ddpm_lightning.cli import main
from ddpm_lightning.data.image_data import ImageData
from ddpm_lightning.diffusion.guidance import Guidance
from ddpm_lightning.errors import InputError
from ddpm_lightning.loaded import Loaded
from ddpm_lightning.sampling import Request

WARM_UP = 100
"""Steps over which the learning rate rises, or a tenth of a shorter run."""

WARM, TIMED = 2, 8
"""Steps before the clock of a cost measurement, and timed ones."""


QUIET: dict[str, Any] = {
    "grid": None,
    "metrics": None,
    "trainer.limit_val_batches": 0,
    "trainer.num_sanity_val_steps": 0,
    "trainer.logger": False,
    "trainer.enable_progress_bar": False,
    "trainer.enable_model_summary": False,
    "checkpoint.every_n_steps": 10**9,
}
"""Flags of fit that leave training alone, without pictures, measurements and logs."""


@dataclass(frozen=True)
class Data:
    """A data set of the package, by its name and folder."""

    name: str = "MNIST"
    root: str = "data"

    def __call__(self) -> ImageData:
        """Open it, all of its training images for training."""
        kind = getattr(ddpm_lightning.data, self.name)
        data: ImageData = kind(root=self.root, download=False, held_out=0)
        return data


@dataclass(frozen=True)
class Trial:
    """One training run.

    Args:
        config: Config file of fit.
        flags: Further flags of fit, by their names without dashes.
        data: What it is trained on.
        device: cpu or cuda.
        seed: Seed of training and of the samples.
    """

    config: str
    flags: Mapping[str, Any] = field(default_factory=dict)
    data: Data = Data()
    device: str = "cpu"
    seed: int = 0

    def fit(self, folder: Path, steps: int, callbacks: list[dict[str, Any]]) -> None:
        """Train for a number of steps; the learning rate falls to zero over those of the run."""
        warm_up = min(WARM_UP, steps // 10) if steps >= 20 else 0  # one step is none
        # Stated, because a class that is named on the command line starts from its defaults.
        settings = yaml.safe_load(Path(self.config).read_text("utf-8"))["data"]["init_args"]
        flags = {
            "data": self.data.name,
            **{f"data.{name}": value for name, value in settings.items()},
            "data.root": self.data.root,
            "data.download": False,
            "seed_everything": self.seed,
            "trainer.default_root_dir": str(folder),
            "trainer.accelerator": "gpu" if self.device == "cuda" else self.device,
            "trainer.max_steps": steps,
            "trainer.callbacks": callbacks,
            "model.warmup_steps": warm_up,
            "model.lr_schedule.total_iters": steps - warm_up,
            **QUIET,
            **self.flags,
        }
        words = ["fit", "--config", self.config]
        for name, value in flags.items():
            words += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
        try:
            with redirect_stdout(StringIO()):
                main(words)
        except SystemExit as end:
            if isinstance(end, Stopped):
                raise
            if end.code:
                raise InputError("fit ended, and says above why") from end


def cost_of_step(trial: Trial) -> float:
    """Processor seconds of a training step on one core: the least, since other work only adds."""
    torch.set_num_threads(1)
    with TemporaryDirectory() as name:
        file = Path(name, "clock.txt")
        trial.fit(Path(name, "run"), WARM + TIMED, [_callback("StepClock", file=str(file))])
        ends = [float(line) for line in file.read_text().splitlines()]
    return min(b - a for a, b in pairwise(ends[WARM - 1 :]))


def distances_of_run(
    trial: Trial,
    steps: int,
    requests: Mapping[str, Request],
    decays: tuple[float, ...] = (),
    samples: int = SAMPLES,
    keep: Path | None = None,
) -> dict[str, Any]:
    """Train, draw samples in every way, and measure their distances.

    Args:
        trial: The run.
        steps: Number of optimizer steps.
        requests: Ways of sampling by name; the first one also with each further average.
        decays: Decays of further averages of the weights.
        samples: Number of samples.
        keep: Folder of the run; None: it is deleted.

    Returns:
        ``seconds`` and ``cpu_seconds`` of training, and by the way of sampling ``evaluations`` of
        the network a sample and ``distances``.
    """
    with TemporaryDirectory() as name:
        file, clock = Path(name, "averages.pt"), Path(name, "clock.json")
        run = keep or Path(name, "run")
        callbacks = [_callback("TrainingClock", file=str(clock))]
        if decays:
            callbacks.append(_callback("Averages", file=str(file), decays=list(decays)))
        trial.fit(run, steps, callbacks)
        took = json.loads(clock.read_text())
        loaded = Loaded.read(run / "checkpoints" / "last.ckpt", device=trial.device)
        averages = torch.load(file, map_location=trial.device) if decays else {}
    judge, module = judge_of(trial.data, trial.device), loaded.module
    labels = Condition(judge.labels(samples))
    distances: dict[str, Distances] = {}
    evaluations: dict[str, float | None] = {}

    def measure(way: str, request: Request) -> None:
        drawn = module.generate(torch.arange(samples), request, labels)
        distances[way], evaluations[way] = judge(drawn.x), drawn.evaluations

    for way, request in requests.items():
        if module.data.num_classes is not None or request.guidance == Guidance(1.0):
            measure(way, request.replace(seed=trial.seed))
    for decay, state in averages.items():
        module.ema.net.load_state_dict(state)
        first = next(iter(requests))
        measure(f"EMA {decay}", requests[first].replace(seed=trial.seed))
    return {**took, "evaluations": evaluations, "distances": distances}


@lru_cache(maxsize=1)
def judge_of(data: Data, device: str) -> Judge:
    """The judge of a data set, made once in a process."""
    return Judge(data(), device)


def _callback(name: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": f"benchmarks.callbacks.{name}", "init_args": arguments}
