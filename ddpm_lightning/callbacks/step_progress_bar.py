"""Progress in optimizer steps, with the time left to the end of training."""

from __future__ import annotations

import math
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar
from typing_extensions import override

from ddpm_lightning.progress import INTERVAL, Lines


class ShowsMeans(ProgressBar):
    """Metrics of a bar: those of Lightning, and the means of the last step's loss terms."""

    reads_means = True

    @override
    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        means: dict[str, Any] = getattr(pl_module, "last_means", {})
        found = {name: float(mean) for name, mean in means.items()}
        return found | super().get_metrics(trainer, pl_module)


class StepProgressBar(ShowsMeans, TQDMProgressBar):
    """One bar over all of max_steps, where Lightning's starts anew every epoch.

    Args:
        refresh_rate: Optimizer steps from one update of the bar to the next.
        seconds: The most from one to the next, where steps are slower.
    """

    def __init__(self, refresh_rate: int = 10, seconds: float = 2.0) -> None:
        super().__init__(refresh_rate=refresh_rate)
        self.seconds = seconds
        self._shown = -math.inf

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        """Leave the bar as it is; it counts steps, not epochs."""
        if trainer.max_steps < 0:
            super().on_train_epoch_start(trainer, *args)
        elif self.train_progress_bar.total is None:
            self.train_progress_bar.reset(total=trainer.max_steps)
            self.train_progress_bar.initial = self.train_progress_bar.n = trainer.global_step
            self.train_progress_bar.set_description("training")
            self._shown = -math.inf

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Show the steps made, and the metrics."""
        if trainer.max_steps < 0:
            super().on_train_batch_end(trainer, pl_module, *args)
            return
        bar, step = self.train_progress_bar, trainer.global_step
        if bar.disable or step == bar.n:
            return
        due = step % self.refresh_rate == 0 or time.monotonic() - self._shown >= self.seconds
        if due or step == trainer.max_steps:
            self._show(trainer, pl_module)

    def close(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the bar, at the last step if it counts steps; what is printed next stands below."""
        if trainer.max_steps >= 0 and not self.train_progress_bar.disable:
            self._show(trainer, pl_module)
        self.train_progress_bar.close()

    def _show(self, trainer: Trainer, pl_module: LightningModule) -> None:
        bar = self.train_progress_bar
        bar.set_postfix(self.get_metrics(trainer, pl_module), refresh=False)
        bar.n = trainer.global_step
        bar.refresh()
        self._shown = time.monotonic()


class StepLines(ShowsMeans):
    """A line now and then with steps, metrics and the time left, where no bar can be drawn.

    Args:
        seconds: From one line to the next.
    """

    def __init__(self, seconds: float = INTERVAL) -> None:
        super().__init__()
        self.seconds = seconds
        self._disabled = False
        self._lines = Lines()

    @override
    def disable(self) -> None:
        self._disabled = True

    @override
    def enable(self) -> None:
        self._disabled = False

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        total = trainer.max_steps if trainer.max_steps > 0 else None
        self._begin("training", total, trainer.global_step)

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._lines.is_due():  # because reading them waits for the device
            metrics = self.get_metrics(trainer, pl_module)
            metrics.pop("v_num", None)
            self._lines.set_postfix(**metrics)
        self._lines.update(trainer.global_step - self._lines.n)

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin("testing")

    @override
    def on_test_batch_end(self, *_: Any) -> None:
        self._lines.update()

    def _begin(self, what: str, total: int | None = None, done: int = 0) -> None:
        settings: dict[str, Any] = {"disable": self._disabled, "seconds": self.seconds}
        self._lines = Lines(total=total, desc=what, initial=done, **settings)
