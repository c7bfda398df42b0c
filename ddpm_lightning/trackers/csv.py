"""CSV: metrics.csv in the run folder, a column a tag, and the paths of pictures."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path
from typing import Any

from typing_extensions import override

from ddpm_lightning.trackers.tracker import Tracker


class CSV(Tracker):
    """Numbers by tag and step; a picture is the path of its file in the run folder."""

    @classmethod
    @override
    def arguments(cls, root: str, given: dict[str, Any], run_id: str | None) -> dict[str, Any]:
        return {} if "save_dir" in given else {"save_dir": root, "name": "", "version": ""}

    @override
    def begin(self, step: int | None) -> None:
        """Keep the lines up to the step, for Lightning's logger removes the file it finds."""
        file = self._file()
        rows: list[dict[str, Any]] = []
        if file.is_file():
            with file.open(newline="", encoding="utf-8") as lines:
                rows = list(csv.DictReader(lines))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Experiment logs directory")
            writer = self.logger.experiment
        writer.metrics = [row for row in rows if step is None or int(row["step"]) <= step]
        writer.save()

    @override
    def show(self, tag: str, file: Path, step: int) -> None:
        self.logger.log_metrics({tag: str(file.relative_to(self.root))}, step)

    @override
    def where(self) -> str:
        return str(self._file())

    def _file(self) -> Path:
        return Path(self.logger.log_dir) / "metrics.csv"
