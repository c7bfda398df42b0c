"""What evaluate leaves and prints: results.json and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ddpm_lightning.evaluation.compare import with_error
from ddpm_lightning.files import write_json
from ddpm_lightning.metrics import Score


def write_results(
    folder: Path, scores: Mapping[str, Score], stated: Mapping[str, Any]
) -> dict[str, Any]:
    """Write results.json.

    Args:
        folder: Where to.
        scores: By name.
        stated: All that was measured.

    Returns:
        The content of the file.
    """
    result = {
        "metrics": {name: asdict(score) for name, score in scores.items()},
        **stated,
        "versions": {name: version(name) for name in ("ddpm_lightning", "torch")},
    }
    write_json(folder / "results.json", result)
    return result


def table(scores: Mapping[str, Score]) -> str:
    """Lay out scores as text, a line each: the number ± its standard error, and the floor."""
    width = max(map(len, scores))
    numbers = {name: _number(score) for name, score in scores.items()}
    column = max(map(len, numbers.values()))
    lines = []
    for name, score in scores.items():
        floor = "" if score.floor is None else f"real images: {score.floor:.4g}"
        lines.append(f"  {name:{width}}  {numbers[name]:{column}}   {floor}".rstrip())
    return "\n".join(lines)


def _number(score: Score) -> str:
    spread = "" if score.spread is None else f" (spread {score.spread:.2g})"
    return with_error(score.value, score.error) + spread


def sweep_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Lay out a sweep as text, a line a combination.

    Args:
        rows: ``curve``, ``evaluations`` and ``metrics`` of each.
    """
    names = list(rows[0]["metrics"])
    width = max(len(row["curve"]) for row in rows)
    lines = [f"{'':{width}}  evaluations" + "".join(f"  {name:>16}" for name in names)]
    for row in rows:
        scores = [row["metrics"][name] for name in names]
        cells = "".join(f"  {with_error(s['value'], s['error']):>16}" for s in scores)
        lines.append(f"{row['curve']:{width}}  {row['evaluations']:>11}{cells}")
    return "\n".join(lines)
