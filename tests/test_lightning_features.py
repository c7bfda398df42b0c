"""What Lightning's users expect of a trainer: each for two steps, or refused with the way on."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    DeviceStatsMonitor,
    EarlyStopping,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelSummary,
    RichModelSummary,
    RichProgressBar,
    StochasticWeightAveraging,
    Timer,
    TQDMProgressBar,
)
from lightning.pytorch.callbacks.throughput_monitor import ThroughputMonitor
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.tuner import Tuner

from ddpm_lightning.callbacks import TrainingMonitor
from ddpm_lightning.cli import main
from ddpm_lightning.errors import InputError
from tests.small import assert_same_weights, fail, fit, tiny_data, tiny_module, trainer

VALIDATED = {"limit_val_batches": 1, "val_check_interval": 1, "check_val_every_n_epoch": None}


def images(batch) -> int:
    """The size of a batch, which ThroughputMonitor asks for."""
    return len(batch.x0)


# Each row: settings of the trainer, and the steps that it makes of two.
TRAINERS = {
    "simple profiler": ({"profiler": "simple"}, 2),
    "advanced profiler": ({"profiler": "advanced"}, 2),
    "PyTorch profiler": ({"profiler": "pytorch"}, 2),
    "overfit_batches": ({"overfit_batches": 1}, 2),
    "fast_dev_run": ({"fast_dev_run": 1}, 1),
    "limit_train_batches": ({"limit_train_batches": 1, "max_steps": -1, "max_epochs": 2}, 2),
    "limit_val_batches": (VALIDATED, 2),
    "max_epochs": ({"max_steps": -1, "max_epochs": 1}, 8),
    "max_time": ({"max_time": {"hours": 1}}, 2),
    "accumulation": ({"accumulate_grad_batches": 2}, 2),
    "clipping": ({"gradient_clip_val": 1.0}, 2),
    "deterministic": ({"deterministic": True}, 2),
    "detect_anomaly": ({"detect_anomaly": True}, 2),
    "num_sanity_val_steps": ({"num_sanity_val_steps": 1} | VALIDATED, 2),
    "no logger": ({"logger": False}, 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("row", TRAINERS, ids=str)
def test_a_setting_of_the_trainer_trains(row, tmp_path):
    settings, steps = TRAINERS[row]
    run = {"logger": CSVLogger(tmp_path)} | settings
    run |= {"enable_progress_bar": False, "max_steps": settings.get("max_steps", 2)}
    module, one = tiny_module(), trainer(tmp_path, **run)
    one.fit(module, tiny_data())
    assert one.global_step == steps


CALLBACKS = {
    "early stopping": partial(EarlyStopping, "val/loss_ema"),
    "best checkpoint": partial(ModelCheckpoint, monitor="val/loss_ema", filename="best"),
    "rich progress bar": RichProgressBar,
    "tqdm progress bar": TQDMProgressBar,
    "rich summary": RichModelSummary,
    "summary": ModelSummary,
    "throughput": partial(ThroughputMonitor, images),
    "images a second": TrainingMonitor,
    "learning rate": LearningRateMonitor,
    "device statistics": partial(DeviceStatsMonitor, cpu_stats=False),
    "timer": partial(Timer, "00:01:00:00"),
}


@pytest.mark.slow
@pytest.mark.parametrize("row", CALLBACKS, ids=str)
def test_a_callback_of_lightning_trains(row, tmp_path):
    if row.startswith("rich"):
        pytest.importorskip("rich")
    bar = row.endswith("bar")
    run = {"logger": CSVLogger(tmp_path), "log_every_n_steps": 1, "enable_progress_bar": bar}
    callbacks = {"callbacks": [CALLBACKS[row]()]}
    one = trainer(tmp_path, 2, **run, **callbacks, **VALIDATED)
    one.fit(tiny_module(), tiny_data())
    assert one.global_step == 2


PRECISIONS = ("32-true", "64-true", "bf16-true", "bf16-mixed", "16-mixed")


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_precision_trains(precision, tmp_path):
    module = tiny_module()
    before = module.net.out.weight.detach().clone()
    trainer(tmp_path, 2, precision=precision).fit(module, tiny_data())
    assert not torch.equal(module.net.out.weight.detach().to(before), before)


@pytest.mark.slow
def test_half_precision_alone_is_too_narrow_for_adam_and_says_what_is_not(tmp_path):
    with pytest.raises(InputError, match=r"use a wider range .*--trainer\.precision bf16-mixed"):
        trainer(tmp_path, 2, precision="16-true").fit(tiny_module(), tiny_data())


@pytest.mark.slow
def test_early_stopping_stops_where_the_metric_does_not_fall(tmp_path):
    stop = EarlyStopping("val/loss_ema", patience=1, min_delta=10.0)
    one = trainer(tmp_path, 8, callbacks=[stop], **VALIDATED)
    one.fit(tiny_module(), tiny_data())
    assert one.global_step == 2


@pytest.mark.slow
def test_the_best_checkpoint_is_one_that_loads(tmp_path):
    best = ModelCheckpoint(tmp_path, monitor="val/loss_ema", filename="best")
    module = tiny_module()
    trainer(tmp_path, 2, callbacks=[best], **VALIDATED).fit(module, tiny_data())
    assert type(module).load_from_checkpoint(best.best_model_path).net is not None


@pytest.mark.slow
def test_two_loggers_get_the_same_metrics(tmp_path):
    loggers = [CSVLogger(tmp_path / "csv"), TensorBoardLogger(tmp_path / "tb")]
    one = trainer(tmp_path, 2, logger=loggers, log_every_n_steps=1)
    one.fit(tiny_module(), tiny_data())
    assert "train/loss" in (tmp_path / "csv").rglob("metrics.csv").__next__().read_text()
    assert [*(tmp_path / "tb").rglob("events.out.tfevents.*")]


# ------------------------------------------------------------------ the learning rate finder


@pytest.mark.slow
def test_the_finder_of_a_tuner_sets_the_rate_of_the_next_fit(tmp_path):
    module = tiny_module()
    found = Tuner(trainer(tmp_path, 2)).lr_find(module, datamodule=tiny_data(), num_training=20)
    one = trainer(tmp_path, 2)
    one.fit(module, tiny_data())
    assert module.lr == found.suggestion()
    assert one.optimizers[0].param_groups[0]["lr"] == module.lr


@pytest.mark.slow
def test_a_search_leaves_no_trace_in_the_run_after_it(tmp_path):
    torch.manual_seed(0)
    module = tiny_module()
    searching = trainer(tmp_path / "search", 2)
    Tuner(searching).lr_find(module, datamodule=tiny_data(), num_training=15, update_attr=False)
    trainer(tmp_path / "a", 2).fit(module, tiny_data())
    torch.manual_seed(0)
    other = tiny_module()
    trainer(tmp_path / "b", 2).fit(other, tiny_data())
    assert_same_weights(module, other)
    assert not [*(tmp_path / "search").rglob("*.ckpt")]


@pytest.mark.slow
def test_find_lr_prints_a_flag_that_fit_takes_and_leaves_no_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = ["--config=digits", "--model.net.channels=8", "--model.net.groups=4"]
    small += ["--model.net.blocks=1", "--data.global_batch_size=8", "--trainer.accelerator=cpu"]
    with pytest.raises(SystemExit) as caught:
        main(["find_lr", *small, "--steps=15", "--out=lr.png"])
    assert caught.value.code == 0
    flag, rate = capsys.readouterr().out.split()[-2:]
    assert flag == "--model.optimizer.lr"
    assert 1e-6 <= float(rate) <= 1
    assert [path.name for path in tmp_path.iterdir()] == ["lr.png"]


# ------------------------------------------------------------------ what is refused

REFUSED = {
    LearningRateFinder: "find_lr with fit's flags",
    BatchSizeFinder: "--trainer.accumulate_grad_batches 2",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.__name__)
def test_a_finder_in_a_run_is_refused_with_the_way_on(kind, tmp_path, capsys):
    words = ["--config=digits", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    line = fail(capsys, "fit", *words, f"--trainer.callbacks={kind.__name__}")
    assert REFUSED[kind] in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (LearningRateFinder(), "Tuner.lr_find"),
        (BatchSizeFinder(batch_arg_name="global_batch_size"), "doctor forecasts memory"),
        (StochasticWeightAveraging(1e-4), r"--model\.ema\.decay"),
    ],
    ids=["LearningRateFinder", "BatchSizeFinder", "StochasticWeightAveraging"],
)
def test_a_callback_that_changes_what_a_step_is_is_refused(callback, message, tmp_path):
    with pytest.raises(InputError, match=message):
        fit(tmp_path, 2, callback)


def test_scaling_the_batch_by_a_tuner_is_refused(tmp_path):
    with pytest.raises(InputError, match="global_batch_size"):
        Tuner(trainer(tmp_path, 2)).scale_batch_size(tiny_module(), datamodule=tiny_data())
