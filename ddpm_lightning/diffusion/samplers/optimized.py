"""The levels that find_steps has found for a sampler, read from their file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typing_extensions import override

from ddpm_lightning.configurable import Configurable
from ddpm_lightning.diffusion.levels import Schedule
from ddpm_lightning.diffusion.samplers.spacings import Levels, Spacing
from ddpm_lightning.errors import InputError
from ddpm_lightning.files import json_value

FIND = "find them: python -m ddpm_lightning find_steps --ckpt CHECKPOINT --sampler"


class OptimizedSpacing(Spacing):
    """The levels that find_steps has found for one sampler, schedule and number of steps.

    Another sampler, another setting of it but for ``clip``, another schedule or number of steps is
    refused. Another checkpoint of the same schedule, other guidance and other weights are
    accepted, though the levels may not be the best there.

    Args:
        table: The .json file that the command has written, or what it holds: the ``levels``, and
            the ``sampler`` and the ``schedule`` that they were found for, as plain data.

    Raises:
        InputError: The file is missing or holds something else.
    """

    def __init__(self, table: str | dict[str, Any]) -> None:
        found = _read(table) if isinstance(table, str) else table
        if not _is_table(found):
            raise InputError(
                f"OptimizedSpacing: {table!s:.80} holds no levels with their sampler and "
                f"schedule; {FIND} SAMPLER --sampler.steps STEPS"
            )
        kept = {name: found[name] for name in ("levels", "sampler", "schedule")}
        self.levels = Levels(kept["levels"])
        self.sampler, self.schedule = kept["sampler"], kept["schedule"]
        # A checkpoint holds the levels, so that it loads wherever the file is.
        self._arguments["table"] = kept

    @override
    def check_sampler(self, sampler: Configurable) -> None:
        if (asked := settings_of(sampler)) != self.sampler:
            raise InputError(
                f"OptimizedSpacing: the levels were found for {_words(self.sampler)}, not for "
                f"{_words(asked)}; {FIND} {type(sampler).__name__} "
                f"--sampler.steps {len(self.levels.levels) - 1}"
            )

    @property
    def _sampler_name(self) -> str:
        return str(self.sampler["class_path"]).rpartition(".")[2]

    @override
    def __call__(self, schedule: Schedule, steps: int | None) -> list[int]:
        if (asked := json_value(schedule.describe())) != self.schedule:
            raise InputError(
                f"OptimizedSpacing: the levels were found for the schedule "
                f"{_words(self.schedule)}, not for {_words(asked)}; {FIND} {self._sampler_name} "
                f"--sampler.steps {len(self.levels.levels) - 1}"
            )
        found = len(self.levels.levels) - 1
        if steps not in (None, found):
            raise InputError(
                f"OptimizedSpacing: the levels were found for {found} steps, not for {steps}; "
                f"give --sampler.steps {found}, or {FIND} {self._sampler_name} "
                f"--sampler.steps {steps}"
            )
        return self.levels(schedule, None)


def settings_of(sampler: Configurable) -> dict[str, Any]:
    """Describe a sampler without its levels, and without the clipping that the data decides."""
    return dict(json_value(sampler.describe(skip=("steps", "spacing", "clip"))))


def _words(description: dict[str, Any]) -> str:
    settings = ", ".join(f"{k}={v}" for k, v in description["init_args"].items() if v is not None)
    return f"{description['class_path'].rpartition('.')[2]}({settings})"


def _is_table(found: Any) -> bool:
    """Whether plain data is of the types that find_steps writes."""
    if not isinstance(found, dict) or not isinstance(found.get("levels"), list):
        return False
    whole = all(type(level) is int for level in found["levels"])  # and no bool
    return whole and all(_is_description(found.get(name)) for name in ("sampler", "schedule"))


def _is_description(part: Any) -> bool:
    return (
        isinstance(part, dict)
        and isinstance(part.get("class_path"), str)
        and isinstance(part.get("init_args"), dict)
    )


def _read(path: str) -> dict[str, Any]:
    try:
        return dict(json.loads(Path(path).read_text("utf-8")))
    except FileNotFoundError as error:
        raise InputError(
            f"OptimizedSpacing: there is no file {path}; {FIND} SAMPLER --sampler.steps STEPS"
        ) from error
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"OptimizedSpacing: {path} is no .json of find_steps: {error}") from error
