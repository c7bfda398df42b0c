"""Whether a checkpoint's training state fits the run that is to go on with it.

Torch and Lightning restore what they find and start anew with what they do not: an optimizer
without its moments trains on, as if nothing were missing. So everything is compared first with
what this run would save: loops, optimizer, learning rate schedule, callbacks and timesteps.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from lightning.pytorch.core.optimizer import _init_optimizers_and_lr_schedulers
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import TypedDict

from ddpm_lightning.checkpoint import KEY
from ddpm_lightning.checkpoint_structure import check_weights
from ddpm_lightning.errors import InputError
from ddpm_lightning.integrity import walk
from ddpm_lightning.typed import check_typed


class Group(TypedDict):
    """A group of parameters, by their numbers; its settings depend on the optimizer."""

    params: list[int]


class OptimizerState(TypedDict):
    """The state of an optimizer: of each parameter by its number, and its groups."""

    state: dict[int, dict[str, Any]]
    param_groups: list[Group]


class TrainingState(TypedDict):
    """What Lightning adds to the weights, where a run is to go on."""

    loops: dict[str, Any]
    optimizer_states: list[OptimizerState]
    lr_schedulers: list[dict[str, Any]]


class Callbacks(TypedDict, total=False):
    """The callbacks' states, which are there if a callback has one."""

    callbacks: dict[str, Any]


def check_training_state(checkpoint: dict[str, Any], module: Any) -> None:
    """Raise InputError unless a module's trainer can go on with a checkpoint exactly.

    Args:
        checkpoint: The content, in the current format.
        module: The module, attached to the trainer that fits it.
    """
    trainer = module.trainer
    check_typed(checkpoint, TrainingState, "the checkpoint")
    check_typed(checkpoint, Callbacks, "the checkpoint")
    check_loops(checkpoint, trainer)
    if "state_dict" in checkpoint:  # else the strategy has loaded it
        check_weights(checkpoint["state_dict"], module)
    optimizers, schedules = trainer.strategy.optimizers, trainer.strategy.lr_scheduler_configs
    if not optimizers:  # most strategies restore before they set optimizers up
        optimizers, schedules = _init_optimizers_and_lr_schedulers(module)
    states, wanted = checkpoint["optimizer_states"], len(optimizers)
    if len(states) != wanted:
        raise InputError(f"the checkpoint has {len(states)} states of optimizers, not {wanted}")
    skipped = checkpoint[KEY].get("skipped", {}).get("total", 0)
    for state, optimizer in zip(states, optimizers, strict=True):
        check_optimizer_state(state, optimizer)
        if checkpoint["global_step"] > skipped:
            _check_moments(state, optimizer, module, checkpoint.get("state_dict", {}))
    states = checkpoint["lr_schedulers"]
    if len(states) != len(schedules):
        raise InputError(
            f"the checkpoint has the states of {len(states)} learning rate schedules, the run has "
            f"{len(schedules)}; resume with those that it was trained with"
        )
    for state, schedule in zip(states, schedules, strict=True):
        check_like(state, schedule.scheduler.state_dict(), "the learning rate schedule")
    for callback in trainer.callbacks:
        state = checkpoint.get("callbacks", {}).get(callback.state_key)
        known = type(callback).__module__.startswith(("lightning.", "ddpm_lightning."))
        # A callback of the user's own may restore what an earlier version of it has saved.
        if known and state is not None and (own := callback.state_dict()):
            check_like(state, own, f"the state of {type(callback).__name__}")
    _check_timesteps(checkpoint, module)


def check_loops(checkpoint: dict[str, Any], trainer: Any) -> None:
    """Raise InputError unless a checkpoint's loops, if any, count what this trainer's do."""
    loops = checkpoint.get("loops")
    if loops is None:
        return
    check_typed(loops, dict[str, Any], "loops")
    for name in ("fit_loop", "validate_loop", "test_loop", "predict_loop"):
        own = getattr(trainer, name).state_dict()
        own["state_dict"].pop("combined_loader", None)  # of a save before the first batch, none
        check_like(loops.get(name), own, f"loops[{name!r}]")
    for where, node in walk(loops):
        counts = "progress" in where and not isinstance(node, dict | bool)
        if counts and (type(node) is not int or not 0 <= node < 2**53):
            raise InputError(f"loops{where} is {node!r:.40}, not a number of batches or steps")
    fit = loops["fit_loop"]
    steps = fit["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"]
    if steps["completed"] != checkpoint["global_step"]:
        raise InputError(
            f"the checkpoint's loops made {steps['completed']} steps, but it is one of step "
            f"{checkpoint['global_step']}"
        )
    loaders = fit["state_dict"].get("combined_loader", [])
    check_typed(loaders, list[dict[str, Any]], "the position in the data")


def check_optimizer_state(state: dict[str, Any], optimizer: Optimizer) -> None:
    """Raise InputError unless a state has the groups, parameters and settings of an optimizer."""
    groups, own = state["param_groups"], optimizer.state_dict()["param_groups"]
    if len(groups) != len(own):
        raise InputError(
            f"the checkpoint's optimizer has {len(groups)} groups of parameters, not {len(own)}; "
            "resume with the configure_optimizers it was trained with"
        )
    for k, (group, ours) in enumerate(zip(groups, own, strict=True)):
        where = f"group {k} of the checkpoint's optimizer"
        if group["params"] != ours["params"]:
            count = len(ours["params"])
            raise InputError(f"{where} does not list the {count} parameters of this run's")
        # Flags and None are left out, because torch adds those that a file does not have.
        numbers = {
            key: value
            for key, value in ours.items()
            if key != "params" and value is not None and not isinstance(value, bool)
        }
        check_like(group, numbers, where)
        flags = {k: v for k, v in ours.items() if isinstance(v, bool) and group.get(k) is not None}
        check_like(group, flags, where)
    if strange := state["state"].keys() - {number for group in own for number in group["params"]}:
        raise InputError(f"the checkpoint's optimizer has a state of no parameter: {min(strange)}")


def _check_moments(
    state: dict[str, Any], optimizer: Optimizer, module: nn.Module, weights: dict[str, Tensor]
) -> None:
    """Raise InputError unless every parameter has the moments that its optimizer keeps."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    number, none_at_all = 0, not state["state"]
    for group in optimizer.param_groups:
        kept: dict[int, dict[str, Any] | None] = {}
        for parameter in group["params"]:
            if parameter.ndim not in kept:
                kept[parameter.ndim] = _state_after_a_step(optimizer, group, parameter.ndim)
            expected, found = kept[parameter.ndim], state["state"].get(number)
            name, number = names.get(parameter, str(number)), number + 1
            if expected is None or (not expected and not found):
                continue
            where = f"the state of {name} in the checkpoint's optimizer"
            if found is None:
                trained = none_at_all or _was_trained(name, weights)
                if parameter.requires_grad and trained:
                    raise InputError(f"{where} is missing; nothing can go on exactly without it")
                continue
            for key, one in expected.items():
                if key not in found:
                    raise InputError(f"{where} lacks {key}")
                shape = parameter.shape if _shape(one) == _shape_of(parameter.ndim) else None
                _check_moment(found[key], one, shape, f"{where}: {key}")


def _check_moment(found: Any, like: Any, shape: torch.Size | None, where: str) -> None:
    """Hold one entry of a parameter's state against that of a new one; shape: the parameter's."""
    if shape is None and _shape(like) != torch.Size([]):
        return  # a shape of its own, e.g. factored moments; or no tensor yet
    if isinstance(found, int | float) and not isinstance(found, bool) and shape is None:
        return  # earlier torch counts steps without a tensor
    wanted = torch.Size([]) if shape is None else shape
    if not isinstance(found, Tensor) or found.shape != wanted:
        raise InputError(f"{where} is no tensor of the shape {list(wanted)}")
    if found.is_floating_point() != like.is_floating_point():
        raise InputError(f"{where} is {found.dtype}")


def _state_after_a_step(
    optimizer: Optimizer, group: dict[str, Any], ndim: int
) -> dict[str, Any] | None:
    """What an optimizer keeps for a parameter of so many dimensions; None: it does not tell."""
    taken = inspect.signature(type(optimizer)).parameters  # not all defaults are arguments
    settings = {key: value for key, value in group.items() if key in taken and key != "params"}
    parameter = nn.Parameter(torch.ones(_shape_of(ndim)))
    parameter.grad = torch.ones_like(parameter)
    try:
        probe = type(optimizer)([{**group, "params": [parameter]}], **settings)
        probe.step()
    except Exception:  # an optimizer that is built otherwise, or works on its device alone
        return None
    return dict(probe.state[parameter])


def _shape_of(ndim: int) -> torch.Size:
    """A shape whose sides differ, so that a state of the same shape is one by the value."""
    return torch.Size(range(2, 2 + ndim))


def _shape(value: Any) -> torch.Size | None:
    return value.shape if isinstance(value, Tensor) else None


def _was_trained(name: str, weights: dict[str, Tensor]) -> bool:
    """Whether a weight has moved away from its average, which begins as its copy."""
    weight, average = weights.get(name), weights.get(f"ema.{name}")
    if weight is None or average is None:
        return True
    return not torch.equal(weight, average.to(weight.dtype))  # which is kept in float32


def _check_timesteps(checkpoint: dict[str, Any], module: Any) -> None:
    own = module.own_state().get("timesteps", {})
    stated = checkpoint["hyper_parameters"].get("timesteps")
    if stated != module.hparams.get("timesteps") or not own:
        return  # another distribution begins anew
    state = checkpoint[KEY].get("timesteps", {})
    check_typed(state, dict[str, Tensor], "the state of the timesteps")
    if missing := sorted(own.keys() - state.keys()):
        raise InputError(f"the state of the timesteps lacks {', '.join(missing)}")
    for key, tensor in own.items():
        if state[key].ndim != tensor.ndim:
            raise InputError(f"the state of the timesteps: {key} has {state[key].ndim} dimensions")


def check_like(value: Any, like: Any, where: str) -> None:
    """Raise InputError unless plain data has the keys and kinds of values of an example.

    Numbers may be whole or not, and tensors of one element. None in the example fits anything, and
    an empty list or dictionary one of any length.
    """
    if isinstance(like, dict):
        if not isinstance(value, dict):
            raise InputError(f"{where} is missing or no dictionary")
        for key, one in like.items():
            if isinstance(key, str):
                if key not in value:
                    raise InputError(f"{where} lacks {key}")
                check_like(value[key], one, f"{where}[{key!r}]")
    elif isinstance(like, bool | str):
        if type(value) is not type(like):
            raise InputError(f"{where} is {value!r:.60}, not like {like!r:.60}")
    elif isinstance(like, list | tuple):
        if not isinstance(value, list | tuple) or (like and len(value) != len(like)):
            raise InputError(f"{where} is {value!r:.60}, not a list of {len(like)}")
        for k, (one, other) in enumerate(zip(value, like, strict=False)):
            check_like(one, other, f"{where}[{k}]")
    elif isinstance(like, int | float) or _shape(like) == torch.Size([]):
        number = type(value) is float and value == value
        number |= type(value) is int and abs(value) < 2**64
        if not number and _shape(value) != torch.Size([]):
            raise InputError(f"{where} is {value!r:.60}, not a number")
    elif isinstance(like, Tensor) and _shape(value) != like.shape:
        raise InputError(f"{where} is no tensor of the shape {list(like.shape)}")
