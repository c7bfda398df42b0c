"""Which data set this is, wherever it lies."""

from __future__ import annotations

from typing import Any

from ddpm_lightning.configurable import Configurable

PASSING = ("root", "download", "global_batch_size", "predict_n", "flip")
"""Arguments that only say where the files are or how training batches are made."""


def identity(data: object) -> Any:
    """Describe a data set by what decides about its samples; None if it does not know itself."""
    return _stripped(data.describe()) if isinstance(data, Configurable) else None


def _stripped(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _stripped(part) for name, part in value.items() if name not in PASSING}
    return value
