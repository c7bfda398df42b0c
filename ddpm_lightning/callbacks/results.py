"""Where results go: the loggers, ``monitor:`` and metrics.json in the run folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from ddpm_lightning.files import write_json

RESULTS = (
    *("step", "value", "standard_error", "spread", "parts", "terms"),
    *("floor", "floor_n", "floor_reference_n"),
)
"""What a measurement found; all else in a result is a setting."""


def log_result(trainer: Trainer, tag: str, alias: str, value: float, step: int) -> None:
    """Hand a number to the loggers, and to ``monitor:`` under its alias. Call on every process.

    Args:
        trainer: The trainer.
        tag: Name that says what was measured.
        alias: Stable name.
        value: The number.
        step: Optimizer steps so far.
    """
    # Not by module.log, which has hooks where it may not be called: measurements come at the end
    # of training, and before it where a stop cut one off.
    trainer.callback_metrics[alias] = torch.tensor(value)
    for logger in trainer.loggers:
        logger.log_metrics({tag: value, alias: value}, step)


def append_result(folder: Path, result: dict[str, Any], fitting: bool = False) -> None:
    """Add a result to metrics.json, in place of the one of the same settings and step.

    Args:
        folder: The run folder.
        result: What was found and all that was measured, as plain data.
        fitting: While training, results of later steps go, too: a resumed run measures them anew.
    """
    path = folder / "metrics.json"
    results = json.loads(path.read_text()) if path.exists() else []
    settings = {key: value for key, value in result.items() if key not in RESULTS}

    def superseded(old: dict[str, Any]) -> bool:
        if {key: old.get(key) for key in settings} != settings:
            return False
        return old["step"] == result["step"] or (fitting and old["step"] > result["step"])

    write_json(path, [old for old in results if not superseded(old)] + [result])
