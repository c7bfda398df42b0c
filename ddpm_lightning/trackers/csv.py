"""CSV: metrics.csv in the run folder, a column a tag, and the paths of pictures."""

from __future__ import annotations

import csv
import os
import warnings
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.cloud_io import get_filesystem
from typing_extensions import override

from ddpm_lightning.trackers.address import check_address
from ddpm_lightning.trackers.tracker import Tracker


class CSV(Tracker):
    """Numbers by tag and step; a picture is the path of its file in the run folder."""

    @classmethod
    @override
    def arguments(cls, root: str, given: dict[str, Any], run_id: str | None) -> dict[str, Any]:
        return {} if "save_dir" in given else {"save_dir": root, "name": "", "version": ""}

    @override
    def check(self) -> None:
        check_address(str(self.logger.save_dir))

    @override
    def begin(self, step: int | None, command: str = "fit") -> None:
        """Keep the lines up to the step, for Lightning's logger removes the file it finds."""
        if command != "fit":  # which may be writing metrics.csv and hparams.yaml at this moment
            version = self.logger.version
            folder = version if isinstance(version, str) else f"version_{version}"
            self.logger._version = os.path.join(folder, command)
        file, files = self.where(), get_filesystem(self.logger.log_dir)
        before = f"{file}.before"
        if files.isfile(file) and not files.exists(before):
            files.mv(file, before)
        kept = [row for row in _rows(files, before) if step is None or _is_of(row, step)]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Experiment logs directory")
            writer = self.logger.experiment
        writer.metrics = kept
        writer.save()
        if files.exists(before):
            files.rm_file(before)

    @override
    def show(self, tag: str, file: Path, step: int) -> None:
        self.logger.log_metrics({tag: str(file.relative_to(self.root))}, step)

    @override
    def where(self) -> str:
        return os.path.join(self.logger.log_dir, "metrics.csv")


def _rows(files: Any, file: str) -> list[dict[str, Any]]:
    """Read the whole lines of a file; a kill may have cut the last one."""
    if not files.isfile(file):
        return []
    with files.open(file, "r", newline="", encoding="utf-8", errors="replace") as lines:
        return [row for row in csv.DictReader(lines) if (row.get("step") or "").isdigit()]


def _is_of(row: dict[str, Any], step: int) -> bool:
    """Whether a line was logged before the save of a step."""
    tags = [tag for tag, value in row.items() if tag not in ("step", "epoch", None) and value]
    of_next = all(tag.startswith("lr-") for tag in tags)  # LearningRateMonitor logs it ahead
    return int(row["step"]) < step or (int(row["step"]) == step and not of_next)
