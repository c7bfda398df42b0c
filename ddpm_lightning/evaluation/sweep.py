"""Which sampler, guidance, spacing and variance serve a checkpoint best, at equal cost."""

from __future__ import annotations

import hashlib
import json
import math
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeVar

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ddpm_lightning.batch import Condition
from ddpm_lightning.configurable import Configurable, plain
from ddpm_lightning.diffusion.guidance import Guidance, as_guidance, guide
from ddpm_lightning.diffusion.levels import Schedule, Time
from ddpm_lightning.diffusion.prediction import FixedSmall, Prediction, Variance
from ddpm_lightning.diffusion.samplers import DDIM, DDPM, DPMSolverPP, Heun, Sampler, Spacing
from ddpm_lightning.errors import InputError, at_least
from ddpm_lightning.evaluation.sample_set import SampleSet
from ddpm_lightning.evaluation.table import metric_title, readable
from ddpm_lightning.plots.figure import new_figure
from ddpm_lightning.sampling import levels_from_noise

DODGE = 1.02
"""Factor by which a curve stands to the right of the one before it, on a logarithmic axis."""


class Sweep(Configurable):
    """All combinations of these settings, each at equal numbers of network evaluations.

    Args:
        evaluations: Network evaluations (NFE) an image; a sampler takes as many steps as fit.
            Guidance counts twice at the levels where it acts, Heun's method twice a step.
        samplers: Samplers with their own settings, e.g. [DDIM, {class_path: Heun}]; their steps
            follow from the evaluations.
        guidance: Classifier-free guidance: scales, or e.g. [1, {scale: 2, interval: [0.2, 0.8]}].
        spacings: Which levels are visited; null: each sampler's own.
        variances: Variances of DDPM's steps; null: the checkpoint's. Only DDPM has several.
        **samples: How the samples are asked for otherwise, see Request.

    Raises:
        InputError: An axis is empty, or a number is out of range.
    """

    def __init__(
        self,
        evaluations: Sequence[int] = (10, 20, 50),
        samplers: Sequence[Sampler] = (DDPM(), DDIM(), DPMSolverPP(), Heun()),
        guidance: Sequence[float | Guidance] = (1.0,),
        spacings: list[Spacing] | None = None,
        variances: list[Variance] | None = None,
        **samples: Any,
    ) -> None:
        for axis in (evaluations, samplers, guidance, spacings, variances):
            if axis is not None and not axis:
                raise InputError("a sweep over an empty list; leave the axis out instead")
        at_least(1, self, evaluations=min(evaluations))
        self.evaluations = evaluations
        self.samplers = samplers
        self.guidance = [as_guidance(one) for one in guidance]
        self.spacings = spacings
        self.variances = variances
        self.samples = SampleSet(sampler=None, guidance=1.0, variance=None, **samples)

    def points(self, schedule: Schedule) -> list[Point]:
        """List the combinations; refuse two that are the same, and samplers that do not fit.

        Raises InputError: A sampler does not get by with the evaluations, does not start from
        noise, or two combinations are the same.
        """
        found = list(self._points(schedule))
        for name, count in Counter(point.name for point in found).items():
            if count > 1:
                raise InputError(f"{count} combinations of the sweep are the same: {name}")
        return found

    def _points(self, schedule: Schedule) -> Iterator[Point]:
        spacings: Sequence[tuple[str, Spacing | None]] = [("", None)]
        if self.spacings is not None:
            spacings = _named(self.spacings)
        for (name, sampler), (spacing_name, spacing), guidance in product(
            _named(self.samplers, without_spacing=self.spacings is not None),
            spacings,
            self.guidance,
        ):
            chosen = sampler if spacing is None else sampler.replace(spacing=spacing)
            variances: Sequence[tuple[str, Variance | None]] = [("", None)]
            if self.variances is not None and isinstance(sampler, DDPM):
                variances = _named(self.variances)
            strength = guidance.tag.replace("guidance", "guidance ") or "guidance 1"
            for (variance_name, variance), budget in product(variances, self.evaluations):
                fitted = _fitted(chosen, schedule, guidance, budget)
                parts = [name, spacing_name, variance_name]
                parts += [strength] if len(self.guidance) > 1 else []
                yield Point(
                    self.samples.replace(sampler=fitted, guidance=guidance, variance=variance),
                    budget,
                    evaluations(fitted, schedule, guidance),
                    ", ".join(filter(None, parts)),
                )


@dataclass(frozen=True)
class Point:
    """One combination of a sweep: allowed and needed evaluations; its curve is named without."""

    samples: SampleSet
    budget: int
    evaluations: int
    curve: str

    @property
    def name(self) -> str:
        """Name of a folder for it."""
        words = self.curve.replace(", ", "_").replace(" ", "")
        return re.sub(r"[^\w.=-]", "-", f"{words}_{self.budget}")


Part = TypeVar("Part", bound=Configurable)


def _named(axis: Sequence[Part], without_spacing: bool = False) -> list[tuple[str, Part]]:
    """Name the values of an axis by their class and the arguments that are not the default."""
    skipped = ("steps", "spacing") if without_spacing else ("steps",)
    names = []
    for one in axis:
        settings = (f"{k}={_short(v)}" for k, v in one.changed().items() if k not in skipped)
        names.append((", ".join([type(one).__name__.removesuffix("Spacing"), *settings]), one))
    return names


def _short(value: Any) -> str:
    """A value in a name; a long one by its digest."""
    if isinstance(value, Configurable):
        settings = ",".join(map(_short, value.changed().values()))
        return type(value).__name__ + (f"({settings})" if settings else "")
    if isinstance(value, float):
        return f"{value:g}"
    text = json.dumps(plain(value, "a sweep"))
    return text if len(text) < 40 else hashlib.sha256(text.encode()).hexdigest()[:8]


def evaluations(sampler: Sampler, schedule: Schedule, guidance: Guidance) -> int:
    """Count the network evaluations an image, by sampling once without a network."""
    counter = _Counter(schedule)
    levels_from_noise(sampler, counter)
    condition = Condition(label=torch.tensor([0]))
    # Of 64 values that are not 0, because Langevin's step takes the norm of the score.
    for _ in sampler.trajectory(guide(counter, guidance), torch.ones(1, 64), condition):
        pass
    return counter.rows


class _Counter:
    """A denoiser that predicts nothing and counts the rows it is asked for."""

    net = None

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.rows = 0

    def __call__(self, x_t: Tensor, t: Time, condition: Condition = Condition()) -> Prediction:
        self.rows += len(x_t)
        level = self.schedule.level(t, like=x_t)
        return Prediction(torch.zeros_like(x_t), x_t, level, FixedSmall())


def _fitted(sampler: Sampler, schedule: Schedule, guidance: Guidance, budget: int) -> Sampler:
    """The sampler with as many steps as the budget allows."""
    if sampler.chooses_steps:
        raise InputError(
            f"{type(sampler).__name__} takes as many evaluations as its tolerance asks for, so a "
            "sweep at equal evaluations has no place for it; measure it alone: python -m "
            f"ddpm_lightning evaluate --sampler {type(sampler).__name__}"
        )

    def cost(steps: int) -> int:
        return evaluations(sampler.replace(steps=steps), schedule, guidance)

    steps = bisect_right(range(1, min(budget, schedule.T) + 1), budget, key=cost)
    if steps == 0:
        raise InputError(
            f"{type(sampler).__name__} with guidance {guidance.scale:g} needs more than {budget} "
            "evaluations for a single step; raise --evaluations"
        )
    return sampler.replace(steps=steps)


def draw_sweep(rows: Sequence[dict[str, Any]], metric: str) -> Figure:
    """Plot quality against evaluations, a curve for each combination of curve and results."""
    scores = [next(r for r in row["results"] if r["metric"] == metric) for row in rows]
    figure = new_figure(8, 4.5, dpi=120)
    axes = figure.add_subplot(xscale="log", xlabel="network evaluations an image (NFE)")
    axes.set_ylabel(metric_title(metric))
    curves = list(dict.fromkeys(row["curve"] for row in rows))
    styles = product(("-", "--", ":"), [f"C{i}" for i in range(10)])
    for i, (curve, (line, colour)) in enumerate(zip(curves, styles, strict=False)):
        own = [k for k, row in enumerate(rows) if row["curve"] == curve]
        # Side by side, or the bars of equal evaluations would cover each other.
        aside = DODGE ** (i - (len(curves) - 1) / 2)
        x = [rows[k]["evaluations"] * aside for k in own]
        y = [math.nan if (v := scores[k]["value"]) is None else v for k in own]
        errors = [scores[k]["standard_error"] or 0.0 for k in own]
        axes.errorbar(
            x, y, errors, label=readable(curve), fmt="o" + line, color=colour, capsize=2, ms=4
        )
    if scores[0]["floor"] is not None and scores[0]["floor"]["value"] is not None:
        label = "{n} against {reference_n} real images".format(**scores[0]["floor"])
        axes.axhline(scores[0]["floor"]["value"], color="0.5", lw=1, label=label)
    values = [score["value"] for score in scores if score["value"] is not None]
    if values and min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")
    ticks = sorted({row["evaluations"] for row in rows})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    return figure
