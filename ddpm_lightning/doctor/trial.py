"""A copy of the model that is trained on the same rows, noise and timesteps at every step."""

from __future__ import annotations

import copy
import time
from typing import Any

import torch
from torch import Tensor

from ddpm_lightning.batch import Batch
from ddpm_lightning.doctor.finding import Run
from ddpm_lightning.optimization import make_optimizer


class Trial:
    """Training of a copy, outside the trainer's loop: nothing of the run is changed or logged.

    The trainer's step stays 0, so that noise, timesteps and dropped labels are those of the first
    step every time. The learning rate is the optimizer's, without warm-up and schedule.

    Args:
        run: The run.
        rows: Rows of its first batch.
    """

    def __init__(self, run: Run, rows: int) -> None:
        self.run = run
        self.module = copy.deepcopy(run.module)
        self.module.trainer = run.trainer
        self.module.log = self.module.log_dict = _nowhere  # type: ignore[method-assign]
        self.precision: Any = run.trainer.precision_plugin
        self.precision.convert_module(self.module)
        self.module.to(run.trainer.strategy.root_device).train()
        self.optimizer = make_optimizer(self.module.net, self.module.optimizer)
        self.batch: Batch = self.precision.convert_input(run.rows(rows))
        self.steps = 0

    def loss(self) -> Tensor:
        """The loss of the rows, as training computes it."""
        with self.precision.train_step_context():
            output: Any = self.module.training_step(self.batch, 0)
        return output["loss"]

    def step(self) -> float:
        """Take an optimizer step and update the EMA; return the loss before it."""
        loss = self.loss()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.module.ema.update(self.module.net, self.steps)
        self.steps += 1
        return loss.item()

    def seconds(self) -> float:
        """Time of an optimizer step, after one that is not timed."""
        self.step()
        start = time.perf_counter()
        self.step()
        return time.perf_counter() - start

    def activations(self) -> int:
        """Bytes that the forward pass keeps for the backward pass."""
        parameters = {p.untyped_storage().data_ptr() for p in self.module.parameters()}
        kept: dict[int, int] = {}
        held = []  # or a freed storage's address would be another's

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                kept[storage.data_ptr()] = storage.nbytes()
                held.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            self.loss()
        return sum(kept.values())

    def state_bytes(self) -> tuple[int, int]:
        """Bytes of the module's state (weights, EMA, tables) and of the optimizer's state."""
        state = self.module.state_dict().values()
        moments = [value for states in self.optimizer.state.values() for value in states.values()]
        return _bytes(state), _bytes(moments)


def most_rows(run: Run, most: int, seconds: float) -> tuple[int, float]:
    """Double the rows, up to ``most``, while a step stays below half of so many seconds.

    Gives the rows and the time of their step.
    """
    rows, taken, most = 1, Trial(run, 1).seconds(), min(most, len(run.batch.x0))
    while rows < most and 2 * taken < seconds:
        rows = min(2 * rows, most)
        taken = Trial(run, rows).seconds()
    return rows, taken


def _bytes(values: Any) -> int:
    return sum(value.nbytes for value in values if isinstance(value, Tensor))


def _nowhere(*args: Any, **kwargs: Any) -> None:
    """Log nothing: no loop is running."""
