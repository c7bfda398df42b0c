"""Sampling: what samplers and guidance cost beside the network, and what few evaluations cost.

python -m benchmarks.sampling [--ckpt CKPT --data-root FOLDER] [--n 5000] [--out FOLDER]

Samplers run on a network that does nothing; their processor time is divided by that of as many
evaluations of a U-Net. Then samples of 5, 8 and 10 evaluations, with every spacing and with the
levels of find_steps (also in half as many guided steps), are compared by the Fréchet distance with
samples of 250 steps of DDPM, all of other noise than find_steps saw. Levels are found for every
sampler with --goal ode, and for the best of them at fixed spacings with --goal data, too. With
--out the same command goes on where a stopped one was.
Without --ckpt it is a small model of 8×8 digits, trained in a minute or two.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from benchmarks.report import Report
from benchmarks.timing import Spread, in_turn, ratio
from ddpm_lightning.batch import Condition, DataSpec
from ddpm_lightning.cli import main as run_command_line
from ddpm_lightning.commands.find_steps import Goal, find_steps, levels_file
from ddpm_lightning.diffusion.denoiser import Denoiser
from ddpm_lightning.diffusion.guidance import guide
from ddpm_lightning.diffusion.parameterizations import V
from ddpm_lightning.diffusion.samplers import (
    DDIM,
    DDPM,
    LMS,
    AdaptiveODE,
    DPMSolverPP,
    DPMSolverPPSDE,
    Euler,
    Heun,
    OptimizedSpacing,
    PredictorCorrector,
    ReverseDiffusion,
    Sampler,
    UniPC,
)
from ddpm_lightning.diffusion.schedules import Cosine
from ddpm_lightning.diffusion.step_search import FIXED
from ddpm_lightning.errors import InputError
from ddpm_lightning.evaluation.compare import difference_error
from ddpm_lightning.evaluation.evaluation import Evaluation
from ddpm_lightning.evaluation.real_images import RealImages
from ddpm_lightning.evaluation.report import with_error
from ddpm_lightning.evaluation.sample_set import SampleSet
from ddpm_lightning.loaded import DataPlace, Loaded
from ddpm_lightning.networks import Network, UNet
from ddpm_lightning.sampling import Request, from_noise, run

SPEC = DataSpec((1, 28, 28), (-1.0, 1.0), num_classes=10)
BATCH = 64
SAMPLERS = (
    *(DDPM(20), DDIM(20), DDIM(20, eta=1.0), Euler(20), Euler(20, churn=10.0), Heun(10), LMS(20)),
    *(DPMSolverPP(20), DPMSolverPPSDE(20), UniPC(20), PredictorCorrector(10)),
    *(ReverseDiffusion(20), AdaptiveODE()),
)
FEW: tuple[Callable[[int], Sampler], ...] = (DDIM, DPMSolverPP, UniPC)
"""Samplers of one evaluation a step, whose levels are compared."""
GUIDANCE = 1.1
"""Of trials in half as many steps, since a guided step evaluates the network twice."""


class Nothing(Network):
    """A network that returns its input, and counts its calls."""

    def __init__(self, data: DataSpec, out_channels: int) -> None:
        super().__init__()
        self.data = data
        self.calls = 0

    @override
    def forward(self, x: Tensor, c_noise: Tensor, condition: Condition = Condition()) -> Tensor:
        self.calls += 1
        return x


def add_arithmetic(report: Report, rounds: int) -> None:
    """Compare the samplers' own processor time with the network's."""
    torch.manual_seed(0)
    net = UNet(SPEC, 1, channels=64, multipliers=(1, 2, 2), attention_levels=(2,), dropout=0.0)
    net = net.eval()
    x, t = torch.randn(BATCH, *SPEC.shape), torch.full((BATCH,), 500.0)

    def evaluate() -> None:
        with torch.no_grad():
            net(x, t)

    for sampler in SAMPLERS:
        nothing = Nothing(SPEC, 1)
        denoiser = Denoiser(nothing, Cosine(), V())
        procedure = from_noise(denoiser, sampler.clipped((-1.0, 1.0)), SPEC.shape)

        def sample(procedure: Any = procedure) -> None:
            run(procedure, torch.arange(BATCH), Request(), Condition(), torch.device("cpu"))

        sample()
        calls = nothing.calls
        seconds = in_turn({"sampler": sample, "network": evaluate}, rounds)
        network = [calls * one for one in seconds["network"].cpu]
        name = sampler.tag(Cosine())
        note = f"{calls} evaluations"
        report.add(
            f"{name}: own time / network's",
            ratio(seconds["sampler"].cpu, network),
            at_most=0.02,
            note=note,
        )


def add_guidance(report: Report, rounds: int) -> None:
    """Compare a guided prediction with a plain one."""
    torch.manual_seed(0)
    net = UNet(SPEC, 1, channels=64, multipliers=(1, 2, 2), attention_levels=(2,), dropout=0.0)
    plain = Denoiser(net.eval(), Cosine(), V())
    x, condition = torch.randn(BATCH, *SPEC.shape), Condition(torch.arange(BATCH) % 10)

    def predict(denoiser: Any) -> Callable[[], None]:
        def call() -> None:
            with torch.no_grad():
                denoiser(x, 500, condition)

        return call

    ways = {"guided": predict(guide(plain, 2.0)), "plain": predict(plain)}
    seconds = in_turn(ways, rounds)
    found = ratio(seconds["guided"].cpu, seconds["plain"].cpu)
    report.add("guided prediction / plain", found, at_most=2.05)


@dataclass(frozen=True)
class Trial:
    """One way to sample, and the record of its distance.

    Args:
        name: Sampler and spacing.
        evaluations: Network evaluations a sample.
        record: The distance as results.json has it.
    """

    name: str
    evaluations: int
    record: dict[str, Any]

    @property
    def distance(self) -> float:
        """The Fréchet distance."""
        return float(self.record["value"])

    def against(self, other: Trial) -> str:
        """Say the difference to another, with its standard error."""
        error = difference_error(other.record, self.record)
        return f"{self.name}: {with_error(self.distance - other.distance, error)}"


class Trials:
    """Distances of one checkpoint's samples.

    Args:
        ckpt: The checkpoint; find_steps writes beside it.
        out: Folder of the samples, where a stopped benchmark goes on.
        settings: The command line: n, seed, search_n, data_root.
    """

    def __init__(self, ckpt: Path, out: Path, settings: argparse.Namespace) -> None:
        self.ckpt, self.out, self.settings = ckpt, out, settings
        self.place = DataPlace(settings.data_root)
        self.loaded = Loaded.read(ckpt, self.place)
        self.evaluation = Evaluation(self.loaded, "fd", RealImages(), "auto", self._set(DDPM()))

    @property
    def guidable(self) -> bool:
        """Whether the model was trained with classes and without."""
        module = self.loaded.module
        return module.data.num_classes is not None and module.knows_null

    def _set(self, sampler: Sampler, guidance: float = 1.0) -> SampleSet:
        settings = {"n": self.settings.n, "seed": self.settings.seed}
        return SampleSet(**settings, sampler=sampler, guidance=guidance)

    def __call__(
        self, sampler: Sampler, name: str, guidance: float = 1.0, part: str = "fixed"
    ) -> Trial:
        """Draw and score the samples of one sampler, in a folder of a part of the comparison."""
        module = self.loaded.module
        asked = self._set(sampler, guidance)
        records = self.evaluation(asked, self.out / part / asked.tag(module))
        passes = 1 if guidance == 1 else 2
        return Trial(name, passes * (len(sampler.levels(module.schedule)) - 1), records[0])

    def fixed(self, few: Callable[[int], Sampler], steps: int) -> list[Trial]:
        """The trials of the fixed spacings."""
        samplers = [few(steps).replace(spacing=spacing) for spacing in FIXED]
        return [
            self(one, f"{type(one).__name__}, {type(one.spacing).__name__}") for one in samplers
        ]

    def optimized(
        self, few: Callable[[int], Sampler], steps: int, guidance: float = 1.0, goal: Goal = "ode"
    ) -> Trial:
        """The trial of the levels that find_steps finds, unguided, with noise of its own."""
        sampler, seed = few(steps), self.settings.seed + 1
        path = levels_file(self.ckpt, Request(sampler).tag(self.loaded.module), goal)
        if not path.is_file():
            n = self.settings.search_n if goal == "ode" else None
            find_steps(self.ckpt, n, goal, data=self.place, sampler=sampler, seed=seed)
        elif json.loads(path.read_text("utf-8"))["seed"] != seed:
            raise InputError(f"{path} was not found with seed {seed}; move it away")
        found = sampler.replace(spacing=OptimizedSpacing(str(path)))
        how = "" if guidance == 1 else f", guidance {guidance:g}"
        return self(found, f"{type(sampler).__name__}, levels found ({goal}){how}", guidance, goal)


def add_quality(report: Report, trials: Trials, evaluations: Sequence[int]) -> None:
    """Compare samplers and spacings with each other, and with DDPM."""
    many = trials(DDPM(trials.settings.ddpm_steps), f"DDPM, {trials.settings.ddpm_steps} steps")
    rows = [many]
    for steps in sorted(evaluations):
        of_sampler = {few: trials.fixed(few, steps) for few in FEW}
        fixed = [one for few in FEW for one in of_sampler[few]]
        best_few = min(FEW, key=lambda few: min(one.distance for one in of_sampler[few]))
        searches: list[tuple[Callable[[int], Sampler], Goal]] = [(few, "ode") for few in FEW]
        searches.append((best_few, "data"))
        found = [trials.optimized(few, steps, goal=goal) for few, goal in searches]
        rows += fixed + found
        if steps % 2 == 0 and steps > 2 and trials.guidable:
            rows += [trials.optimized(few, steps // 2, GUIDANCE, goal) for few, goal in searches]
        best_fixed, best_found = (min(part, key=lambda t: t.distance) for part in (fixed, found))
        report.add(
            f"{steps} evaluations: levels found / best fixed spacing",
            Spread.of([best_found.distance / best_fixed.distance]),
            at_most=1.0,
            note=f"{best_found.against(best_fixed)} to {best_fixed.name}",
        )
        best = min(rows[1:], key=lambda t: t.distance)
        report.add(
            f"{steps} evaluations or fewer: best / {many.name}",
            Spread.of([best.distance / many.distance]),
            at_most=1.1 if steps == 10 else None,
            note=f"{best.against(many)} to {many.distance:.4g}",
        )
    print(f"\n| sampler, spacing | evaluations | {many.record['metric']} | − {many.name} |")
    print("|---|---|---|---|")
    for one in rows:
        value = with_error(one.distance, one.record["standard_error"])
        difference = one.against(many).rpartition(": ")[2] if one is not many else ""
        print(f"| {one.name} | {one.evaluations} | {value} | {difference} |")


def trained_digits(folder: Path) -> Path:
    """Train the preset for 8×8 digits without pictures; return its checkpoint."""
    words = ["--config=configs/digits.yaml", "--grid=null", "--metrics=null"]
    words += ["--trainer.callbacks=[]", f"--trainer.default_root_dir={folder / 'run'}"]
    checkpoint = folder / "run" / "checkpoints" / "last.ckpt"
    if not checkpoint.is_file():
        run_command_line(["fit", *words])
    return checkpoint


def main() -> int:
    """Print the tables; 1 if a limit does not hold."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ckpt", type=Path, help="a trained checkpoint, e.g. of mnist.yaml")
    parser.add_argument("--data-root", "--data.root", help="where its data is, if it has moved")
    parser.add_argument("--n", type=int, default=5000, help="samples of each way")
    parser.add_argument("--seed", type=int, default=1, help="find_steps has the next one")
    parser.add_argument(
        "--search-n", type=int, default=128, help="samples of find_steps --goal ode"
    )
    parser.add_argument("--evaluations", type=int, nargs="+", default=[5, 8, 10])
    parser.add_argument("--ddpm-steps", type=int, default=250)
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds")
    parser.add_argument("--out", type=Path, help="folder of the samples, to go on after a stop")
    parser.add_argument("--part", choices=("time", "quality"), help="only this part")
    settings = parser.parse_args()
    report = Report("Sampling")
    if settings.part != "quality":
        add_arithmetic(report, settings.rounds)
        add_guidance(report, settings.rounds)
    if settings.part != "time":
        with tempfile.TemporaryDirectory() as temporary:
            out = settings.out or Path(temporary)
            ckpt = settings.ckpt or trained_digits(out)
            add_quality(report, Trials(ckpt, out, settings), settings.evaluations)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
