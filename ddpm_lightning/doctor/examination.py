"""All checks, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from ddpm_lightning.doctor.data_checks import data_range, divisibility, label_ids, noise_of_ranks
from ddpm_lightning.doctor.finding import Finding, Run, failed
from ddpm_lightning.doctor.model_checks import dropout_off, ema_moves, overfits, terminal_snr
from ddpm_lightning.doctor.run_checks import (
    disk_room,
    forecast,
    loggers,
    metric_weights,
    run_folder,
)
from ddpm_lightning.errors import InputError

CHECKS: dict[str, Callable[[Run], Finding]] = {
    "data": data_range,
    "labels": label_ids,
    "noise at the last level": terminal_snr,
    "division of the batch": divisibility,
    "EMA": ema_moves,
    "dropout": dropout_off,
    "noise of the ranks": noise_of_ranks,
    "run folder": run_folder,
    "logger": loggers,
    "room on the disk": disk_room,
    "weights of the metrics": metric_weights,
    "forecast": forecast,
    "one batch learned by heart": overfits,
}


def examine(run: Run, checks: Iterable[str] = CHECKS) -> Iterator[Finding]:
    """Yield the findings of these checks; one that raises InputError has failed."""
    for name in checks:
        try:
            finding = CHECKS[name](run)
        except InputError as error:
            finding = failed(" ".join(str(error).split()))
        yield replace(finding, check=name)
