"""Two results side by side: which differences are within the noise."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ddpm_lightning.errors import InputError


def compare_results(first: Path, second: Path) -> str:
    """Say metric by metric whether two results differ by more than the noise.

    The noise is that of drawing the samples: both were held against the same real images. A
    difference counts from two standard errors of itself on, where both results state one.

    Args:
        first: A results.json of the evaluate command.
        second: Another.

    Returns:
        A table, a line a metric.

    Raises:
        InputError: A file is not such a result, or they were measured in different ways: other
            numbers of samples, other pixels of the reference, another extractor, or other
            settings of a metric.
    """
    a, b = _read(first), _read(second)
    shared = [name for name in a["metrics"] if name in b["metrics"]]
    if not shared:
        raise InputError(f"{first} and {second} have no metric in common")
    ways = [(_way(a, name), _way(b, name)) for name in shared]
    for (what, mine), (_, others) in (pair for one in ways for pair in zip(*one, strict=True)):
        if mine != others:
            raise InputError(
                f"{first} and {second} do not compare: {what} is {_short(mine)} and "
                f"{_short(others)}; measure both in the same way"
            )
    width = max(map(len, shared))
    lines = [f"{'':{width}}  {'A':>22}  {'B':>22}  B − A"]
    lines += [_line(name, a["metrics"][name], b["metrics"][name], width) for name in shared]
    return "\n".join([f"A: {first}", f"B: {second}", *lines])


def with_error(value: float, error: float | None) -> str:
    """Write a number with its error: 25.34 ± 0.81."""
    return f"{value:.4g}" if error is None else f"{value:.4g} ± {error:.2g}"


def _way(result: dict[str, Any], name: str) -> list[tuple[str, Any]]:
    """What must agree before two numbers say anything about each other."""
    settings = [(f"the settings of {name}", result["metrics"][name]["settings"])]
    if name == "bpd":  # of the model itself, without samples
        return settings
    reference = result["reference"]
    # Where the real images come from does not matter, if they are the same.
    same = [("n", result["n"]), ("reference", reference["sha256"])]
    return [*same, ("extractor", result["extractor"]), *settings]


def _line(name: str, a: dict[str, Any], b: dict[str, Any], width: int) -> str:
    difference = b["value"] - a["value"]
    cells = "  ".join(f"{with_error(score['value'], score['error']):>22}" for score in (a, b))
    verdict = "its noise is not known"
    if a["error"] is not None and b["error"] is not None:
        noise = math.hypot(a["error"], b["error"])
        better = "A" if (difference > 0) == a["smaller_is_better"] else "B"
        within = abs(difference) <= 2 * noise
        verdict = "within the noise" if within else f"{better} is better"
        verdict += f" ({abs(difference) / noise:.1f} standard errors)" if noise else ""
    return f"{name:{width}}  {cells}  {difference:+.4g}  {verdict}"


def _read(path: Path) -> dict[str, Any]:
    if path.is_dir():
        path = path / "results.json"
    if not path.is_file():
        raise InputError(f"no file {path}")
    try:
        result = json.loads(path.read_text())
        if isinstance(result, list):
            raise InputError(
                f"{path} holds a whole sweep; compare results.json of two of its folders"
            )
        for name, score in result["metrics"].items():
            float(score["value"]), score["error"], score["smaller_is_better"]
            _way(result, name)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is no result of this version's evaluate command ({error!r}); run it again"
        ) from error
    return dict(result)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 120 else text[:117] + "…"
