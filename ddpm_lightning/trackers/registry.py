"""Which tracker a logger has, and where loggers of a run write."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from pydoc import locate
from typing import Any

from lightning.pytorch.loggers import (
    CSVLogger,
    Logger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)

from ddpm_lightning.files import write_json
from ddpm_lightning.trackers.csv import CSV
from ddpm_lightning.trackers.mlflow import MLflow
from ddpm_lightning.trackers.tensorboard import TensorBoard
from ddpm_lightning.trackers.tracker import Tracker
from ddpm_lightning.trackers.wandb import WandB

TRACKERS: dict[type[Logger], type[Tracker]] = {
    TensorBoardLogger: TensorBoard,
    CSVLogger: CSV,
    WandbLogger: WandB,
    MLFlowLogger: MLflow,
}
"""The tracker of a logger class and its subclasses; add one for a logger of your own."""

RUNS = "trackers.json"
"""File in the run folder: by logger, the ids under which trackers keep the run."""


def tracker_class(logger_class: type) -> type[Tracker]:
    """Find the tracker of a logger class; one that is not in TRACKERS has the plain one."""
    return next((TRACKERS[one] for one in logger_class.__mro__ if one in TRACKERS), Tracker)


def in_run_folder(settings: list[dict[str, Any]], root: str) -> list[dict[str, Any]]:
    """Complete the settings of loggers, so that they write into the run folder.

    Args:
        settings: By logger ``class_path`` and ``init_args``. What is given there stays, but for
            null and Lightning's own defaults.
        root: The run folder, whose trackers.json has the ids of a resumed run.

    Raises:
        InputError: The package of a logger is not installed, or it cannot write where it should.
    """
    file = Path(root) / RUNS
    ids = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    placed = []
    for name, one in _numbered([one["class_path"] for one in settings]):
        setting = settings[one]
        cls: Any = locate(setting["class_path"])
        tracker = tracker_class(cls)
        tracker.check_package(cls.__name__)
        parameters = inspect.signature(cls).parameters
        given = {
            key: value
            for key, value in (setting.get("init_args") or {}).items()
            if value is not None and (key not in parameters or value != parameters[key].default)
        }
        tracker.check_local(cls.__name__, given)
        own = tracker.arguments(root, given, ids.get(name))
        init_args = {**(setting.get("init_args") or {}), **own, **given}
        placed.append({**setting, "init_args": init_args})
    return placed


def remember_runs(trackers: list[Tracker], root: Path) -> None:
    """Keep the ids under which trackers have the run, for a resume."""
    found = dict(_ids(trackers))
    if found:
        write_json(root / RUNS, found)


def _ids(trackers: list[Tracker]) -> Iterator[tuple[str, str]]:
    for name, i in _numbered([type(one.logger).__name__ for one in trackers]):
        if run_id := trackers[i].run_id():
            yield name, run_id


def _numbered(paths: list[str]) -> Iterator[tuple[str, int]]:
    """Name loggers by their class, the second of a class with its number."""
    names = [path.rpartition(".")[2] for path in paths]
    for i, name in enumerate(names):
        before = names[:i].count(name)
        yield name + (f" {before + 1}" if before else ""), i
