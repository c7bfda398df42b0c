"""MLflow: a server, or a database in the run folder."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.logger import _flatten_dict
from PIL import Image
from typing_extensions import override

from ddpm_lightning.errors import InputError
from ddpm_lightning.trackers.server import why_silent
from ddpm_lightning.trackers.tracker import Tracker


class MLflow(Tracker):
    """Pictures by step, animations and checkpoints as artifacts, in the run of the same id."""

    package = "mlflow"
    local = ("save_dir",)

    @classmethod
    @override
    def arguments(cls, root: str, given: dict[str, Any], run_id: str | None) -> dict[str, Any]:
        own = {"experiment_name": "ddpm_lightning", "run_name": Path(root).name}
        if run_id and "run_id" not in given:
            own["run_id"] = run_id
        if not {"tracking_uri", "save_dir"} & given.keys() and not _address():
            own["tracking_uri"] = f"sqlite:///{Path(root) / 'mlflow.db'}"
            own["artifact_location"] = (Path(root).absolute() / "mlartifacts").as_uri()
        return own

    @override
    def check(self) -> None:
        uri = self.logger._tracking_uri
        if uri.startswith(("http:", "https:")) and (
            reason := why_silent(f"{uri.rstrip('/')}/health")
        ):
            raise InputError(
                f"no MLflow server answers at {uri} ({reason}); start it, or log into a database "
                "with --trainer.logger.tracking_uri sqlite:///FILE.db"
            )

    @override
    def run_id(self) -> str | None:
        return self.logger.run_id

    @override
    def hyperparameters(self, values: dict[str, Any], metrics: Sequence[str]) -> None:
        client, run_id = self.logger.experiment, self.logger.run_id
        client.update_run(run_id, status="RUNNING")  # where a resume finds it ended
        before = client.get_run(run_id).data.params
        flat = {name: str(value)[:250] for name, value in _flatten_dict(values).items()}
        self.logger.log_hyperparams({k: v for k, v in flat.items() if k not in before})
        for name, value in flat.items():  # MLflow refuses to change what a resumed run may
            if before.get(name, value) != value:
                client.set_tag(run_id, f"resumed.{name}", value)

    @override
    def show(self, tag: str, file: Path, step: int) -> None:
        client, run_id = self.logger.experiment, self.logger.run_id
        if file.suffix == ".png":
            with Image.open(file) as picture:
                client.log_image(
                    run_id, picture, key=re.sub(r"[^a-zA-Z0-9_/. -]", "-", tag), step=step
                )
        else:
            client.log_artifact(run_id, str(file), str(Path(tag).parent))

    @override
    def checkpoint(self, path: Path, step: int, last: bool) -> None:
        asked = self.logger._log_model
        if asked == "all" or (asked and last):
            self.logger.experiment.log_artifact(self.logger.run_id, str(path), "checkpoints")

    @override
    def where(self) -> str:
        uri = self.logger._tracking_uri
        is_address = uri.startswith(("http:", "https:"))
        return uri if is_address else f"mlflow ui --backend-store-uri {uri}"


def _address() -> str | None:
    return os.environ.get("MLFLOW_TRACKING_URI")
