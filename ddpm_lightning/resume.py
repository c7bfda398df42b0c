"""What a resumed run may change, and what it may not."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from ddpm_lightning.checkpoints import KEY
from ddpm_lightning.configurable import Configurable
from ddpm_lightning.errors import InputError

PLACES = ("root", "download", "predict_n")
"""Arguments of data that change no batch of training."""


def describe_run(trainer: Trainer) -> dict[str, Any]:
    """State what a resumed run is held against: the data, and what steps the weights."""
    stated: dict[str, Any] = {"data": _data(trainer)}
    if trainer.optimizers:
        configs = trainer.lr_scheduler_configs
        schedule: Any = configs[0].scheduler if configs else None
        stated["optimization"] = describe_optimization(trainer.optimizers[0], schedule)
    return stated


def check_run(checkpoint: dict[str, Any], trainer: Trainer) -> None:
    """Raise InputError if a run cannot go on from a checkpoint; warn where it changes.

    Args:
        checkpoint: As read from disk.
        trainer: That of the resumed run.
    """
    check_position(checkpoint, trainer.accumulate_grad_batches)
    check_data(checkpoint[KEY]["data"], _data(trainer))


def check_position(checkpoint: dict[str, Any], accumulate: int) -> None:
    """Raise InputError if the checkpoint stands within an optimizer step of so many micro-batches.

    Args:
        checkpoint: As read from disk.
        accumulate: Micro-batches of an optimizer step in the resumed run.
    """
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    seen = progress["current"]["ready"]
    if seen % accumulate:
        raise InputError(
            f"the checkpoint stands after {seen} micro-batches, no whole number of steps with "
            f"accumulate_grad_batches {accumulate}; resume with the number it was trained with"
        )


def check_data(stored: dict[str, Any] | None, data: dict[str, Any] | None) -> None:
    """Refuse another batch size, and warn of other data than the run began with.

    Noise and data order count images, so steps of another size would see both twice.

    Args:
        stored: Description of the data in the checkpoint, or None.
        data: That of the resumed run, or None.

    Raises:
        InputError: The images per optimizer step differ.
    """
    if stored is None or data is None:
        return
    before, now = _flat(stored), _flat(data)
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if old == new or key.rpartition(".")[2] in PLACES:
            continue
        if key.endswith("global_batch_size"):
            raise InputError(
                f"the checkpoint was trained with data.{key} {old}, not {new}: noise and data "
                f"order count images; resume with {old}, or start a new run"
            )
        warnings.warn(f"resumed on other data: data.{key} is {new}, was {old}", stacklevel=2)


def describe_optimization(
    optimizer: torch.optim.Optimizer, schedule: LRScheduler | None
) -> dict[str, str]:
    """Name the classes whose state a checkpoint holds."""
    return {
        "optimizer": type(optimizer).__name__,
        "lr_schedule": "none" if schedule is None else _name(schedule),
    }


def check_optimization(
    stored: dict[str, str],
    states: list[dict[str, Any]],
    optimizer: torch.optim.Optimizer,
    schedule: LRScheduler | None,
) -> None:
    """Refuse an optimizer or a schedule that cannot take up where the checkpoint stands.

    Args:
        stored: :func:`describe_optimization` of the run that wrote the checkpoint.
        states: States of its learning rate schedules.
        optimizer: That of the resumed run.
        schedule: That of the resumed run.

    Raises:
        InputError: A class or a setting of the schedule differs.
    """
    for what, name in describe_optimization(optimizer, schedule).items():
        if stored.get(what, name) != name:
            raise InputError(
                f"the checkpoint was trained with {what} {stored[what]}, whose state does not fit "
                f"{name}; resume with {stored[what]}, or start a new run"
            )
    if schedule is None or not states:
        return
    before, now = _settings(states[0]), _settings(schedule.state_dict())
    for key, new in now.items():
        if key in before and before[key] != new:
            raise InputError(
                f"the checkpoint's learning rate schedule has {key} {before[key]}, not {new}; "
                f"resume with {before[key]}, or start a new run"
            )


def apply_settings(trainer: Trainer) -> None:
    """Let the optimizer's settings hold that this run states, whatever a checkpoint brought.

    A restored optimizer has the checkpoint's learning rate, betas and so on in its state.
    """
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            for key, wanted in optimizer.defaults.items():
                held: Any = group.get(key)
                if key == "lr":
                    held = group.get("initial_lr", held)  # before a schedule changed it
                if not _is_number(wanted) or _same(wanted, held):
                    continue
                if key == "lr":
                    _rescale(trainer, group, float(wanted) / float(held))
                    group["initial_lr" if "initial_lr" in group else "lr"] = wanted
                else:
                    group[key] = wanted
                if trainer.is_global_zero:
                    print(f"from here on: optimizer {key} {wanted}, was {held}")


def _data(trainer: Trainer) -> dict[str, Any] | None:
    data = getattr(trainer, "datamodule", None)
    return data.describe() if isinstance(data, Configurable) else None


def _rescale(trainer: Trainer, group: dict[str, Any], factor: float) -> None:
    group["lr"] = group["lr"] * factor
    for config in trainer.lr_scheduler_configs:
        schedule: Any = config.scheduler
        for part in (schedule, *getattr(schedule, "_schedulers", ())):
            if hasattr(part, "base_lrs"):
                part.base_lrs = [lr * factor for lr in part.base_lrs]


def _same(wanted: Any, held: Any) -> bool:
    if isinstance(wanted, tuple):
        return held is not None and tuple(held) == wanted
    return held is not None and bool(held == wanted)


def _is_number(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_number, value))
    return isinstance(value, int | float | Tensor) and not isinstance(value, bool)


def _name(schedule: LRScheduler) -> str:
    parts = getattr(schedule, "_schedulers", None) or [schedule]
    return " then ".join(type(part).__name__ for part in parts)


def _settings(state: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a schedule's state that do not change from step to step."""
    found: dict[str, Any] = {}
    for key, value in state.items():
        if key == "_schedulers":
            for part in value:
                found |= _settings(part)
        elif not key.startswith("_") and key != "last_epoch" and _is_number(value):
            found[key] = value
    return found


def _flat(description: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Arguments of a description by their path, those of descriptions within it included."""
    found: dict[str, Any] = {}
    for key, value in description.items():
        if key == "init_args":
            found |= _flat(value, prefix)
        elif isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found
