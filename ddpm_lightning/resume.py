"""Resuming a run: which settings may change, and which must be those of the checkpoint.

The order of events: (1) the command line compares the config with the checkpoint's description;
(2) Lightning builds the optimizer (describe_optimization) and restores module, optimizer, schedule
and loops, in an order that depends on the strategy; (3) on_load_checkpoint compares data and
accumulation (check_run) and, as soon as both descriptions exist, optimizer and schedule
(check_optimization); (4) on_train_start puts Lightning's loops behind the saved step
(continue_after_step) and applies changed settings of the optimizer (apply_settings).

A save is the last act of its step (RunCheckpoint), so nothing of it is left to be done.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.loops.fit_loop import RestartStage
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from ddpm_lightning.checkpoint import KEY
from ddpm_lightning.configurable import Configurable
from ddpm_lightning.data.data_module import PLACES
from ddpm_lightning.errors import InputError

MEANS = ("activation_checkpointing",)
"""Arguments of parts of a model that say how it is computed, not what: a resumed run may change
them, e.g. after memory has run out."""


def is_resume(trainer: Trainer) -> bool:
    """Whether a checkpoint is read for a run that goes on.

    It may be read for other than training, or by Lightning's LR finder, which returns to the
    weights that it began with.
    """
    searches = any("lr_finder" in type(one).__module__ for one in trainer.callbacks)  # type: ignore[attr-defined]
    return trainer.state.fn == TrainerFn.FITTING and not searches


def describe_run(trainer: Trainer) -> dict[str, Any]:
    """Describe what a resumed run is compared with, besides the optimizer."""
    return {
        "data": _data(trainer),
        "accumulate": trainer.accumulate_grad_batches,
        "precision": str(trainer.precision),
    }


def check_run(checkpoint: dict[str, Any], trainer: Trainer) -> None:
    """Raise InputError if a run cannot resume from a checkpoint; warn if its data changed."""
    if not {"loops", "optimizer_states", "lr_schedulers"} <= checkpoint.keys():
        raise InputError(
            "the checkpoint holds weights only, so no run can resume from it; start a new one "
            "from them by --init_from in place of --ckpt_path"
        )
    own, accumulate = checkpoint[KEY], trainer.accumulate_grad_batches
    if own.get("accumulate", accumulate) != accumulate:
        check_position(checkpoint, accumulate)
    check_data(own["data"], getattr(trainer, "datamodule", None))
    tell_change(trainer, "precision", own.get("precision"), str(trainer.precision))


def tell_change(trainer: Trainer, what: str, before: Any, now: Any) -> None:
    """Print a setting that a resumed run changes; None: the checkpoint does not state it."""
    if before not in (None, now) and trainer.is_global_zero:
        print(f"from here on: {what} {now}, was {before}")


def forget_time(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Drop the time that earlier processes took, for max_time limits each process of a run."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Timer):
            checkpoint.get("callbacks", {}).pop(callback.state_key, None)


def check_position(checkpoint: dict[str, Any], accumulate: int) -> None:
    """Raise InputError unless a multiple of ``accumulate`` micro-batches was trained on."""
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    seen = progress["current"]["ready"]
    if seen % accumulate:
        raise InputError(
            f"the checkpoint was saved after {seen} micro-batches, no whole number of steps with "
            f"accumulate_grad_batches {accumulate}; resume with the number it was trained with"
        )


def check_data(stored: dict[str, Any] | None, data: object) -> None:
    """Raise InputError for another global batch size; warn of any other change of the data.

    Noise and data order are keyed by the sample's position in the run, and steps of another size
    would repeat positions. ``stored`` is the description before, if any, ``data`` the module now.
    """
    if stored is None or not isinstance(data, Configurable):
        return
    before, now = _flat(stored), _flat(data.describe())
    places = getattr(data, "places", PLACES)
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if old == new or key.rpartition(".")[2] in places:
            continue
        if key.endswith("global_batch_size"):
            raise InputError(
                f"the checkpoint was trained with data.{key} {old}, not {new}: noise and data "
                f"order count images; resume with {old}, or start a new run"
            )
        warnings.warn(f"resumed on other data: data.{key} is {new}, was {old}", stacklevel=2)


def describe_optimization(
    optimizer: torch.optim.Optimizer, schedule: LRScheduler | None
) -> dict[str, Any]:
    """Describe a new optimizer and its schedule: class names, and their numbers."""
    return {
        "optimizer": type(optimizer).__name__,
        "groups": [_group_numbers(group) for group in optimizer.param_groups],
        "lr_schedule": "none" if schedule is None else _name(schedule),
        "schedule": {} if schedule is None else _schedule_numbers(schedule.state_dict()),
    }


def check_optimization(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise InputError unless optimizer and schedule can continue from the checkpoint's state."""
    for what in ("optimizer", "lr_schedule"):
        if before[what] != now[what]:
            raise InputError(
                f"the checkpoint was trained with {what} {before[what]}, whose state does not fit "
                f"{now[what]}; resume with {before[what]}, or start a new run"
            )
    if len(before["groups"]) != len(now["groups"]):
        raise InputError(
            f"the checkpoint's optimizer has {len(before['groups'])} groups of parameters, not "
            f"{len(now['groups'])}; resume with the configure_optimizers it was trained with"
        )
    for key, new in now["schedule"].items():
        old = before["schedule"].get(key, new)
        if old != new:
            raise InputError(
                f"the checkpoint's learning rate schedule has {key} {old}, not {new}; resume with "
                f"{old}, or start a new run"
            )


def apply_settings(trainer: Trainer, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Apply settings of the optimizer that the resumed run changes, e.g. the learning rate.

    Needed because restoring brings the checkpoint's settings back. A learning rate that a
    schedule has changed is scaled by the ratio of the new setting to the old.
    """
    for i, (old, new) in enumerate(zip(before["groups"], now["groups"], strict=True)):
        group = trainer.optimizers[0].param_groups[i]
        for key, wanted in new.items():
            if old.get(key, wanted) == wanted:
                continue
            if key == "lr":
                _rescale(trainer, i, old[key], wanted)
            else:
                group[key] = tuple(wanted) if isinstance(wanted, list) else wanted
            tell_change(trainer, f"optimizer {key}", old[key], wanted)


def continue_after_step(trainer: Trainer) -> None:
    """Put Lightning's loops behind the optimizer step that a checkpoint was saved after.

    Lightning guesses from its counters in which hook a checkpoint was saved, and not always right:
    after some it counts the step twice for the loggers, counts one epoch too many, or draws one
    more micro-batch in an epoch that is finished.
    """
    fit, epoch = trainer.fit_loop, trainer.fit_loop.epoch_loop
    if not fit.is_resuming:
        return
    batches: Any = epoch.batch_progress
    epochs: Any = fit.epoch_progress
    _complete(batches.total, batches.total.ready)
    _complete(batches.current, batches.current.ready)
    ended = batches.is_last_batch or batches.current.ready >= trainer.num_training_batches
    for progress in (epochs.total, epochs.current):
        _complete(progress, progress.ready if ended else progress.ready - 1)
        progress.started = progress.ready
    epoch.reset_restart_stage()
    epoch.val_loop.batch_progress.reset()
    epoch._batches_that_stepped = trainer.global_step
    if ended:
        fit.reset_restart_stage()
        epoch.restarting = False
    else:
        fit._restart_stage = RestartStage.RESTARTED_MID_EPOCH
        epoch._batches_that_stepped -= 1  # to which reset() adds one


def _complete(progress: Any, count: int) -> None:
    """Let a counter say that so many are done, and nothing is under way."""
    progress.started = progress.processed = progress.completed = count


def _rescale(trainer: Trainer, i: int, lr: float, wanted: float) -> None:
    """Scale the learning rates of parameter group i, schedules included, by wanted / lr."""
    if lr == 0:
        raise InputError(
            f"the checkpoint was trained with learning rate 0, of which {wanted} is no multiple; "
            "start a new run"
        )
    group = trainer.optimizers[0].param_groups[i]
    for key in group.keys() & {"lr", "initial_lr"}:
        group[key] = group[key] * (wanted / lr)
    for config in trainer.lr_scheduler_configs:
        schedule: Any = config.scheduler
        for part in (schedule, *getattr(schedule, "_schedulers", ())):
            if hasattr(part, "base_lrs"):
                part.base_lrs[i] = part.base_lrs[i] * (wanted / lr)


def _data(trainer: Trainer) -> dict[str, Any] | None:
    data = getattr(trainer, "datamodule", None)
    return data.describe() if isinstance(data, Configurable) else None


def _group_numbers(group: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a parameter group, with the initial learning rate of its schedule."""
    found = _numbers(group)
    found["lr"] = found.pop("initial_lr", found["lr"])
    return found


def _numbers(values: dict[str, Any]) -> dict[str, Any]:
    """The entries that are numbers or lists of numbers, as plain data."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        if isinstance(value, int | float) and not isinstance(value, bool):
            found[key] = value
        elif isinstance(value, list | tuple) and all(type(v) in (int, float) for v in value):
            found[key] = list(value)
    return found


def _name(schedule: LRScheduler) -> str:
    parts = getattr(schedule, "_schedulers", None) or [schedule]
    return " then ".join(type(part).__name__ for part in parts)


def _schedule_numbers(state: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a schedule, without the base learning rates."""
    found: dict[str, Any] = {}
    for part in state.get("_schedulers", ()):
        found |= _schedule_numbers(part)
    own = {key: value for key, value in state.items() if not key.startswith("_")}
    return found | {key: v for key, v in _numbers(own).items() if key != "base_lrs"}


def _flat(description: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a description, with nested ones, to {dotted argument name: value}."""
    found: dict[str, Any] = {}
    for key, value in description.items():
        if key == "init_args":
            found |= _flat(value, prefix)
        elif isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found
