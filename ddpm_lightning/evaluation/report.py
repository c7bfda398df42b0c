"""Tables of results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ddpm_lightning.evaluation.table import Cell, Layout, Number, lay_out, metric_title, readable


def with_error(value: float | None, error: float | None) -> str:
    """Write a number with its standard error: 25.34 ± 0.81."""
    if value is None:
        return "not finite"
    known = error is not None and math.isfinite(error)
    return f"{value:.4g}" if not known else f"{value:.4g} ± {error:.2g}"


def table(records: Sequence[dict[str, Any]]) -> str:
    """Lay out results as text, a line each: the number ± its standard error, and the floor."""
    numbers = [
        with_error(r["value"], r["standard_error"])
        + ("" if r["spread"] is None else f" (spread {r['spread']:.2g})")
        for r in records
    ]
    width = max(len(record["metric"]) for record in records)
    column = max(map(len, numbers))
    lines = []
    for record, number in zip(records, numbers, strict=True):
        floor = record["floor"]
        real = "" if floor is None else f"real images: {with_error(floor['value'], None)}"
        lines.append(f"  {record['metric']:{width}}  {number:{column}}   {real}".rstrip())
    return "\n".join(lines)


def sweep_table(rows: Sequence[dict[str, Any]], layout: Layout = "text") -> str:
    """Lay out a sweep, a line a combination: curve, evaluations and results."""
    names = [record["metric"] for record in rows[0]["results"]]
    cells: list[list[Cell]] = []
    for row in rows:
        curve = row["curve"] if layout in ("text", "csv") else readable(row["curve"])
        numbers = [Number(r["value"], r["standard_error"]) for r in row["results"]]
        cells.append([curve, row["evaluations"], *numbers])
    if layout in ("text", "csv"):
        return lay_out(["curve", "evaluations", *names], cells, layout)
    return lay_out(["", "NFE", *map(metric_title, names)], cells, layout)


def floor_table(records: Sequence[dict[str, Any]]) -> str:
    """Lay out floors as text, a line a size: the distance, and the extrapolated one."""
    name = records[0]["metric"]
    lines = [f"{'real images':>11}  {name:>12}  {name + '_inf':>22}"]
    for distance, limit in zip(records[::2], records[1::2], strict=True):
        number = with_error(limit["value"], limit["standard_error"])
        lines.append(f"{distance['samples']['n']:>11}  {distance['value']:>12.4g}  {number:>22}")
    return "\n".join(lines)
