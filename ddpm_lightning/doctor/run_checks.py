"""Checks of what a run needs, and a forecast of what it costs."""

from __future__ import annotations

import math
import shutil
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy

from ddpm_lightning.busy import busy_machine
from ddpm_lightning.callbacks import GenerativeMetrics, RunCheckpoint
from ddpm_lightning.callbacks.periodic import Periodic
from ddpm_lightning.doctor.finding import Finding, Run, failed, ok, unknown
from ddpm_lightning.doctor.trial import Trial, most_rows
from ddpm_lightning.evaluation.sweep import evaluations
from ddpm_lightning.files import check_folder
from ddpm_lightning.memory import machine_memory
from ddpm_lightning.run_folder import last_checkpoint
from ddpm_lightning.trackers import Tracker, trackers_of

GB = 1e9
SHARDED = (FSDPStrategy, ModelParallelStrategy)
LONG = 4.0
"""Seconds above which a step of the whole batch is not timed, but projected from fewer rows."""


def run_folder(run: Run) -> Finding:
    """Whether files can be written into the run folder."""
    root = Path(run.trainer.default_root_dir)
    check_folder(root)
    if not last_checkpoint(root).exists():
        return ok(f"{root} is writable")
    if run.resumes:
        return ok(f"{root} is writable and holds a run, to go on with by --ckpt_path auto")
    return failed(f"{root} holds a run: go on with it by --ckpt_path auto, or choose another")


def loggers(run: Run) -> Finding:
    """Whether the loggers can write."""
    names = []
    for tracker in trackers_of(run.trainer):
        tracker.check()
        names.append(type(tracker.logger).__name__)
        if type(tracker) is Tracker:
            return unknown(f"{names[-1]} was not tried: it is none that TRACKERS knows")
        if (folder := tracker.logger.log_dir) is not None:
            check_folder(Path(folder))
    return ok(", ".join(names) or "none: nothing is logged")


def disk_room(run: Run) -> Finding:
    """Whether the checkpoints fit onto the disk."""
    size = run_size(run)
    if size is None:
        return unknown("the run has no end (--trainer.max_steps)")
    root = Path(run.trainer.default_root_dir).absolute()
    free = shutil.disk_usage(next(p for p in (root, *root.parents) if p.exists())).free
    found = f"{size / GB:.2f} GB of checkpoints, {free / GB:.1f} GB free"
    return ok(found) if size < free else failed(f"{found}: free some, or keep fewer")


def metric_weights(run: Run) -> Finding:
    """Whether the extractors of the metrics suit the data, and have their weights."""
    names = []
    for callback in _callbacks(run):
        if isinstance(callback, GenerativeMetrics):
            if (state := run.kept.get(callback.state_key)) is not None:
                callback.load_state_dict(state)
            extractor = callback.chosen(run.module.data.shape)
            extractor.check()
            names.append(type(extractor).__name__)
    return ok(f"{', '.join(names)} found" if names else "no metric needs any")


def forecast(run: Run) -> Finding:
    """Memory, images a second, time to the end and size of the run."""
    size: int = getattr(run.data, "global_batch_size", len(run.batch.x0))
    own = max(1, size // run.processes // run.trainer.accumulate_grad_batches)
    rows, seconds = most_rows(run, own, LONG)
    trial = Trial(run, rows)
    trial.step()
    per_step = seconds * own / rows * run.trainer.accumulate_grad_batches
    state, moments = trial.state_bytes()
    gradients = sum(p.nbytes for p in trial.module.net.parameters())
    shards = run.processes if isinstance(run.trainer.strategy, SHARDED) else 1
    memory = (state + moments + gradients) / shards + trial.activations() * own / rows
    measured = "" if rows == own else f" (projected from {rows} rows)"
    words = [f"{memory / GB:.2f} GB of memory a process", f"{size / per_step:.1f} images/s"]
    if (steps := run.steps) is not None:
        drawing = _drawing_seconds(run, trial)
        words += [f"{_time(steps * per_step)} of training and {_time(drawing)} of samples"]
        words += [f"{(run_size(run) or 0) / GB:.2f} GB on the disk"]
    found = ", ".join(words) + measured
    device = run.trainer.strategy.root_device
    if busy := busy_machine(device):
        found += f"; {busy}"
    room = _memory(device)
    if memory > room:
        return failed(f"{found}; the device has {room / GB:.1f} GB")
    return ok(found)


@lru_cache(maxsize=1)
def run_size(run: Run) -> float | None:
    """Bytes of all checkpoints, one that is being written included; None: the run has no end."""
    trial = Trial(run, 1)
    trial.step()
    copies = 0.0
    for callback in _callbacks(run):
        if isinstance(callback, RunCheckpoint):
            copies += 3  # last, the one before, and the one that is being written
            if callback.keep_all:
                if run.steps is None:
                    return None
                copies += run.steps // callback.every_n_steps
    return copies * sum(trial.state_bytes())


def _drawing_seconds(run: Run, trial: Trial) -> float:
    """Time that the callbacks sample for, of the whole run, without what metrics compute."""
    module, rows = trial.module.eval(), len(trial.batch.x0)
    t = torch.full((rows,), module.schedule.T, device=module.device)
    denoiser, known = module.denoiser("ema"), module.known(trial.batch)
    x0 = module.latents(trial.batch)
    with torch.no_grad(), trial.precision.forward_context():
        for _ in range(2):
            start = time.perf_counter()
            denoiser(x0, t, known).x0.sum().item()
            seconds = time.perf_counter() - start
    total = 0.0
    for callback in _callbacks(run):
        if not isinstance(callback, Periodic) or isinstance(callback, RunCheckpoint):
            continue
        times = max(1, (run.steps or 0) // callback.every_n_steps)
        one: Any = callback
        for request in getattr(one, "requests", None) or [getattr(one, "request", None)]:
            if request is not None:
                calls = evaluations(request.sampler, module.schedule, request.guidance)
                n = getattr(one, "n", None) or request.n
                total += times * n * calls * seconds / rows / run.processes
    return total


def _callbacks(run: Run) -> list[Any]:
    return list(run.trainer.callbacks)  # type: ignore[attr-defined]


def _memory(device: torch.device) -> float:
    """Bytes of memory of a device; infinite where it is not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return machine_memory() if device.type == "cpu" else math.inf


def _time(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
