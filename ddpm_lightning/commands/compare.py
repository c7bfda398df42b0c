"""The compare command."""

from __future__ import annotations

from pathlib import Path

from ddpm_lightning.evaluation.compare import compare_results
from ddpm_lightning.evaluation.table import Layout


def compare(first: Path, second: Path, step: int | None = None, table: Layout = "text") -> None:
    """Say which differences between two results are within the noise.

    The error of a difference is a paired one where both were drawn from the same noise.

    Args:
        first: A results.json, a run's metrics.json, or the folder of either.
        second: Another.
        step: Optimizer steps, of a run's metrics.json; null: the last.
        table: How the table is printed: text says what is within the noise; csv, latex and
            markdown are for a paper.

    Raises:
        InputError: A file holds no results, or they were measured in different ways.
    """
    print(compare_results(first, second, step, table))
