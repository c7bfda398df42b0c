"""What is examined, and what a check finds."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

from lightning.pytorch import LightningDataModule, Trainer

from ddpm_lightning.batch import Batch
from ddpm_lightning.errors import InputError
from ddpm_lightning.module import DiffusionModule

State = Literal["ok", "failed", "unknown"]


@dataclass(frozen=True)
class Finding:
    """The result of a check.

    Attributes:
        state: ok, failed, or unknown: not tried, or too little tried to tell.
        text: What was found, in one line, with the numbers.
        check: Name of the check.
    """

    state: State
    text: str
    check: str = ""

    def __str__(self) -> str:
        return f"{self.state:8} {self.check}: {self.text}"

    def plain(self) -> dict[str, Any]:
        """Convert to plain data, for JSON."""
        return asdict(self)


def ok(text: str) -> Finding:
    """A check that passed."""
    return Finding("ok", text)


def failed(text: str) -> Finding:
    """A check that did not pass."""
    return Finding("failed", text)


def unknown(text: str) -> Finding:
    """A check that was not made, or could not tell."""
    return Finding("unknown", text)


@dataclass(frozen=True, eq=False)
class Run:
    """A training run that has not begun.

    Args:
        module: The model.
        data: The data module.
        trainer: The trainer; it is not run.
        resumes: Whether a run in its folder would be gone on with.
        kept: What the checkpoint that it goes on from keeps for callbacks, by their state_key.
    """

    module: DiffusionModule
    data: LightningDataModule
    trainer: Trainer
    resumes: bool = False
    kept: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def batch(self) -> Batch:
        """The global batch of the first optimizer step, as one process would get it."""
        self.data.setup("fit")
        batch = next(iter(self.data.train_dataloader()))
        if not isinstance(batch, Batch):
            raise InputError(
                f"{type(self.data).__name__} gives {type(batch).__name__} instead of "
                "ddpm_lightning.batch.Batch; derive it from ddpm_lightning.data.ImageData, or "
                "return Batch(x0, condition, index, row)"
            )
        return batch

    @property
    def processes(self) -> int:
        """Number of processes of the run."""
        return self.trainer.num_devices * self.trainer.num_nodes

    @property
    def steps(self) -> int | None:
        """Optimizer steps of the whole run; None: it has no end."""
        ends = [self.trainer.max_steps] if self.trainer.max_steps >= 0 else []
        if self.trainer.max_epochs is not None and self.trainer.max_epochs >= 0:
            batches = len(self.data.train_dataloader())  # one process's, so whole steps
            ends.append(self.trainer.max_epochs * batches)
        return min(ends, default=None)

    def rows(self, n: int) -> Batch:
        """The first n rows of the batch, on the trainer's device."""
        batch, device = self.batch, self.trainer.strategy.root_device
        row = None if batch.row is None else batch.row[:n]
        condition = batch.condition.rows(slice(n)).to(device)
        captions = None if batch.captions is None else batch.captions[:n]
        return Batch(batch.x0[:n].to(device), condition, batch.index[:n], row, captions)
