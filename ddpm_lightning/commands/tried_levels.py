"""The errors of a search for levels, kept in a file, so that a stopped one goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ddpm_lightning.diffusion.levels import Schedule
from ddpm_lightning.diffusion.samplers import Sampler
from ddpm_lightning.diffusion.step_search import Error
from ddpm_lightning.errors import InputError
from ddpm_lightning.files import write_json


class TriedLevels:
    """An error that is taken once for each set of levels, by this search or by one before it.

    The search itself draws no random numbers, so one that goes on, on the same device, comes to
    the same levels.

    Args:
        error: The error of a sampler.
        schedule: The schedule that samplers walk.
        path: The file; removed by :meth:`forget`.
        settings: All that decides about the error but the levels, as plain data.

    Raises:
        InputError: The file is of other settings, or damaged.
    """

    def __init__(
        self, error: Error, schedule: Schedule, path: Path, settings: dict[str, Any]
    ) -> None:
        self.error, self.schedule = error, schedule
        self.path, self.settings = path, settings
        self.errors = self._read() if path.exists() else {}

    def __call__(self, sampler: Sampler) -> float:
        """The error of a sampler, written down when it is new."""
        levels = tuple(sampler.levels(self.schedule))
        if levels not in self.errors:
            self.errors[levels] = self.error(sampler)
            tries = [[list(levels), error] for levels, error in self.errors.items()]
            write_json(self.path, {"settings": self.settings, "tries": tries}, indent=None)
        return self.errors[levels]

    def forget(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)

    def _read(self) -> dict[tuple[int, ...], float]:
        try:
            found = json.loads(self.path.read_text("utf-8"), parse_constant=_no_number)
            settings = found["settings"]
            keys = {**self.settings, **settings}
            errors = {tuple(map(int, levels)): float(error) for levels, error in found["tries"]}
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise InputError(f"{self.path} is damaged ({error}); remove it") from error
        differing = [key for key in keys if settings.get(key) != self.settings.get(key)]
        if differing:
            raise InputError(
                f"{self.path} is of a stopped search with another {', '.join(differing)}; give "
                "the same command as then to go on with it, or remove the file"
            )
        return errors


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no distance")
