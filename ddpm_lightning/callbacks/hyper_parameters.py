"""The hyper-parameters of a run, in its loggers from the start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from ddpm_lightning.configurable import Configurable
from ddpm_lightning.resume import describe_optimization
from ddpm_lightning.trackers import remember_runs, trackers_of

FINAL = ("val/loss_ema", "val/psnr", "fid", "fd", "swd")
"""Metrics by which runs are compared, where they are measured."""


class HyperParameters(Callback):
    """Logs learning rate, optimizer, batch size, and the parts of model and data at the start.

    TensorBoard's HPARAMS page shows them with val/loss_ema and fid, fd or swd while the run goes
    on. The command line adds this callback to every run. It stands behind the metrics in the list
    of callbacks, because they choose their extractor at the start, too.
    """

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning would log the model's part a second time.
        pl_module._log_hyperparams = False
        if not trainer.is_global_zero:
            return
        values, metrics = hyper_parameters(trainer, pl_module), measured(trainer)
        trackers = trackers_of(trainer)
        for tracker in trackers:
            tracker.hyperparameters(values, metrics)
        remember_runs(trackers, Path(trainer.default_root_dir))


def hyper_parameters(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """Collect the hyper-parameters of a run as plain data; those that one looks for come first."""
    configs = trainer.lr_scheduler_configs
    schedule: Any = configs[0].scheduler if configs else None
    optimization = describe_optimization(trainer.optimizers[0], schedule)
    data: Any = getattr(trainer, "datamodule", None)
    first = {
        "lr": optimization["groups"][0]["lr"],
        "optimizer": optimization["optimizer"],
        "global_batch_size": getattr(data, "global_batch_size", None),
        "max_steps": trainer.max_steps,
        "lr_schedule": optimization["lr_schedule"],
        "precision": str(trainer.precision),
    }
    groups = {f"group_{i}": numbers for i, numbers in enumerate(optimization["groups"])}
    described = data.describe() if isinstance(data, Configurable) else None
    others = {"optimizer_groups": groups, "dataset": described, **module.hparams}
    return {name: _plain(value) for name, value in (first | others).items()}


def _plain(value: Any) -> Any:
    """Spell out what is no plain data: a module of one's own may keep anything."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value if value is None or type(value) in (str, int, float, bool) else str(value)


def measured(trainer: Trainer) -> list[str]:
    """List the tags of FINAL that the callbacks of a run measure."""
    aliases = {"val/loss_ema"}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if (measures := getattr(callback, "measures", None)) is not None:
            aliases |= {one.names(one.name, measures.extractor)[1] for one in measures.metrics}
    return [name for name in FINAL if name in aliases]
