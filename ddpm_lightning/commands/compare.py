"""The compare command."""

from __future__ import annotations

from pathlib import Path

from ddpm_lightning.evaluation.compare import compare_results


def compare(first: Path, second: Path, step: int | None = None) -> None:
    """Say which differences between two results are within the noise.

    Args:
        first: A results.json, a run's metrics.json, or the folder of either.
        second: Another.
        step: Optimizer steps, of a run's metrics.json; null: the last.

    Raises:
        InputError: A file holds no results, or they were measured in different ways.
    """
    print(compare_results(first, second, step))
