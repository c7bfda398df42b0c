"""Steps, weights and losses that are not finite: caught, explained, and skipped on request."""

from __future__ import annotations

import math
import warnings
from typing import Any, Protocol

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from ddpm_lightning.batch import Batch, Condition
from ddpm_lightning.diagnosis import (
    cause_in_data,
    cause_in_norm,
    cause_in_repeat,
    cause_in_weights,
    first_non_finite,
)
from ddpm_lightning.errors import InputError
from ddpm_lightning.sharding import whole

UNKNOWN = "the cause is unknown"
"""The beginning of a cause that was not found."""

LOWEST_SCALE = 1.0
"""Scale of the loss from which a GradScaler's skipped steps are no search for a scale any more."""


class Trained(Protocol):
    """The parts of DiffusionModule that the check needs."""

    @property
    def net(self) -> nn.Module:
        """The network."""

    def training_loss(
        self, batch: Batch, batch_idx: int
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Compute the mean loss, levels and loss terms of a batch."""


class GradientCheck:
    """Catches gradients that are not finite before the optimizer sees them.

    Reads one number a step, the gradients' norm over all processes and micro-batches. Where it is
    not finite, the cause is looked for and the step is skipped, which is warned of and counted as
    train/skipped_steps, or the run ends: weights, average and optimizer stay those of the step
    before. Under a GradScaler (16-mixed) the scaler skips
    steps while it looks for a scale; that is no failure, until its scale has fallen to 1, where a
    repeat of the step without a scale is finite.

    Attributes:
        norm: 2-norm of all gradients of the last step, before clipping; NaN before the first.
        skipped: Whether the last step was skipped, by this check or by the GradScaler.
        total: Steps that this check has skipped in the run.
        saved: The optimizer step of the last checkpoint, saved or resumed from; None: there is
            none.

    Args:
        most: Steps in a row that may be skipped.

    Raises:
        InputError: ``most`` is negative.
    """

    def __init__(self, most: int = 0) -> None:
        if most < 0:
            raise InputError(f"skip_nonfinite={most}: give 0 or more steps in a row")
        self.most = most
        self.norm = math.nan
        self.skipped = False
        self.total = 0
        self.saved: int | None = None
        self._in_row = 0
        self._batches: list[tuple[Batch, int]] = []

    def keep(self, batch: Batch, batch_idx: int) -> None:
        """Keep a micro-batch until its step is done, to look for a cause in it.

        All but the last are kept on the CPU, because a step may accumulate many.
        """
        if self._batches:
            last, its_idx = self._batches[-1]
            self._batches[-1] = _moved(last, torch.device("cpu")), its_idx
        self._batches.append((batch, batch_idx))

    def forget(self) -> None:
        """Forget the micro-batches of a step that is done, or was cut off."""
        self._batches.clear()

    def before_step(
        self, module: Trained, trainer: Trainer, optimizer: torch.optim.Optimizer
    ) -> None:
        """Measure the norm; drop the gradients of a step to be skipped.

        Raises InputError: The gradients are not finite, and no more steps may be skipped.
        """
        scaler: Any = getattr(trainer.precision_plugin, "scaler", None)
        norm = gradient_norm(module.net)
        # A fused optimizer unscales gradients in its step, any other has them unscaled before.
        unscales = scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False)
        if unscales:
            norm = norm / scaler.scale(torch.ones_like(norm))
        self.norm = float(norm)
        self.skipped = not math.isfinite(self.norm)
        if not self.skipped:
            self._in_row = 0
            return
        step, cause = trainer.global_step + 1, self._cause(module, trainer)
        searches = scaler is not None and scaler.get_scale() > LOWEST_SCALE
        if searches and cause.startswith(UNKNOWN):
            return  # and its step does nothing
        if scaler is not None and not searches:
            cause += f" (the loss scale of 16-mixed has fallen to {scaler.get_scale():g})"
        self._in_row += 1
        if self._in_row > self.most:
            raise InputError(self._message(step, cause, trainer))
        if name := _of_any(trainer, first_non_finite(module.net)):
            raise InputError(
                f"step {step} cannot be skipped: net.{name} is not finite any more; {cause}"
            )
        self.total += 1
        for parameter in module.net.parameters():
            if unscales and parameter.grad is not None:
                parameter.grad.fill_(math.nan)  # which it looks for itself
            else:
                parameter.grad = None  # optimizers leave alone what has no gradient
        self._tell(trainer, step, cause)

    def _tell(self, trainer: Trainer, step: int, cause: str) -> None:
        """Log and warn of a skipped step."""
        for logger in trainer.loggers:
            logger.log_metrics({"train/skipped_steps": float(self.total)}, step)
        if trainer.is_global_zero:
            warnings.warn(
                f"step {step} is skipped, {self._in_row} in a row of at most {self.most}, for its "
                f"gradients are not finite; {cause}",
                stacklevel=2,
            )

    def state_dict(self) -> dict[str, int]:
        """The counts of skipped steps, for the checkpoint; empty if there are none."""
        return {"total": self.total, "in_row": self._in_row} if self.total else {}

    def load_state_dict(self, state: dict[str, int], step: int) -> None:
        """Restore the counts of a checkpoint, which was saved at this step."""
        self.total, self._in_row = state.get("total", 0), state.get("in_row", 0)
        self.saved = step

    def _cause(self, module: Trained, trainer: Trainer) -> str:
        """Find the cause; the processes ask the same questions at once, for each has its rows."""
        net = module.net
        for batch, _ in self._batches:
            if cause := _of_any(trainer, cause_in_data(batch)):
                return cause
        for cause_in in (cause_in_weights, cause_in_norm):
            if cause := _of_any(trainer, cause_in(net)):
                return cause
        device = trainer.strategy.root_device
        for batch, batch_idx in ((_moved(batch, device), k) for batch, k in self._batches):
            found = failure = None
            try:
                with trainer.precision_plugin.train_step_context():
                    found = cause_in_repeat(net, module.training_loss, batch, batch_idx)
            except RuntimeError as error:  # e.g. out of memory
                failure = f"{UNKNOWN}: repeating the step failed: {str(error).splitlines()[0]}"
            if cause := _of_any(trainer, found or failure):
                return cause
        return f"{UNKNOWN}: a repeat of its batches, one by one, was finite"

    def _message(self, step: int, cause: str, trainer: Trainer) -> str:
        skipped = f" after {self.most} skipped in a row" if self.most else ""
        saved = "Nothing is saved yet"
        if self.saved is not None:
            saved = f"Step {self.saved} is saved, and a resumed run comes to the same step again"
        return (
            f"the gradients of step {step}{skipped} are not finite; {cause}. {saved}; "
            f"{self._advice(step, cause, trainer)}"
        )

    def _advice(self, step: int, cause: str, trainer: Trainer) -> str:
        """What this run does not do already and may help against this cause."""
        most = max(1, 2 * self.most)
        skip = f"skip such steps, {most} in a row at most (--model.skip_nonfinite {most})"
        if cause.startswith("the data"):
            return f"mend these samples or leave them out, or {skip}"
        advice = []
        if step > 1:
            advice.append("lower the learning rate")
            if not trainer.gradient_clip_val:
                advice.append("clip gradients (--trainer.gradient_clip_val 1.0)")
        if str(trainer.precision) in ("16-mixed", "16-true"):
            advice.append("use a wider range of numbers (--trainer.precision bf16-mixed)")
        if cause.startswith("the weights"):
            return ", or ".join(advice) or "start from weights that are"
        return ", or ".join([*advice, skip])


def gradient_norm(module: nn.Module) -> Tensor:
    """2-norm of all gradients, float32 [], on their device; of sharded ones, over all shards."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    return whole(torch.stack(torch._foreach_norm(gradients)).float().norm())


def check_finite_weights(module: nn.Module, step: int, saved: int | None) -> None:
    """Raise InputError, called before saving, unless all parameters and buffers are finite.

    The gradients were: what is left is an optimizer that makes such weights of them, and
    callbacks that change weights.
    """
    if name := first_non_finite(module):
        last = "nothing is saved" if saved is None else f"the last checkpoint is of step {saved}"
        raise InputError(
            f"{name} is not finite after step {step}, though the gradients were, so this step is "
            f"not saved; {last}. The optimizer or a callback made it so; lower the learning rate"
        )


def warn_of_losses(trainer: Trainer, losses: dict[str, str]) -> None:
    """Warn of measured losses that are not finite.

    Args:
        trainer: Has measured them, and knows the step.
        losses: What each logged tag stands for.
    """
    for tag, meaning in losses.items():
        value = trainer.callback_metrics.get(tag)
        if value is not None and not math.isfinite(float(value)) and trainer.is_global_zero:
            warnings.warn(
                f"{tag}, the loss of {meaning}, is {float(value)} at step {trainer.global_step}",
                stacklevel=2,
            )


def _moved(batch: Batch, device: torch.device) -> Batch:
    """Move data and condition to a device; does not wait for it."""
    parts = [p if p is None else p.to(device, non_blocking=True) for p in batch.condition]
    x0 = batch.x0.to(device, non_blocking=True)
    latents = None if batch.latents is None else batch.latents.to(device, non_blocking=True)
    return batch._replace(x0=x0, condition=Condition(*parts), latents=latents)


def _of_any(trainer: Trainer, cause: str | None) -> str | None:
    """The cause that a process has found, the lowest rank's first, on every process."""
    for rank in range(trainer.world_size):
        found: str | None = trainer.strategy.broadcast(cause, src=rank)
        if found is not None:
            return found if trainer.world_size == 1 else f"{found} (process {rank})"
    return None
