"""Two results side by side: which differences are within the noise."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ddpm_lightning.errors import InputError
from ddpm_lightning.evaluation.report import with_error
from ddpm_lightning.evaluation.table import Cell, Layout, Number, lay_out, metric_title
from ddpm_lightning.metrics.result import read_results

Record = dict[str, Any]


def compare_results(
    first: Path, second: Path, step: int | None = None, layout: Layout = "text"
) -> str:
    """Say metric by metric whether two results differ by more than the noise: a table.

    The noise is that of drawing the samples: both were compared with the same real images. A
    difference counts from two standard errors of itself on, where both results state one. Results
    that were measured in different ways (numbers of samples, pixels of the reference, extractor,
    settings of a metric) are refused.

    Args:
        first: A results.json of a command or metrics.json of a run, or the folder of either.
        second: Another.
        step: Optimizer steps, of files with several; default: the last.
        layout: How the table is laid out.

    Raises:
        InputError: A file is not such a result, or they were measured in different ways: other
            numbers of samples, other pixels of the reference, another extractor, or other
            settings of a metric.
    """
    a, b = read_results(first, step), read_results(second, step)
    shared = [name for name in a if name in b]
    if not shared:
        raise InputError(f"{first} and {second} have no metric in common")
    for name in shared:
        mine, others = _measured(a[name]), _measured(b[name])
        for what in mine:
            if mine[what] != others[what]:
                raise InputError(
                    f"{first} and {second} do not compare: {what} is {_short(mine[what])} and "
                    f"{_short(others[what])}; measure both in the same way"
                )
    if layout != "text":
        known = metric_title if layout != "csv" else str
        rows = [_row(known(name), a[name], b[name]) for name in shared]
        return lay_out(
            ["metric", "A", "B", "B − A" if layout != "csv" else "difference"], rows, layout
        )
    width = max(map(len, shared))
    lines = [f"{'':{width}}  {'A':>22}  {'B':>22}  B − A"]
    lines += [_line(name, a[name], b[name], width) for name in shared]
    return "\n".join([f"A: {first}", f"B: {second}", *lines])


def _row(name: str, a: Record, b: Record) -> list[Cell]:
    """A line for a paper: both numbers and their difference, with standard errors."""
    both = [Number(record["value"], record["standard_error"]) for record in (a, b)]
    difference = None
    if None not in (a["value"], b["value"]):
        difference = b["value"] - a["value"]
    errors = [number.error for number in both]
    noise = None if None in errors else math.hypot(*[error or 0.0 for error in errors])
    return [name, *both, Number(difference, noise)]


def _measured(record: Record) -> dict[str, Any]:
    """What must agree before two numbers say anything about each other."""
    reference = record.get("reference")
    return {
        "n": record["samples"].get("n"),
        # Where the real images come from does not matter.
        "reference": None if reference is None else reference["sha256"],
        "extractor": record.get("extractor"),
        f"the settings of {record['metric']}": record.get("settings"),
    }


def _line(name: str, a: Record, b: Record, width: int) -> str:
    cells = "  ".join(f"{with_error(r['value'], r['standard_error']):>22}" for r in (a, b))
    if None in (a["value"], b["value"]):
        return f"{name:{width}}  {cells}"
    difference, errors = b["value"] - a["value"], (a["standard_error"], b["standard_error"])
    verdict = "its noise is not known"
    if all(error is not None and math.isfinite(error) for error in errors):
        noise = math.hypot(*errors)
        better = "A" if (difference > 0) == a["smaller_is_better"] else "B"
        within = abs(difference) <= 2 * noise
        verdict = "within the noise" if within else f"{better} is better"
        verdict += f" ({abs(difference) / noise:.1f} standard errors)" if noise else ""
    return f"{name:{width}}  {cells}  {difference:+.4g}  {verdict}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 120 else text[:117] + "…"
