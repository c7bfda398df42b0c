"""Two results side by side: which differences are within the noise."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import correlation
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

    The noise is that of drawing the samples, which were compared with the same real images; of
    bpd, that of choosing the test images and of the noise added to them. A difference counts from
    two standard errors of itself on, where both results state one; it is a paired one where the
    same noise was drawn for sample k, or test image k, of both, see :func:`difference_error`.
    Results that were measured in different ways (numbers of samples, pixels of the reference,
    extractor, settings of a metric) are refused.

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
    pairs = {name: (a[name], b[name]) for name in shared}
    return "\n".join([f"A: {first}", f"B: {second}", _noise_in_words(pairs), *lines])


def difference_error(a: Record, b: Record) -> float | None:
    """Standard error of the difference of two numbers; None: it is not known.

    Nor is one of 0 beside a difference, as of two shares of 0 and 1, which scatter all the same.

    √(e_a² + e_b² − 2·ρ·e_a·e_b), where ρ correlates the numbers without each block of samples in
    turn, if the samples share their noise: a paired delete-d jackknife, where e_a and e_b are of a
    jackknife themselves. Else, and where a result does not hold these numbers, ρ = 0.
    """
    e_a, e_b = a["standard_error"], b["standard_error"]
    if e_a is None or e_b is None or not math.isfinite(e_a + e_b):
        return None
    rho = 0.0
    if is_paired(a, b) and len(set(a["left_out"])) > 1 and len(set(b["left_out"])) > 1:
        rho = correlation(a["left_out"], b["left_out"])
    error = math.sqrt(max(e_a**2 + e_b**2 - 2 * rho * e_a * e_b, 0.0))
    return error if error or a["value"] == b["value"] else None


def is_paired(a: Record, b: Record) -> bool:
    """Whether samples share their noise, and both results hold what a paired error is made of."""
    blocks = [len(record.get("left_out") or ()) for record in (a, b)]
    return _share_noise(a, b) and blocks[0] == blocks[1] > 0


def _share_noise(a: Record, b: Record) -> bool:
    """Whether the same noise was drawn for sample k, or test image k, of both."""
    one, other = a["samples"], b["samples"]
    # A folder of images that were drawn elsewhere names the seed of the metrics alone.
    drawn = all("sampler" in samples or "weights" in samples for samples in (one, other))
    return drawn and one.get("seed") is not None and one["seed"] == other.get("seed")


def _noise_in_words(pairs: dict[str, tuple[Record, Record]]) -> str:
    """Say whether the samples share their noise, and of which metrics the errors are paired."""
    known = {k: pair for k, pair in pairs.items() if difference_error(*pair) is not None}
    alone = [name for name, pair in known.items() if not is_paired(*pair)]
    seed = next((a["samples"]["seed"] for a, b in pairs.values() if _share_noise(a, b)), None)
    if seed is None:
        return "A and B do not share their noise as far as known: errors taken as independent"
    words = f"A and B share their noise (seed {seed})"
    if len(alone) < len(known):
        words += ": errors of their difference are paired"
    if alone:
        words += f"; of {', '.join(alone)} taken as independent, for want of blocks of samples"
    return words


def _row(name: str, a: Record, b: Record) -> list[Cell]:
    """A line for a paper: both numbers and their difference, with standard errors."""
    both = [Number(record["value"], record["standard_error"]) for record in (a, b)]
    difference = None
    if None not in (a["value"], b["value"]):
        difference = b["value"] - a["value"]
    return [name, *both, Number(difference, difference_error(a, b))]


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
    difference, noise = b["value"] - a["value"], difference_error(a, b)
    verdict = "its noise is not known"
    if noise is not None:
        better = "A" if (difference > 0) == a["smaller_is_better"] else "B"
        within = abs(difference) <= 2 * noise
        verdict = "within the noise" if within else f"{better} is better"
        kind = "paired standard errors" if is_paired(a, b) else "standard errors"
        verdict += f" ({abs(difference) / noise:.1f} {kind})" if noise else ""
    return f"{name:{width}}  {cells}  {difference:+.4g}  {verdict}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 120 else text[:117] + "…"
