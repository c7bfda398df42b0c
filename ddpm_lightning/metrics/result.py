"""Results as JSON: one form for what training measures and what commands measure."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from types import NoneType
from typing import Any

from ddpm_lightning.errors import InputError
from ddpm_lightning.files import json_value, write_json
from ddpm_lightning.metrics.metric import Score

FORMAT = 1
"""Number of this form."""

NAMES = ("results.json", "metrics.json")
"""Files with results: of a command, of a run."""

NEEDED: dict[str, tuple[type, ...]] = {
    "step": (int, NoneType),
    "metric": (str,),
    "value": (float, int, NoneType),
    "standard_error": (float, int, NoneType),
    "smaller_is_better": (bool,),
    "samples": (dict,),
}
"""What every record has, and its types."""

FOUND = ("step", "value", "standard_error", "spread", "left_out", "parts", "floor", "versions")
"""What a measurement found; all else in a record says what was measured."""


@dataclass(frozen=True)
class Result:
    """A score of this name, and all that was measured, as plain data.

    ``samples`` say how what was measured came about (n, checkpoint, sampler, …); the reference has
    the sha256 of the real data, the extractor that of its weights, where there are any; step
    counts the optimizer steps behind the weights.
    """

    metric: str
    score: Score
    samples: dict[str, Any]
    reference: dict[str, Any] | None = None
    extractor: dict[str, Any] | None = None
    step: int | None = None

    def record(self) -> dict[str, Any]:
        """State it as plain data; a number that is not known or not finite is null."""
        score = asdict(self.score)
        score.pop("alias")
        for name in ("value", "standard_error", "spread"):
            score[name] = _known(score[name])
        if self.score.floor is not None:
            score["floor"]["value"] = _known(self.score.floor.value)
        record = {
            "format": FORMAT,
            "step": self.step,
            "metric": self.metric,
            **score,
            "samples": self.samples,
            "reference": self.reference,
            "extractor": self.extractor,
            "versions": {name: version(name) for name in ("ddpm_lightning", "torch")},
        }
        return dict(json_value(record))


def write_results(path: Path, results: Sequence[Result]) -> list[dict[str, Any]]:
    """Write results as a JSON list; return the records in it."""
    records = [result.record() for result in results]
    write_json(path, records)
    return records


def append_result(path: Path, result: Result, fitting: bool = False) -> None:
    """Add a result to a file, in place of the one of the same step and of what was measured alike.

    While ``fitting``, results of later steps go, too: a resumed run measures them anew.

    Raises InputError: The file holds something else.
    """
    record = result.record()
    same = {key: value for key, value in record.items() if key not in FOUND}

    def superseded(old: dict[str, Any]) -> bool:
        if any(old.get(key) != value for key, value in same.items()):
            return False
        return old["step"] == record["step"] or (fitting and old["step"] > record["step"])

    records = read_records(path) if path.exists() else []
    write_json(path, [old for old in records if not superseded(old)] + [record])


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read the records of a file of results.

    Raises InputError: The file is damaged or holds something else.
    """
    try:
        records = json.loads(path.read_text("utf-8"))
        known = all(map(_is_record, records))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        known = False
    if not known or not isinstance(records, list):
        raise InputError(
            f"{path} is damaged, or holds no results of this version; mend or remove it, or name "
            "a results.json (a sweep has one in each of its folders) or a run's metrics.json"
        )
    return records


def _is_record(record: dict[str, Any]) -> bool:
    """Whether a record is of this form; what it lacks may raise KeyError."""
    left_out = record.get("left_out")
    return (
        record["format"] == FORMAT
        and all(isinstance(record[name], types) for name, types in NEEDED.items())
        and isinstance(left_out, list | NoneType)
        and all(isinstance(one, float | int) and math.isfinite(one) for one in left_out or ())
    )


def read_results(path: Path, step: int | None = None) -> dict[str, dict[str, Any]]:
    """Read the records of a file by metric: the first ones of a step.

    Args:
        path: A results.json, a metrics.json of a run, or the folder of either.
        step: Optimizer steps, of a run's metrics.json; default: the last of each metric.

    Raises:
        InputError: There is no such file, it holds something else, or nothing of this step.
    """
    if path.is_dir():
        path = next(filter(Path.is_file, (path / name for name in NAMES)), path / NAMES[0])
    if not path.is_file():
        raise InputError(f"no file {path}")
    records = read_records(path)
    step = step if path.name == NAMES[1] else None
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        best = found.get(record["metric"])
        wanted = step is None or record["step"] == step
        if wanted and (best is None or (record["step"] or 0) > (best["step"] or 0)):
            found[record["metric"]] = record
    if not found:
        raise InputError(f"{path} holds no result of step {step}")
    return found


def _known(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None
