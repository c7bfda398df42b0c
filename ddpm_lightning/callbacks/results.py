"""Where results of a run go: the loggers, ``monitor:`` and metrics.json in the run folder."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning.pytorch import Trainer

from ddpm_lightning.metrics.result import Result, append_result


def report(trainer: Trainer, result: Result, tag: str, alias: str) -> None:
    """Log a result and keep it in metrics.json. Call on every process.

    Args:
        trainer: The trainer, while fitting.
        result: The result, with its step.
        tag: Name that says what was measured.
        alias: Stable name, for ``monitor:``.
    """
    value = result.score.value
    # Not module.log: Lightning forbids it in on_train_end, where these are measured.
    trainer.callback_metrics[alias] = torch.tensor(value)
    for logger in trainer.loggers:
        logger.log_metrics({tag: value, alias: value}, result.step)
    if trainer.is_global_zero:
        append_result(metrics_file(trainer), result, fitting=True)


def metrics_file(trainer: Trainer) -> Path:
    """The file of a run's results."""
    return Path(trainer.default_root_dir) / "metrics.json"
