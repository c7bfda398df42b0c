"""What a CUDA GPU makes of it: numeric tests, speed, synchronisations, graph breaks, memory.

    python -m benchmarks.gpu [--seconds 600] [--only tests,eager,…]

Each section is a few rows; one that fails is a row FAILED, and the others run. Without a GPU it
says so and ends with exit code 0.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from benchmarks.data import Noise
from benchmarks.loops import CIFAR10, Recipe, autocast, bare_step, diffusers_step
from benchmarks.report import Report
from benchmarks.syncs import Watched, per_step, places, told
from benchmarks.timing import Spread, in_turn, ratio
from benchmarks.turns import Turns
from ddpm_lightning import DiffusionModule
from ddpm_lightning.callbacks import FastKernels, LossByTimestep, RunCheckpoint, TrainingMonitor
from ddpm_lightning.diffusion.samplers import DDIM
from ddpm_lightning.randomness import BatchNoise, Draw, IndexedNoise
from ddpm_lightning.sampling import Request

TESTS = ["tests/test_gpu.py", "tests/test_devices.py", "tests/test_numerics.py"]


@dataclass(frozen=True)
class Run:
    """What the sections measure, and where.

    Args:
        device: The GPU.
        recipe: Network and batch.
        dtype: Of mixed precision.
        turns: How often each way is timed.
        n: Training steps a turn.
        warm: Training steps before.
        samples: Images that are sampled at once.
        steps: Of the sampler.
    """

    device: torch.device
    recipe: Recipe = CIFAR10
    dtype: torch.dtype = torch.bfloat16
    turns: int = 5
    n: int = 10
    warm: int = 10
    samples: int = 512
    steps: int = 25

    def fit(
        self, module: DiffusionModule, max_steps: int, callbacks: list[Callback], fast: bool
    ) -> Trainer:
        """Train as the command line does, with the callbacks of cifar10.yaml in a new folder."""
        usual = [LossByTimestep(), LearningRateMonitor(), TrainingMonitor()]
        with TemporaryDirectory() as folder:
            trainer = Trainer(
                default_root_dir=folder,
                accelerator="gpu" if self.device.type == "cuda" else "cpu",
                devices=1,
                precision="bf16-mixed",
                max_steps=max_steps,
                gradient_clip_val=1.0,
                log_every_n_steps=100,
                limit_val_batches=0,
                logger=TensorBoardLogger(folder),
                enable_progress_bar=False,
                enable_model_summary=False,
                callbacks=[
                    *usual,
                    *([FastKernels()] if fast else []),
                    *callbacks,
                    RunCheckpoint(every_n_steps=10**6),
                ],
            )
            trainer.fit(module, Noise(3, self.recipe.side, self.recipe.batch, n=1024, flip=True))
        return trainer


# ------------------------------------------------------------------------------ sections


def numeric_tests(run: Run, report: Report) -> None:
    """Run the tests that compute on the GPU."""
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu or core", "-p", "no:cacheprovider"]
    command += ["--device", run.device.type, "--tb", "short", "-n", "4", "--timeout", "150"]
    done = subprocess.run(
        [*command, *TESTS], cwd=root, capture_output=True, text=True, timeout=240
    )
    print("\n".join(done.stdout.splitlines()[-150:]), file=sys.stderr)
    lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or [""]
    passed = Spread.of([float(done.returncode == 0)])
    report.add("numeric tests pass", passed, at_least=1, note=lines[-1].strip("= "))


def training(
    run: Run, report: Report, fast: bool = False, compile: bool = False, peer: bool = False
) -> None:
    """Images a second of fit beside a bare loop and diffusers' example, in turn.

    Args:
        run: What is measured.
        report: Gets the rows.
        fast: Weights channels-last.
        compile: Our network is compiled, which takes minutes; a bare loop is then left out.
        peer: diffusers' network is compiled, too, for as many minutes more, and channels-last
            where ours is.
    """
    here: Any = {"recipe": run.recipe, "device": run.device, "dtype": run.dtype}
    others = {"diffusers": diffusers_step(**here, channels_last=fast and peer, compile=peer)}
    if not compile:
        others["bare loop"] = bare_step(**here, channels_last=fast)
    if fast and not compile:
        others["diffusers, channels-last"] = diffusers_step(**here, channels_last=True)
    turns = Turns(others, run.n, run.warm)
    run.fit(run.recipe.module(compile), run.warm + run.n * run.turns, [turns], fast)
    compiled = "both compiled" if peer else "ours compiled" if compile else "eager"
    kind = ", ".join([compiled, *["channels-last"] * fast])
    ours = turns.seconds["fit"]
    for name, seconds in turns.seconds.items():
        speed = Spread.of([run.recipe.batch / s for s in seconds.wall])
        busy = ratio(seconds.cpu, seconds.wall).median
        report.add(f"{kind}: {name}, images/s", speed, note=f"processor busy {busy:.0%}")
    for name in others:
        limit = 0.9 if name == "bare loop" else 1.0
        speedup = ratio(turns.seconds[name].wall, ours.wall)
        report.add(f"{kind}: fit / {name}", speedup, at_least=limit)


def synchronisations(run: Run, report: Report) -> None:
    """Count where a training step and a sampling wait for the GPU, and what they copy."""
    watched, steps = Watched(run.device, first=5, steps=5), 5
    run.fit(run.recipe.module(), watched.last + 1, [watched], fast=True)
    waits = Spread.of([sum(watched.waits.values()) / steps])
    report.add("training step: waits", waits, at_most=1, note=told(watched.waits))
    image = run.recipe.spec.shape
    batch = run.recipe.batch * (5 * math.prod(image) + 8 + 1 + 4) / 1024  # with noise and levels
    limits = {"copies of pageable memory": 0, "KiB HtoD": 1.01 * batch + 1}
    for name, found in per_step(watched.trace, steps).items():
        report.add(f"training step: {name}", Spread.of([found]), at_most=limits.get(name))
    module = run.recipe.module().to(run.device)
    request = Request(DDIM(run.steps), batch_size=run.samples)
    module.generate(torch.arange(run.samples), request)
    with places(run.device) as found_places:
        module.generate(torch.arange(run.samples), request)
    waits = Spread.of([float(sum(found_places.values()))])
    name = f"waits of a batch sampled in {run.steps} steps"
    report.add(name, waits, at_most=2, note=told(found_places))


def noise(run: Run, report: Report) -> None:
    """Time the keyed noise of a training batch, which is drawn on the CPU."""
    rows = torch.arange(run.recipe.batch)

    def draw() -> None:
        BatchNoise(0, 1, rows, len(rows), run.device)(Draw.EPS, run.recipe.spec.shape)

    seconds = in_turn({"noise": draw}, rounds=9)["noise"].wall
    report.add("keyed noise of a batch, ms", Spread.of([1000 * s for s in seconds]))
    same = BatchNoise(0, 1, rows, len(rows))(Draw.EPS, run.recipe.spec.shape)
    here = BatchNoise(0, 1, rows, len(rows), run.device)(Draw.EPS, run.recipe.spec.shape)
    report.add(
        "keyed noise equals the CPU's", Spread.of([float(here.cpu().equal(same))]), at_least=1
    )


def graph_breaks(run: Run, report: Report) -> None:
    """Count the graphs of the network as it trains, and as it samples."""
    torch._dynamo.reset()
    recipe = replace(run.recipe, batch=2)
    module = recipe.module().to(run.device)
    x, c_noise = recipe.images(run.device), torch.ones(2, device=run.device)
    denoiser, found = module.denoiser("ema"), {}
    with autocast(run.device, run.dtype):
        found["training"] = torch._dynamo.explain(module.net.train())(x, c_noise)
        with torch.no_grad():
            found["sampling"] = torch._dynamo.explain(denoiser.net)(x, c_noise)
    for name, explained in found.items():
        breaks = Spread.of([float(explained.graph_break_count)])
        reasons = "; ".join(str(one.reason) for one in explained.break_reasons)
        report.add(f"graph breaks of the network, {name}", breaks, at_most=0, note=reasons[:300])
    torch._dynamo.reset()


def memory(run: Run, report: Report) -> None:
    """Peak memory of three steps, beside diffusers'."""
    peaks = {}
    for name, make in {"ours": bare_step, "diffusers": diffusers_step}.items():
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(run.device)
        torch.cuda.reset_peak_memory_stats(run.device)
        step = make(run.recipe, run.device, run.dtype)
        for _ in range(3):
            step()
        peaks[name] = (torch.cuda.max_memory_allocated(run.device) - before) / 2**30
        report.add(f"peak memory of a step, {name}, GiB", Spread.of([peaks[name]]))
        del step
    share = Spread.of([peaks["ours"] / peaks["diffusers"]])
    report.add("peak memory, ours / diffusers", share, at_most=1)


def sampling(run: Run, report: Report, compile: bool = False) -> None:
    """Images a second of DDIM in mixed precision, and that compiling changes no sample much."""
    module = run.recipe.module().to(run.device)
    for net in (module.net, module.ema.net):
        net.to(memory_format=torch.channels_last)
    with torch.no_grad():  # because a new network's output is 0, whatever computes it
        for weight in module.ema.net.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.02)
    denoiser, sampler = module.denoiser(), DDIM(run.steps, clip=(-1, 1))
    drawn = IndexedNoise(0, torch.arange(run.samples), device=run.device)
    x_T = drawn(0, run.recipe.spec.shape)
    nets: dict[str, Any] = {"eager": denoiser.net}
    if compile:
        nets["compiled"] = torch.compile(denoiser.net)

    def draw(net: Any) -> Tensor:
        with autocast(run.device, run.dtype):
            return sampler(replace(denoiser, net=net), x_T)

    seconds = in_turn({name: partial(draw, net) for name, net in nets.items()}, run.turns)
    for name, taken in seconds.items():
        speed = Spread.of([run.samples / s for s in taken.wall])
        report.add(f"sampling, DDIM {run.steps}, {name}, images/s", speed)
    if compile:
        report.add(
            "sampling: compiled / eager", ratio(seconds["eager"].wall, seconds["compiled"].wall)
        )
        a, b = (draw(net).double() for net in nets.values())
        apart = float((a - b).norm() / a.norm())
        report.add("sampling: compiled apart from eager", Spread.of([apart]), at_most=0.05)


def average(run: Run, report: Report) -> None:
    """Time an update of the EMA, plain and compiled."""
    module = run.recipe.module().to(run.device)
    compiled = torch.compile(module.ema.update)
    ways = {"eager": partial(module.ema.update, module.net, 10**6)}
    ways["compiled"] = partial(compiled, module.net, 10**6)
    for name, taken in in_turn(ways, rounds=9, warm=3).items():
        report.add(f"EMA update, {name}, ms", Spread.of([1000 * s for s in taken.wall]))


SECTIONS: dict[str, Callable[[Run, Report], None]] = {
    "tests": numeric_tests,
    "eager": training,
    "channels_last": partial(training, fast=True),
    "syncs": synchronisations,
    "noise": noise,
    "memory": memory,
    "breaks": graph_breaks,
    "compiled": partial(training, fast=True, compile=True),
    "sampling": partial(sampling, compile=True),
    "ema": average,
    "both_compiled": partial(training, fast=True, compile=True, peer=True),
}


def sections(run: Run, report: Report, names: Iterable[str], seconds: float) -> None:
    """Run sections until the time is up; a failure becomes a row."""
    start = time.monotonic()
    for name in names:
        spent = time.monotonic() - start
        if spent > seconds:
            report.fail(name, f"not run, because {spent:.0f} s are over")
            continue
        print(f"[{spent:.0f} s] {name}", file=sys.stderr, flush=True)
        try:
            SECTIONS[name](run, report)
        except Exception as error:
            report.fail(name, error)
        if run.device.type == "cuda":
            torch.cuda.empty_cache()


def main(args: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="no section starts later")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, by comma")
    given = parser.parse_args(args)
    if not torch.cuda.is_available():
        print("no GPU was found: nothing is measured")
        return 0
    torch.backends.cudnn.benchmark = True
    report = Report(f"The CIFAR-10 recipe in bf16 on {torch.cuda.get_device_name()}")
    sections(Run(torch.device("cuda")), report, given.only.split(","), given.seconds)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
