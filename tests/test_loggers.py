"""Every kind of logger gets the same numbers, pictures and hyper-parameters, after a stop, too."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from ddpm_lightning.cli import main
from ddpm_lightning.errors import InputError
from ddpm_lightning.trackers import TRACKERS, Tracker, in_run_folder
from ddpm_lightning.trackers.csv import CSV
from ddpm_lightning.trackers.mlflow import MLflow
from tests.outcome import WALL_CLOCK
from tests.small import events, fail
from tests.test_cli import tiny_run

CSV_CLASS = "lightning.pytorch.loggers.CSVLogger"
MONITORS = ("LossByTimestep", "LearningRateMonitor", "TrainingMonitor")


class Kill(Callback):
    """Ends the process at once in a step, as a machine that is switched off would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def words(root: Path, loggers: str, *more: str, kill: int = -1, steps: int = 2) -> list[str]:
    """A run with all kinds of pictures, saved every second step."""
    callbacks: list[Any] = [{"class_path": name} for name in MONITORS]
    callbacks.append({"class_path": "tests.test_loggers.Kill", "init_args": {"step": kill}})
    grid = {"class_path": "SampleGrid", "init_args": {"n": 4, "frames": 2, "every_n_steps": 2}}
    grid["init_args"]["sampler"] = {"class_path": "DDIM", "init_args": {"steps": 2}}
    more = (
        *more,
        f"--trainer.logger={loggers}",
        *("--trainer.log_every_n_steps=1", "--trainer.val_check_interval=2"),
        "--checkpoint.every_n_steps=2",
        f"--trainer.callbacks={json.dumps(callbacks)}",
        f"--grid={json.dumps(grid)}",
        "--model.conditional=true",
    )
    return ["fit", *tiny_run(root, *more, max_steps=steps)]


def table(root: Path) -> list[dict[str, str]]:
    """The lines of a run's metrics.csv, without those of the clock."""
    with (root / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    filled = [{k: v for k, v in row.items() if v and k not in WALL_CLOCK} for row in rows]
    return [row for row in filled if row.keys() != {"step"}]


def values(root: Path) -> dict[tuple[str, int], str]:
    """The last value of every tag and step in metrics.csv."""
    return {
        (tag, int(row["step"])): value
        for row in table(root)
        for tag, value in row.items()
        if tag not in ("step", "epoch")
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of two steps that logs to TensorBoard and CSV."""
    root = tmp_path_factory.mktemp("loggers") / "run"
    main(words(root, "[TensorBoardLogger,CSVLogger]"))
    return root


@pytest.mark.slow
def test_csv_has_the_paths_of_pictures(run):
    logged = values(run)
    for tag in ("ddim2_ema", "ddim2_ema_animated", "ddim2_ema_denoising"):
        assert (run / logged[f"samples/{tag}", 2]).is_file()
    assert logged["val/loss_by_timestep", 2] == "loss_by_timestep.png"


@pytest.mark.slow
def test_tensorboard_has_the_files_themselves(run):
    shown = events(run)
    for tag, pattern in (("ddim2_ema", "ema_step*.png"), ("ddim2_ema_animated", "*.gif")):
        (image,) = shown.Images(f"samples/{tag}")
        (file,) = (run / "samples").glob(f"ddim2_{pattern}" if "ema" in pattern else pattern)
        assert image.encoded_image_string == file.read_bytes()


def test_tensorboard_and_csv_have_the_same_numbers(run):
    shown = events(run)
    logged = {key: value for key, value in values(run).items() if key[0].startswith("train/")}
    assert logged
    for (tag, step), value in logged.items():
        assert [e.value for e in shown.Scalars(tag) if e.step == step] == pytest.approx(
            [float(value)]
        )


@pytest.mark.slow
def test_learning_rate_optimizer_and_batch_size_come_first(run):
    found = yaml.safe_load((run / "hparams.yaml").read_text())
    assert list(found)[:3] == ["lr", "optimizer", "global_batch_size"]
    assert (found["lr"], found["optimizer"], found["global_batch_size"]) == (0.002, "Adam", 8)


def test_the_hparams_page_knows_values_and_metrics_at_the_start(run):
    shown = events(run)

    def content(name: str) -> HParamsPluginData:
        metadata = shown.summary_metadata[f"_hparams_/{name}"]
        return HParamsPluginData.FromString(metadata.plugin_data.content)

    experiment = content("experiment").experiment
    assert [info.name for info in experiment.hparam_infos][:3] == [
        *("lr", "optimizer", "global_batch_size")
    ]
    assert [info.name.tag for info in experiment.metric_infos] == ["val/loss_ema"]
    start = content("session_start_info").session_start_info
    assert start.hparams["lr"].number_value == 0.002


@pytest.mark.slow
def test_a_resumed_run_keeps_the_lines_up_to_its_save(run, tmp_path):
    main(words(tmp_path / "whole", "CSVLogger", steps=4))
    main(words(tmp_path / "half", "CSVLogger"))
    file = tmp_path / "half" / "metrics.csv"
    columns = file.read_text().split("\n")[0].split(",")
    unsaved = {"step": "3", "val/loss": "7.0"}  # as of a process that was killed in step 4
    with file.open("a") as lines:
        lines.write(",".join(unsaved.get(column, "") for column in columns) + "\n")
    main(words(tmp_path / "half", "CSVLogger", "--ckpt_path=last", steps=4))
    ours, theirs = values(tmp_path / "half"), values(tmp_path / "whole")
    for at_the_end_of_the_half in (("final/val/loss_ema", 2), ("lr-Adam", 1)):
        ours.pop(at_the_end_of_the_half, None)
        theirs.pop(at_the_end_of_the_half, None)
    assert ours == theirs


@pytest.mark.slow
def test_the_saved_config_serves_every_command(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    more = ("--ckpt_path=last", "--trainer.limit_test_batches=1", "--likelihood.evaluations=0")
    main(["test", f"--config={run / 'config.yaml'}", *more])
    assert "test/loss_ema" in table(run / "test")[-1]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_without_a_logger_a_run_keeps_its_files(tmp_path):
    main(words(tmp_path, "false"))
    assert not list(tmp_path.glob("events*"))
    assert {"config.yaml", "checkpoints", "samples"} <= {path.name for path in tmp_path.iterdir()}


def test_a_given_place_stays():
    given = {"class_path": CSV_CLASS, "init_args": {"save_dir": "logs"}}
    assert in_run_folder([given], "run") == [given]


def test_the_second_logger_of_a_class_finds_its_own_run(tmp_path):
    ids = {"WandbLogger": "first", "WandbLogger 2": "second"}
    (tmp_path / "trackers.json").write_text(json.dumps(ids))
    setting = {"class_path": "lightning.pytorch.loggers.WandbLogger", "init_args": {}}
    pytest.importorskip("wandb")
    placed = in_run_folder([setting, setting], str(tmp_path))
    assert [one["init_args"]["id"] for one in placed] == ["first", "second"]


class Elsewhere(CSVLogger):
    """A logger whose package nobody has."""


def test_a_missing_package_is_one_line_with_the_command(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(
        TRACKERS, Elsewhere, type("ElsewhereTracker", (Tracker,), {"package": "no_such_package"})
    )
    line = fail(capsys, *words(tmp_path / "run", "tests.test_loggers.Elsewhere"))
    assert "pip install no_such_package" in line
    assert not (tmp_path / "run").exists()


def test_a_silent_mlflow_server_is_named_with_the_way_on():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(InputError, match="no MLflow server answers") as caught:
            MLflow(SimpleNamespace(_tracking_uri=uri), Path()).check()
    assert "--trainer.logger.tracking_uri sqlite:///FILE.db" in str(caught.value)


# ------------------------------------------------------------- the trackers themselves


def fit(*arguments: str, code: int = 0, **environment: str) -> str:
    """Run in a process of its own, for W&B has one run a process."""
    done = subprocess.run(
        [sys.executable, "-m", "ddpm_lightning", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=500,
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def wandb_records(root: Path) -> Iterator[Any]:
    """The records of all offline files of a run, in W&B's own protocol."""
    from wandb.proto import wandb_internal_pb2

    for file in sorted(root.glob("wandb/offline-run-*/*.wandb")):
        data, at, part = file.read_bytes(), 7, b""
        while at < len(data):
            if (left := 32768 - at % 32768) < 7:  # LevelDB's log format: blocks of 32 KiB
                at += left
                continue
            _, length, kind = struct.unpack("<IHB", data[at : at + 7])
            if kind == 0:
                break
            part += data[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):  # a whole record, or the last part of one
                record = wandb_internal_pb2.Record()
                record.ParseFromString(part)
                part = b""
                yield record


def wandb_history(root: Path) -> dict[tuple[str, int], Any]:
    """The last value of every tag and step that W&B has."""
    found: dict[tuple[str, int], Any] = {}
    for record in wandb_records(root):
        if record.WhichOneof("record_type") != "history":
            continue
        row: dict[str, Any] = {}
        for item in record.history.item:
            name, *inner = list(item.nested_key) or [item.key]
            value = json.loads(item.value_json)
            if inner:
                row.setdefault(name, {})[inner[0]] = value
            else:
                row[name] = value
        step = row.pop("trainer/global_step")
        found |= {(tag, step): v for tag, v in row.items() if tag[0] != "_" and tag != "epoch"}
    return found


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """A run that logs to CSV, W&B and MLflow, was killed in step 3 and went on to step 4."""
    pytest.importorskip("wandb")
    pytest.importorskip("mlflow")
    root = tmp_path_factory.mktemp("trackers") / "run"
    offline = {"class_path": "WandbLogger", "init_args": {"offline": True}}
    loggers = f'["CSVLogger", {json.dumps(offline)}, "MLFlowLogger"]'
    fit(*words(root, loggers, kill=3, steps=4), code=-signal.SIGKILL)
    (root / "after_the_kill.json").write_text(
        json.dumps([[tag, step] for tag, step in wandb_history(root)])
    )
    lr = "--model.optimizer.lr=0.001"
    told = fit(*words(root, loggers, "--ckpt_path=last", lr, steps=4))
    (root / "told.txt").write_text(told)
    return root


@pytest.mark.slow
def test_a_kill_takes_nothing_from_wandb_that_was_logged_before_the_save(stopped):
    saved = {key for key in values(stopped) if key[1] <= 2}
    saved -= {("lr-Adam", 2)}  # which is logged where the step after the save begins
    there = {
        (tag, step) for tag, step in json.loads((stopped / "after_the_kill.json").read_text())
    }
    assert saved - there == set()


@pytest.mark.slow
def test_wandb_has_every_number_of_csv_at_its_step(stopped):
    ours, theirs = wandb_history(stopped), values(stopped)
    numbers = {key: v for key, v in theirs.items() if not v.endswith((".png", ".gif"))}
    assert len(numbers) > 30
    assert {key: ours.get(key) for key in numbers} == {
        key: pytest.approx(float(value)) for key, value in numbers.items()
    }


@pytest.mark.slow
def test_wandb_has_the_pictures_and_a_table_of_samples_by_class(stopped):
    history = wandb_history(stopped)
    for step in (2, 4):
        for tag in ("ddim2_ema", "ddim2_ema_denoising", "ddim2_ema_animated"):
            media = history[f"samples/{tag}", step]
            assert list(stopped.glob(f"wandb/offline-run-*/files/{media['path']}"))
        media = history["samples/ddim2_ema_table", step]
        (file,) = stopped.glob(f"wandb/offline-run-*/files/{media['path']}")
        shown = json.loads(file.read_text())
        assert shown["columns"] == ["step", "class", "sample", "image"]
        classes = [row[1] for row in shown["data"]]
        assert len(classes) == 4
        assert classes == sorted(classes)


@pytest.mark.slow
def test_wandb_keeps_one_run_over_a_resume(stopped):
    ids = {r.run.run_id for r in wandb_records(stopped) if r.WhichOneof("record_type") == "run"}
    assert ids == {json.loads((stopped / "trackers.json").read_text())["WandbLogger"]}
    assert len(list(stopped.glob("wandb/offline-run-*"))) == 2


@pytest.fixture(scope="module")
def client(stopped):
    """MLflow's own client on the database of the run."""
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{stopped / 'mlflow.db'}")


@pytest.fixture(scope="module")
def mlflow_run(client):
    """The one run of the database."""
    (experiment,) = client.search_experiments(filter_string="name = 'ddpm_lightning'")
    (run,) = client.search_runs([experiment.experiment_id])
    return run


@pytest.mark.slow
def test_mlflow_has_every_number_of_csv_at_its_step(stopped, client, mlflow_run):
    for (tag, step), value in values(stopped).items():
        if not value.endswith((".png", ".gif")):
            history = client.get_metric_history(mlflow_run.info.run_id, tag)
            logged = [m for m in history if m.step == step]
            last = max(logged, key=lambda m: m.timestamp)  # the killed process has logged, too
            assert last.value == pytest.approx(float(value))


@pytest.mark.slow
def test_mlflow_has_pictures_and_animations(client, mlflow_run):
    run_id = mlflow_run.info.run_id
    images = [Path(one.path).name for one in client.list_artifacts(run_id, "images")]
    for tag in ("samples~ddim2_ema", "samples~ddim2_ema_denoising", "val~loss_by_timestep"):
        for step in (2, 4):
            assert [name for name in images if name.startswith(f"{tag}+step+{step}+")]
    animations = [one.path for one in client.list_artifacts(run_id, "samples")]
    assert animations == [f"samples/ddim2_ema_step_0000000{step}.gif" for step in (2, 4)]


@pytest.mark.slow
def test_mlflow_has_the_hyper_parameters_and_what_a_resume_changed(mlflow_run):
    parameters = mlflow_run.data.params
    assert (parameters["lr"], parameters["optimizer"]) == ("0.002", "Adam")
    assert mlflow_run.data.tags["resumed.lr"] == "0.001"
    assert mlflow_run.info.status == "FINISHED"


@pytest.mark.slow
def test_the_closing_lines_speak_of_the_loggers_there_are(stopped):
    told = (stopped / "told.txt").read_text()
    assert f"Look at it: {stopped / 'metrics.csv'}" in told
    assert f"Look at it: wandb sync {stopped / 'wandb' / 'offline-run-*'}" in told
    assert f"Look at it: mlflow ui --backend-store-uri sqlite:///{stopped}/mlflow.db" in told
    assert "tensorboard" not in told


@pytest.mark.slow
def test_wandb_without_a_key_is_one_line_before_training(tmp_path):
    pytest.importorskip("wandb")
    nobody = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "none"), "WANDB_API_KEY": ""}
    told = fit(*words(tmp_path / "run", "WandbLogger"), code=2, **nobody)
    assert "error: WandbLogger has no API key: run `wandb login`" in told
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_mlflow_keeps_checkpoints_where_log_model_asks(tmp_path):
    pytest.importorskip("mlflow")
    logger = {"class_path": "MLFlowLogger", "init_args": {"log_model": True}}
    fit(*words(tmp_path, json.dumps(logger)))
    (kept,) = tmp_path.glob("mlartifacts/*/artifacts/checkpoints/last.ckpt")
    assert kept.read_bytes() == (tmp_path / "checkpoints" / "last.ckpt").read_bytes()


@pytest.mark.slow
def test_wandb_gets_checkpoints_where_log_model_asks(tmp_path):
    pytest.importorskip("wandb")
    logger = {"class_path": "WandbLogger", "init_args": {"log_model": "all"}}
    words_of_four = words(tmp_path, json.dumps(logger), steps=4)
    fit(*words_of_four, WANDB_MODE="offline")
    records = [r for r in wandb_records(tmp_path) if r.WhichOneof("record_type") == "artifact"]
    models = [one.artifact for one in records if one.artifact.type == "model"]
    assert [sorted(one.aliases) for one in models] == [["latest", "step_2"], ["latest", "step_4"]]
    assert [[entry.path for entry in one.manifest.contents] for one in models] == [
        ["last.ckpt"]
    ] * 2


def test_a_cut_csv_keeps_its_whole_lines(tmp_path):
    file = tmp_path / "metrics.csv"
    file.write_text("epoch,lr-Adam,step,train/loss\n0,,1,0.5\n0,,2,0.4\n0,0.1,2,\n0,,3,0.3\n0.00")
    logger = CSVLogger(tmp_path, name="", version="")
    CSV(logger, tmp_path).begin(2)
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert [(row["step"], row["train/loss"]) for row in rows] == [("1", "0.5"), ("2", "0.4")]
    assert not (tmp_path / "metrics.csv.before").exists()
