"""Weights & Biases, with a server or offline."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from torch import Tensor
from typing_extensions import override

from ddpm_lightning.errors import InputError
from ddpm_lightning.images import to_pil
from ddpm_lightning.trackers.server import why_silent
from ddpm_lightning.trackers.tracker import Tracker

FLUSH = 0.2
"""Seconds after which W&B's own process writes what it was sent; its default is 15."""


class WandB(Tracker):
    """Pictures, animations, a table of samples, and checkpoints as artifacts.

    The run is W&B's under the same id after a resume; offline each process adds a folder in
    RUN/wandb, and ``wandb sync`` joins them.
    """

    package = "wandb"
    local = ("save_dir", "dir")

    @classmethod
    @override
    def arguments(cls, root: str, given: dict[str, Any], run_id: str | None) -> dict[str, Any]:
        own = {} if {"save_dir", "dir"} & given.keys() else {"save_dir": root}
        if run_id and not {"id", "version"} & given.keys():
            own["id"] = run_id
        if "WANDB_PROJECT" not in os.environ:
            own["project"] = "ddpm_lightning"
        return own | {"name": Path(root).name}

    @override
    def check(self) -> None:
        import wandb

        if self._is_offline():
            return
        if not wandb.setup().settings.api_key and not wandb.api.api_key:
            raise InputError(
                "WandbLogger has no API key: run `wandb login`, or log into the run folder with "
                "--trainer.logger.offline true"
            )
        address = self._own_setting("base_url") or wandb.setup().settings.base_url
        if reason := why_silent(address):
            raise InputError(
                f"no W&B server answers at {address} ({reason}); set WANDB_BASE_URL, or log into "
                "the run folder with --trainer.logger.offline true"
            )

    @override
    def begin(self, step: int | None, command: str = "fit") -> None:
        """Have W&B write often, so that a kill takes nothing that was logged before a save."""
        settings = self.logger._wandb_init.get("settings") or {}
        if isinstance(settings, dict):
            flush = {"x_transaction_log_flush_interval": FLUSH}
            self.logger._wandb_init["settings"] = flush | settings

    @override
    def run_id(self) -> str | None:
        return self.logger.experiment.id

    @override
    def show(self, tag: str, file: Path, step: int) -> None:
        import wandb

        kind: Any = file.suffix[1:]
        media = wandb.Image(str(file)) if kind == "png" else wandb.Video(str(file), format=kind)
        self.logger.log_metrics({tag: media}, step)

    @override
    def samples(self, tag: str, images: Tensor, labels: Tensor, step: int) -> None:
        import wandb

        table = wandb.Table(["step", "class", "sample", "image"])
        for i in labels.argsort(stable=True).tolist():
            table.add_data(step, int(labels[i]), i, wandb.Image(to_pil(images[i])))
        self.logger.log_metrics({tag: table}, step)

    @override
    def checkpoint(self, path: Path, step: int, last: bool) -> None:
        import wandb

        asked = self.logger._log_model
        if asked == "all" or (asked and last):
            artifact = wandb.Artifact(f"model-{self.run_id()}", "model", metadata={"step": step})
            artifact.add_file(str(path), policy="mutable")
            self.logger.experiment.log_artifact(artifact, aliases=["latest", f"step_{step}"])

    @override
    def flush(self) -> None:
        super().flush()
        self.logger.experiment.status()  # answers when everything before has arrived there
        time.sleep(1.5 * FLUSH)

    @override
    def where(self) -> str:
        run = self.logger.experiment
        if not self._is_offline():
            return str(run.url)
        return f"wandb sync {Path(run.dir).parents[1] / f'offline-run-*-{run.id}'}"

    def _is_offline(self) -> bool:
        modes = {os.environ.get("WANDB_MODE", self.logger._wandb_init.get("mode"))}
        modes.add(self._own_setting("mode"))
        return self.logger._offline or not modes.isdisjoint(("offline", "dryrun", "disabled"))

    def _own_setting(self, name: str) -> Any:
        """A setting of W&B that the logger was given, as a dictionary or as W&B's Settings."""
        settings = self.logger._wandb_init.get("settings") or {}
        return settings.get(name) if isinstance(settings, dict) else getattr(settings, name, None)
