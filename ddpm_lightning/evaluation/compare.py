"""Two results side by side: which differences are within the noise."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ddpm_lightning.errors import InputError
from ddpm_lightning.evaluation.scores import SMALLER_IS_BETTER

COMPARABLE = ("n", "reference", "extractor")
"""What must agree before two numbers say anything about each other."""


def compare_results(first: Path, second: Path) -> str:
    """Say metric by metric whether two results differ by more than the noise.

    A difference counts from two standard errors of itself on, where both results state one.

    Args:
        first: A results.json of the evaluate command.
        second: Another.

    Returns:
        A table, a line a metric.

    Raises:
        InputError: A file is not such a result, or they were measured in different ways: other
            numbers of samples, another reference or extractor.
    """
    a, b = _read(first), _read(second)
    for key in COMPARABLE:
        if a.get(key) != b.get(key):
            raise InputError(
                f"{first} and {second} do not compare: {key} is {_short(a.get(key))} and "
                f"{_short(b.get(key))}; measure both in the same way"
            )
    shared = [name for name in a["metrics"] if name in b["metrics"]]
    if not shared:
        raise InputError(f"{first} and {second} have no metric in common")
    width = max(map(len, shared))
    lines = [f"{'':{width}}  {'A':>22}  {'B':>22}  B − A"]
    lines += [_line(name, a["metrics"][name], b["metrics"][name], width) for name in shared]
    return "\n".join([f"A: {first}", f"B: {second}", *lines])


def _line(name: str, a: dict[str, Any], b: dict[str, Any], width: int) -> str:
    difference = b["value"] - a["value"]
    cells = "  ".join(f"{with_error(score['value'], score['error']):>22}" for score in (a, b))
    verdict = "its noise is not known"
    if a["error"] is not None and b["error"] is not None:
        noise = math.hypot(a["error"], b["error"])
        better = "A" if (difference > 0) == (name.split("_")[0] in SMALLER_IS_BETTER) else "B"
        within = abs(difference) <= 2 * noise
        verdict = "within the noise" if within else f"{better} is better"
        verdict += f" ({abs(difference) / noise:.1f} standard errors)" if noise else ""
    return f"{name:{width}}  {cells}  {difference:+.4g}  {verdict}"


def with_error(value: float, error: float | None) -> str:
    """Write a number with its error: 25.34 ± 0.81."""
    return f"{value:.4g}" if error is None else f"{value:.4g} ± {error:.2g}"


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"no file {path}")
    try:
        result = json.loads(path.read_text())
        for score in result["metrics"].values():
            float(score["value"]), score["error"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no result of the evaluate command ({error!r})") from error
    return dict(result)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 120 else text[:117] + "…"
