"""Where results of a run go: the loggers, ``monitor:`` and metrics.json in the run folder."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning.pytorch import Trainer
from tqdm.auto import tqdm

from ddpm_lightning.evaluation.report import with_error
from ddpm_lightning.metrics.result import Result, append_result


def report(trainer: Trainer, result: Result, how: str, alias: str, real: str) -> None:
    """Log a result, keep it in metrics.json and print it. Call on every process.

    Args:
        trainer: The trainer, while fitting.
        result: The result, with its step.
        how: Tag of the request for samples.
        alias: Stable name, for ``monitor:``.
        real: What the floor compares, in words.
    """
    name, score, n = result.metric, result.score, result.samples["n"]
    assert result.reference is not None
    tag = f"{name}/n{n}_{how}_{result.reference['split']}"
    # Not module.log: Lightning forbids it in on_train_end, where these are measured.
    trainer.callback_metrics[alias] = torch.tensor(score.value)
    for logger in trainer.loggers:
        logger.log_metrics({tag: score.value, alias: score.value}, result.step)
    if not trainer.is_global_zero:
        return
    append_result(metrics_file(trainer), result, fitting=True)
    number = with_error(score.value, score.standard_error)
    spread = "" if score.spread is None else f", spread {score.spread:.2g}"
    floor = "too few real ones for a floor"
    if score.floor is not None:
        floor = f"real ones: {score.floor.value:.4g}, {real}"
    tqdm.write(f"step {result.step}: {name} {number} (n={n}{spread}, {how}; {floor})")


def metrics_file(trainer: Trainer) -> Path:
    """The file of a run's results."""
    return Path(trainer.default_root_dir) / "metrics.json"
