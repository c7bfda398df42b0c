"""Numbers that a run has logged, read back from its metrics.csv or its TensorBoard events."""

from __future__ import annotations

import csv
from pathlib import Path

from ddpm_lightning.errors import InputError, nearest


def logged(run_folder: Path, tag: str) -> dict[int, float]:
    """Read the values of a tag by step, in order; of a step that was done twice, the later one.

    Raises InputError: The folder holds no such numbers.
    """
    if (run_folder / "metrics.csv").is_file():
        found = _of_csv(run_folder / "metrics.csv")
    elif any(run_folder.glob("events.out.tfevents.*")):
        found = _of_events(run_folder)
    else:
        raise InputError(
            f"{run_folder} has neither a metrics.csv nor TensorBoard's events; name the folder of "
            "a run, its --trainer.default_root_dir"
        )
    if tag not in found:
        shown = ", ".join(sorted(found)) or "nothing"
        raise InputError(f"{run_folder} has no {tag}{nearest(tag, found)}; it has {shown}")
    return dict(sorted(found[tag].items()))


def _of_csv(path: Path) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    with path.open(newline="", encoding="utf-8", errors="replace") as lines:
        for row in csv.DictReader(lines):
            step = row.get("step") or ""
            if not step.isdigit():  # a kill may have cut the last line
                continue
            for tag, value in row.items():
                number = _number(value)
                if tag not in ("step", "epoch", None) and number is not None:
                    found.setdefault(tag, {})[int(step)] = number
    return found


def _of_events(folder: Path) -> dict[str, dict[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), {"scalars": 0})  # 0: all of them
    events.Reload()
    return {
        tag: {event.step: event.value for event in events.Scalars(tag)}
        for tag in events.Tags()["scalars"]
    }


def _number(value: str | None) -> float | None:
    """The number in a cell; None where it is empty, or the path of a picture."""
    try:
        return float(value or "")
    except ValueError:
        return None
