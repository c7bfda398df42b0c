"""Identity of a data set, independent of where its files are."""

from __future__ import annotations

from typing import Any

from ddpm_lightning.configurable import Configurable

PASSING = ("root", "download", "global_batch_size", "predict_n", "flip", "workers")
"""Arguments that do not change the stored samples of a data set."""


def identity(data: object) -> Any:
    """Describe a data set by the arguments that determine its samples; None: not Configurable."""
    return _stripped(data.describe()) if isinstance(data, Configurable) else None


def _stripped(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _stripped(part) for name, part in value.items() if name not in PASSING}
    return value
