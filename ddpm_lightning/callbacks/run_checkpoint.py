"""Checkpoints of a run: <run folder>/checkpoints/last.ckpt."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from signal import Signals
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import (
    Checkpoint,
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.loops.progress import _BatchProgress
from lightning.pytorch.trainer.states import TrainerFn
from tqdm.auto import tqdm
from typing_extensions import override

from ddpm_lightning.callbacks.step_progress_bar import StepProgressBar
from ddpm_lightning.callbacks.stop_signals import Stopped, StopSignals
from ddpm_lightning.checkpoint_io import WholeCheckpointIO, install
from ddpm_lightning.errors import InputError, at_least
from ddpm_lightning.files import atomic_write
from ddpm_lightning.run_folder import last_checkpoint
from ddpm_lightning.trackers import trackers_of

REPLACING = {
    WeightAveraging: "give the average that the model keeps itself, --model.ema.decay",
    StochasticWeightAveraging: "give the average that the model keeps itself, --model.ema.decay",
    ModelPruning: "prune the weights of a model that is trained",
}
"""Callbacks of Lightning that put other weights in place of the trained ones before the last save,
and so leave a run that cannot go on exactly; and what to do instead."""


class RunCheckpoint(Checkpoint):
    """Saves the run every so many steps, and at its end, as checkpoints/last.ckpt.

    A save is the last act of its optimizer step: logs, pictures, metrics and validation of the
    step come before it, and what is logged is on the disk. So a run that is stopped at any moment
    goes back to its last save and does everything after it again, alike: the same values at the
    same steps, the same files. An error while drawing or measuring costs the steps since the save
    before, one interval at most.

    SIGTERM (which schedulers send before they preempt a job) and Ctrl-C save after the step at
    which they arrive, its validation, pictures and metrics included if they are due, and end the
    process with code 143 or 130. A second one ends it at once. So does SIGUSR1 under SLURM, with
    code 138, for ``sbatch --signal=USR1@90``.

    Place it behind every callback that logs or writes; Lightning does so by itself.

    Args:
        every_n_steps: Optimizer steps between saves: the most that a killed run loses.
        keep_all: Also keep a copy of each save, as checkpoints/step_00001000.ckpt and so on.
    """

    def __init__(self, every_n_steps: int = 1000, keep_all: bool = False) -> None:
        at_least(1, self, every_n_steps=every_n_steps)
        self.every_n_steps = every_n_steps
        self.keep_all = keep_all
        self._done = 0  # the last step that is behind us, saved or not
        self._stop_later = False
        self._metrics: dict[str, float] = {}

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            _refuse_replaced_weights(trainer)
        install(trainer)
        plugin = trainer.strategy.checkpoint_io
        if not isinstance(plugin, WholeCheckpointIO):  # another might leave half a file
            raise InputError(f"RunCheckpoint saves at once; leave out {type(plugin).__name__}")
        self._signals = StopSignals(trainer)
        self._signals.register_signal_handlers()
        trainer._signal_connector = self._signals

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A run that ended within a save has left it: see _log_step_now.
        vars(trainer._logger_connector).pop("update_train_step_metrics", None)
        self._begun = self._done = self._stepped = trainer.global_step
        self._stop_later = False
        self._signals.defers = not trainer.fast_dev_run  # type: ignore[attr-defined]
        # What was measured before, for `monitor:`; Lightning forgets it.
        metrics, self._metrics = self._metrics, {}
        trainer.callback_metrics.update({k: torch.tensor(v) for k, v in metrics.items()})

    @override
    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self._stepped:
            self._finish_window_first(trainer)
            return
        self._stepped = trainer.global_step
        if self._stop_later:
            trainer.should_stop, self._stop_later = True, False
        if not (_ends_epoch(trainer) or _validates_now(trainer)):
            self._end_step(trainer)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        if trainer.fit_loop._should_accumulate():
            self._finish_window_first(trainer)
        elif not _ends_epoch(trainer):
            self._end_step(trainer)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end_step(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step > self._begun and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._save(trainer, last=True)
            if stop := self._signals.agreed():
                self._stop(trainer, stop)
        self._signals.defers = False

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        checkpoint["callbacks"][self.state_key] = {"callback_metrics": metrics}
        # No validation is under way in a save; Lightning adds this to the batches of the next one.
        loops = checkpoint["loops"]["fit_loop"]
        loops["epoch_loop.val_loop.batch_progress"] = _BatchProgress().state_dict()

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        metrics = state_dict.get("callback_metrics")
        if not isinstance(metrics, dict) or not all(type(v) is float for v in metrics.values()):
            raise InputError("the checkpoint's values for monitor: are no numbers by name")
        self._metrics = metrics

    def _finish_window_first(self, trainer: Trainer) -> None:
        """Put a stop off until the step is whole: gradients of half a window are not saved."""
        self._stop_later |= trainer.should_stop
        trainer.should_stop = False

    def _end_step(self, trainer: Trainer) -> None:
        """Save the step if it is time, or a signal has come; the last one waits for the end."""
        step = trainer.global_step
        if step == self._done or trainer.fast_dev_run or _ends_training(trainer):  # type: ignore[attr-defined]
            return
        self._done = step
        stop = self._signals.agreed()
        if stop or step % self.every_n_steps == 0:
            self._save(trainer)
        if stop:
            self._stop(trainer, stop)

    def _save(self, trainer: Trainer, last: bool = False) -> None:
        if trainer._logger_connector._first_loop_iter is not None:
            _log_step_now(trainer._logger_connector)
        trackers = trackers_of(trainer) if trainer.is_global_zero else []
        for tracker in trackers:
            tracker.flush()  # so that what is logged before the save outlives the process, too
        path = last_checkpoint(trainer.default_root_dir)
        trainer.save_checkpoint(path, weights_only=False)
        if self.keep_all and trainer.is_global_zero:
            _copy(path, path.with_name(f"step_{trainer.global_step:08d}.ckpt"))
        for tracker in trackers:
            tracker.checkpoint(path, trainer.global_step, last)

    def _stop(self, trainer: Trainer, number: int) -> None:
        """End the process; on every one, after the first has renamed the file."""
        trainer.strategy.barrier("RunCheckpoint.stop")
        if trainer.is_global_zero:
            if isinstance(bar := trainer.progress_bar_callback, StepProgressBar):
                bar.close(trainer, trainer.lightning_module)
            root, step = trainer.default_root_dir, trainer.global_step
            tqdm.write(
                f"\n{root}: stopped by {Signals(number).name} after step {step}, which is saved; "
                f"go on by --ckpt_path {last_checkpoint(root)}, or start the job again with "
                "--ckpt_path auto"
            )
        raise Stopped(number)


def _ends_epoch(trainer: Trainer) -> bool:
    return trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def _validates_now(trainer: Trainer) -> bool:
    """Whether Lightning validates between this batch and the next."""
    loop, fetcher = trainer.fit_loop.epoch_loop, trainer.fit_loop._data_fetcher
    assert fetcher is not None
    empty = bool(loop.val_loop._max_batches) and loop.val_loop.skip
    return not empty and loop._should_check_val_fx(fetcher)


def _ends_training(trainer: Trainer) -> bool:
    """Whether on_train_end follows, with its pictures and metrics."""
    loop: Any = trainer.fit_loop
    steps = 0 <= loop.max_steps <= trainer.global_step
    epochs = 0 <= (loop.max_epochs or -1) <= loop.epoch_progress.current.processed
    return bool(steps or epochs or (trainer.should_stop and loop._can_stop_early))


def _refuse_replaced_weights(trainer: Any) -> None:
    """Raise InputError for a callback after which the last save does not hold trained weights."""
    for callback in trainer.callbacks:
        for kind, advice in REPLACING.items():
            if isinstance(callback, kind):
                raise InputError(
                    f"{type(callback).__name__} replaces the trained weights at the end, from "
                    f"which no run goes on exactly; leave it out, and {advice}"
                )


def _log_step_now(connector: Any) -> None:
    """Log the values of a training batch before the save; Lightning does it after, and not again.

    Args:
        connector: The trainer's logger connector, within a training batch.
    """

    def logged() -> None:
        del connector.update_train_step_metrics  # the class's is in place from the next batch on

    connector.update_train_step_metrics()
    connector.update_train_step_metrics = logged


def _copy(path: Path, copy: Path) -> None:
    """Link or copy a file; a link serves, for the file is replaced and never written to."""
    with atomic_write(copy) as partial:
        partial.unlink(missing_ok=True)
        try:
            os.link(path, partial)
        except OSError:
            shutil.copyfile(path, partial)
