"""Which sampler, guidance, spacing and variance serve a checkpoint best, at equal cost."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, TypeVar

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ddpm_lightning.configurable import Configurable, build
from ddpm_lightning.diffusion.denoiser import Guidance, Prediction, guide
from ddpm_lightning.diffusion.samplers import DDIM, DDPM, DPMSolverPP, Heun, Sampler, Spacing
from ddpm_lightning.diffusion.schedules import Schedule
from ddpm_lightning.diffusion.variances import FixedSmall, Variance
from ddpm_lightning.errors import InputError
from ddpm_lightning.plots.figure import new_figure
from ddpm_lightning.sampling import levels_from_noise


@dataclass(frozen=True)
class Sweep:
    """All combinations of these settings, each at equal numbers of network evaluations.

    Args:
        evaluations: Network evaluations an image; a sampler takes as many steps as fit. Guidance
            counts twice at the levels where it acts, Heun's method twice a step.
        samplers: Samplers with their own settings, e.g. [DDIM, {class_path: Heun}]; their steps
            follow from the evaluations.
        guidance: Strengths of classifier-free guidance.
        spacings: Which levels are visited; null: each sampler's own.
        variances: Variances of DDPM's steps; null: the checkpoint's. Only DDPM has several.
    """

    evaluations: list[int] = field(default_factory=lambda: [10, 20, 50])
    samplers: list[Sampler] = field(
        default_factory=lambda: [DDPM(), DDIM(), DPMSolverPP(), Heun()]
    )
    guidance: list[float] = field(default_factory=lambda: [1.0])
    spacings: list[Spacing] | None = None
    variances: list[Variance] | None = None

    def __post_init__(self) -> None:
        lists = (self.evaluations, self.samplers, self.guidance, self.spacings, self.variances)
        if any(values is not None and not values for values in lists):
            raise InputError("a sweep over an empty list; leave the axis out instead")
        if min(self.evaluations) < 1:
            raise InputError(f"sweep.evaluations {self.evaluations}: each is at least 1")


@dataclass(frozen=True)
class Point:
    """One combination of a sweep.

    Attributes:
        sampler: With its steps.
        guidance: Strength of classifier-free guidance.
        variance: In place of the checkpoint's; None: the checkpoint's.
        budget: Evaluations that were allowed.
        evaluations: Evaluations that it takes.
        curve: Name of the combination without the evaluations.
    """

    sampler: Sampler
    guidance: Guidance
    variance: Variance | None
    budget: int
    evaluations: int
    curve: str

    @property
    def name(self) -> str:
        """Name of a folder for it."""
        words = self.curve.replace(", ", "_").replace(" ", "")
        return re.sub(r"[^\w.=-]", "-", f"{words}_{self.budget}")


def points(
    sweep: Sweep,
    schedule: Schedule,
    interval: tuple[float, float] | None = None,
    rescale: float = 0.0,
) -> list[Point]:
    """List a sweep's combinations.

    Args:
        sweep: The axes.
        schedule: The forward process.
        interval: Where the strengths of guidance act; see :class:`Guidance`.
        rescale: By how much their spread is brought back.

    Raises:
        InputError: A sampler does not get by with the evaluations, does not start from noise, or
            two combinations are the same.
    """
    if (interval is not None or rescale) and all(scale == 1 for scale in sweep.guidance):
        raise InputError(
            "guidance_interval and guidance_rescale change nothing at strength 1; give "
            "--sweep.guidance strengths"
        )
    found = list(_points(sweep, schedule, interval, rescale))
    for name, count in Counter(point.name for point in found).items():
        if count > 1:
            raise InputError(f"{count} combinations of the sweep are the same: {name}")
    return found


def _points(
    sweep: Sweep, schedule: Schedule, interval: tuple[float, float] | None, rescale: float
) -> Iterator[Point]:
    samplers = _named(sweep.samplers)
    spacings: Sequence[tuple[str, Spacing | None]] = [("", None)]
    if sweep.spacings is not None:
        spacings = _named(sweep.spacings)
    for (name, sampler), (spacing_name, spacing), strength in product(
        samplers, spacings, sweep.guidance
    ):
        guidance = Guidance() if strength == 1 else Guidance(strength, interval, rescale)
        stated = sampler.describe()
        if spacing is not None:
            stated["init_args"]["spacing"] = spacing.describe()
        variances: Sequence[tuple[str, Variance | None]] = [("", None)]
        if sweep.variances is not None and isinstance(sampler, DDPM):
            variances = _named(sweep.variances)
        for (variance_name, variance), budget in product(variances, sweep.evaluations):
            chosen = _fitting(stated, schedule, guidance, budget)
            parts = [name, spacing_name, variance_name]
            parts += [f"guidance {strength:g}"] if len(sweep.guidance) > 1 else []
            yield Point(
                chosen,
                guidance,
                variance,
                budget,
                evaluations(chosen, schedule, guidance),
                ", ".join(filter(None, parts)),
            )


Part = TypeVar("Part", bound=Configurable)


def _named(axis: Sequence[Part]) -> list[tuple[str, Part]]:
    """Name the values of an axis by their class, and by what differs within a class."""
    names: list[tuple[str, Part]] = []
    for one in axis:
        marks = one.marks() if isinstance(one, Sampler) else []
        same = [other.plain_arguments() for other in axis if type(other) is type(one)]
        differing = [
            f"{key}={_short(value)}"
            for key, value in one.plain_arguments().items()
            if any(other.get(key) != value for other in same)
            and not any(mark.startswith(key) for mark in marks)
        ]
        names.append((", ".join([type(one).__name__, *marks, *differing]), one))
    return names


def _short(value: Any) -> str:
    """A value in a name; a long one by its digest."""
    if isinstance(value, dict) and "class_path" in value:
        settings = ",".join(_short(one) for one in value["init_args"].values())
        return f"{value['class_path'].rpartition('.')[2]}({settings})"
    text = json.dumps(value)
    return text if len(text) < 40 else hashlib.sha256(text.encode()).hexdigest()[:8]


def evaluations(sampler: Sampler, schedule: Schedule, guidance: Guidance) -> int:
    """Count the network evaluations an image, by sampling once without a network."""
    counter = _Counter(schedule)
    levels_from_noise(sampler, counter)
    for _ in sampler.trajectory(guide(counter, guidance), torch.zeros(1, 1), torch.tensor([0])):
        pass
    return counter.rows


class _Counter:
    """A denoiser that predicts nothing and counts the rows it is asked for."""

    net = None

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.rows = 0

    def __call__(self, x_t: Tensor, t: int | Tensor, y: Tensor | None = None) -> Prediction:
        self.rows += len(x_t)
        return Prediction(torch.zeros_like(x_t), x_t, t, self.schedule, FixedSmall())


def _fitting(
    stated: dict[str, Any], schedule: Schedule, guidance: Guidance, budget: int
) -> Sampler:
    """The sampler with as many steps as the budget allows."""

    def at(steps: int) -> Sampler:
        return build(stated | {"init_args": stated["init_args"] | {"steps": steps}})

    low, high = 0, min(budget, schedule.T)  # the most steps that fit lie in low…high
    while low < high:
        middle = (low + high + 1) // 2
        if evaluations(at(middle), schedule, guidance) <= budget:
            low = middle
        else:
            high = middle - 1
    if low == 0:
        name = stated["class_path"].rpartition(".")[2]
        raise InputError(
            f"{name} with guidance {guidance.scale:g} needs more than {budget} evaluations for a "
            "single step; raise sweep.evaluations"
        )
    return at(low)


def draw_sweep(rows: Sequence[dict[str, Any]], metric: str) -> Figure:
    """Plot quality against evaluations, a curve for each combination.

    Args:
        rows: ``curve``, ``evaluations`` and ``metrics`` of each point.
        metric: The one to plot.
    """
    figure = new_figure(8, 4.5, dpi=120)
    axes = figure.add_subplot(xscale="log", xlabel="network evaluations an image", ylabel=metric)
    styles = product(("-", "--", ":"), [f"C{i}" for i in range(10)])
    for curve, (line, colour) in zip(
        dict.fromkeys(row["curve"] for row in rows), styles, strict=False
    ):
        own = [row for row in rows if row["curve"] == curve]
        x = [row["evaluations"] for row in own]
        scores = [row["metrics"][metric] for row in own]
        y = [score["value"] for score in scores]
        errors = [score["error"] or 0.0 for score in scores]
        axes.errorbar(x, y, errors, label=curve, fmt="o" + line, color=colour, capsize=2, ms=4)
    floors = [row["metrics"][metric]["floor"] for row in rows]
    if floors and floors[0] is not None:
        counts = [rows[0]["metrics"][metric][f"floor_{name}"] for name in ("n", "reference_n")]
        label = "{} against {} real images".format(*counts)
        axes.axhline(floors[0], color="0.5", lw=1, label=label)
    values = [row["metrics"][metric]["value"] for row in rows]
    if min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")
    ticks = sorted({row["evaluations"] for row in rows})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    return figure
