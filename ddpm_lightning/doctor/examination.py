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
    "overfit one batch": overfits,
}


def examine(run: Run, checks: Iterable[str] = CHECKS) -> Iterator[Finding]:
    """Yield the findings of these checks; one that raises an error has failed."""
    for name in checks:
        try:
            finding = CHECKS[name](run)
        except Exception as error:  # out of memory, or a bug of one's own, is a finding, too
            kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
            finding = failed(kind + " ".join(str(error).split()))
        yield replace(finding, check=name)
