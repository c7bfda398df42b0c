"""Optimizer and learning rate, per optimizer step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, LearningRateFinder
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.optim import Adam, AdamW
from torch.optim.lr_scheduler import (
    LinearLR,
    LRScheduler,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
)

from ddpm_lightning.errors import InputError
from ddpm_lightning.networks.layers import ConditionEmbedding

Group = dict[str, Any]
"""A group of parameters with its settings, as torch's optimizers take them."""

NO_LR_FINDER = (
    "LearningRateFinder sets a rate that a resumed run would not know; leave it out, search by "
    "find_lr with fit's flags before (in Python by Tuner.lr_find), and give --model.optimizer.lr"
)

ENDS: dict[type[LRScheduler], str] = {OneCycleLR: "total_steps", PolynomialLR: "total_iters"}
"""The setting that ends a schedule, by its class."""


class NetworkParameters(list[nn.Parameter]):
    """The parameters of a network, and which of them are its hidden matrices.

    Args:
        net: The network.

    Attributes:
        hidden: Weights of linear and convolution layers between the first and the last one, in the
            order in which the network registers them; none of an embedding.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net.parameters())
        embedded = {
            id(part)
            for module in net.modules()
            if isinstance(module, ConditionEmbedding)
            for part in module.modules()
        }
        layers = [
            module
            for module in net.modules()
            if isinstance(module, nn.Linear | _ConvNd) and id(module) not in embedded
        ]
        self.hidden = [layer.weight for layer in layers[1:-1]]


class AdamWNoBiasDecay(AdamW):
    """AdamW whose weight decay leaves norms and biases alone, as is usual for transformers.

    Two groups of parameters: those of two dimensions or more, and the others without decay.

    Args:
        params: Parameters, or groups of them, which are taken as they are.
        lr: Learning rate.
        betas: Decay rates of the two moments.
        eps: Added to the root of the second moment.
        weight_decay: Decay of matrices, per step and learning rate.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(groups_by_decay(list(params)), lr, betas, eps, weight_decay)


def groups_by_decay(params: Sequence[Any]) -> list[Group]:
    """Group parameters by whether they decay; groups are taken as they are."""
    if params and isinstance(params[0], dict):
        return list(params)
    matrices: list[Tensor] = [one for one in params if one.ndim >= 2]
    others: list[Tensor] = [one for one in params if one.ndim < 2]
    groups: list[Group] = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def make_optimizer(
    net: nn.Module, optimizer: OptimizerCallable, lr: float | None = None
) -> torch.optim.Optimizer:
    """Build the optimizer of a network's parameters; its refusal becomes an InputError.

    Args:
        net: The network.
        optimizer: Makes the optimizer of parameters.
        lr: Learning rate in place of the optimizer's own.
    """
    try:
        made = optimizer(NetworkParameters(net))
    except (TypeError, ValueError) as error:
        raise InputError(f"the optimizer cannot be made: {error}") from error
    for group in made.param_groups if lr is not None else ():
        group["lr"] = lr
    return made


def make_lr_schedule(
    optimizer: torch.optim.Optimizer, warmup_steps: int, after: LRSchedulerCallable | None
) -> LRScheduler | None:
    """Build the learning rate schedule: linear warm-up from 0, then another schedule.

    Args:
        optimizer: Its learning rate is reached after the warm-up.
        warmup_steps: Steps of the warm-up; 0 or 1 is none.
        after: The schedule after the warm-up; None keeps the rate constant.

    Returns:
        The schedule, to be stepped per optimizer step; None: the rate is constant.

    Raises:
        InputError: The schedule refuses the optimizer, or needs a metric (ReduceLROnPlateau).
    """
    parts: list[LRScheduler] = []
    if warmup_steps > 1:
        warm_up = LinearLR(optimizer, start_factor=1 / warmup_steps, total_iters=warmup_steps - 1)
        parts.append(warm_up)
    if after is not None:
        try:
            schedule = after(optimizer)
        except (TypeError, ValueError) as error:
            raise InputError(f"lr_schedule cannot be made: {error}") from error
        if isinstance(schedule, ReduceLROnPlateau):
            raise InputError("lr_schedule: ReduceLROnPlateau waits for a metric; use another")
        parts.append(schedule)
    if len(parts) == 2:
        return SequentialLR(optimizer, parts, milestones=[warmup_steps])
    return parts[0] if parts else None


def last_step(trainer: Trainer) -> int:
    """The optimizer step at which max_steps or max_epochs ends a run; −1: neither does.

    Args:
        trainer: Knows its data.
    """
    steps = trainer.estimated_stepping_batches
    return -1 if math.isinf(steps) else int(steps)


def refuse_short_schedule(schedule: LRScheduler | None, warmup_steps: int, max_steps: int) -> None:
    """Refuse a schedule that ends before training does: torch fails there, or the rate is 0.

    Args:
        schedule: As of make_lr_schedule.
        warmup_steps: Steps of the warm-up before it.
        max_steps: Optimizer steps of the run, see last_step; −1: not limited.

    Raises:
        InputError: The schedule ends before the run.
    """
    parts = schedule._schedulers if isinstance(schedule, SequentialLR) else [schedule]
    last = parts[-1]
    name = next((setting for kind, setting in ENDS.items() if isinstance(last, kind)), None)
    before = warmup_steps if len(parts) > 1 else 0
    if name is None or max_steps <= (end := before + getattr(last, name)):
        return
    raise InputError(
        f"model.lr_schedule: {type(last).__name__} ends at step {end}, before the run does, "
        f"at {max_steps}; use --model.lr_schedule.{name} {max_steps - before}, or "
        f"--trainer.max_steps {end} (a run keeps its schedule, so a longer one is a new run)"
    )


def refuse_settings(optimizer: torch.optim.Optimizer, trainer: Trainer) -> None:
    """Refuse settings of the optimizer with which torch fails at step 1."""
    if optimizer.defaults.get("differentiable"):
        raise InputError(
            "optimizer.differentiable true: no step works in place then; leave it out"
        )
    device = trainer.strategy.root_device.type
    if optimizer.defaults.get("capturable") and device in ("cpu", "mps"):
        raise InputError(f"optimizer.capturable true: not on {device}; leave it out")
    mixed = str(trainer.precision).endswith("-mixed")
    if optimizer.defaults.get("fused") and trainer.gradient_clip_val and mixed:
        raise InputError(
            "a fused optimizer cannot clip gradients under mixed precision; use fused: false "
            "(or foreach: true), or leave out gradient_clip_val"
        )


def prepare_steps(optimizer: torch.optim.Optimizer) -> None:
    """Let Adam and AdamW step by torch's fused kernel, and lay out their state as it needs it.

    The kernel takes a third of the time on the CPU, and reads no step counter. It is taken unless
    this run says how steps are made (fused, foreach, capturable, differentiable), whatever the run
    before took. To be called once a checkpoint is restored, which brings back the settings of the
    run before, and moments in its memory format, whose order the kernel takes for the weights'.
    """
    for group in optimizer.param_groups:
        if isinstance(optimizer, Adam | AdamW):
            _choose_kernel(group, optimizer.defaults)
        for parameter in group["params"]:
            for name, value in (state := optimizer.state.get(parameter, {})).items():
                state[name] = _laid_out(name, value, parameter, group)


def _choose_kernel(group: dict[str, Any], stated: dict[str, Any]) -> None:
    group["fused"], group["foreach"] = stated["fused"], stated["foreach"]
    free = stated["fused"] is None and stated["foreach"] is None
    free = free and not (group["capturable"] or group["differentiable"])
    if free and all(map(_has_kernel, group["params"])):
        group["fused"] = True


def _laid_out(name: str, value: Any, parameter: Tensor, group: dict[str, Any]) -> Any:
    """A value of an optimizer's state, with the strides of its parameter; counters where read."""
    if not isinstance(value, Tensor) or type(parameter) not in (Tensor, nn.Parameter):
        return value
    if name == "step":
        on_device = group.get("fused") or group.get("capturable")
        return value.to(parameter.device if on_device else "cpu")
    if value.shape != parameter.shape or value.stride() == parameter.stride():
        return value
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def _has_kernel(parameter: Tensor) -> bool:
    """Whether the kernel takes it: no shard of FSDP2, and nothing as narrow as half precision.

    Squares of gradients fall to 0 in float16; the plain step then fails, which is told, and the
    fused one, which computes in float32 between, goes on with steps that are too long.
    """
    whole = type(parameter) in (Tensor, nn.Parameter) and parameter.device.type in ("cpu", "cuda")
    return whole and parameter.dtype in (torch.float32, torch.float64)


def refuse_callbacks(trainer: Trainer) -> None:
    """Refuse Lightning's callbacks that change what a step of the run is."""
    for one in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(one, GradientAccumulationScheduler):
            raise InputError(
                "GradientAccumulationScheduler changes the images of an optimizer step, which "
                "data.global_batch_size states; leave it out, and divide that batch by "
                "--trainer.accumulate_grad_batches N"
            )
        # That of a Tuner ends the program's fit after the search, and this one would go on.
        if isinstance(one, LearningRateFinder) and not one._early_exit:
            raise InputError(NO_LR_FINDER)
