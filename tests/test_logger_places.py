"""Where loggers write: apart from a run that trains, at addresses of fsspec, to a server."""

from __future__ import annotations

import csv
import json
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import fsspec
import pytest
import yaml
from fsspec.implementations.memory import MemoryFileSystem
from lightning.pytorch.loggers import CSVLogger

from ddpm_lightning.cli import main
from ddpm_lightning.errors import InputError
from ddpm_lightning.trackers import in_run_folder
from ddpm_lightning.trackers.address import check_address
from ddpm_lightning.trackers.csv import CSV
from ddpm_lightning.trackers.server import why_silent
from ddpm_lightning.trackers.wandb import WandB
from tests.small import fail
from tests.test_cli import tiny_run

LOGGERS = "lightning.pytorch.loggers"
MEASURE = ("--ckpt_path=last", "--trainer.limit_test_batches=1", "--likelihood.evaluations=0")


class Closed(MemoryFileSystem):
    """A file system that lets nobody write, as a bucket without credentials."""

    protocol = "closed"

    def _open(self, *_, **__):
        raise PermissionError("Forbidden")

    def ls(self, *_, **__):
        raise PermissionError("Forbidden")


@pytest.fixture
def memory():
    """The files at memory://, by path."""
    fsspec.register_implementation("closed", Closed, clobber=True)
    store = fsspec.filesystem("memory").store
    store.clear()
    yield store
    store.clear()


def words(root: Path, logger: str, save_dir: str, *more: str) -> list[str]:
    setting = json.dumps({"class_path": logger, "init_args": {"save_dir": save_dir}})
    every = ("--trainer.log_every_n_steps=1", f"--trainer.logger={setting}")
    return ["fit", *tiny_run(root, *every, *more)]


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


@pytest.mark.slow
def test_what_measures_a_run_leaves_its_files_alone(tmp_path):
    run = tiny_run(tmp_path, "--trainer.logger=CSVLogger", "--trainer.log_every_n_steps=1")
    main(["fit", *run])
    files = [tmp_path / "metrics.csv", tmp_path / "hparams.yaml"]
    before = [file.read_bytes() for file in files]
    main(["test", *run, *MEASURE])
    main(["test", *run, *MEASURE])
    assert [file.read_bytes() for file in files] == before
    rows = table((tmp_path / "test" / "metrics.csv").read_text())
    assert len([row for row in rows if row["test/loss_ema"]]) == 2


def test_lines_of_a_fit_stay_in_its_columns_while_a_checkpoint_is_tested(tmp_path):
    fit = CSVLogger(tmp_path, name="", version="")
    CSV(fit, tmp_path).begin(None)
    fit.log_metrics({"train/loss": 1.0}, 1)
    fit.save()
    test = CSVLogger(tmp_path, name="", version="")
    CSV(test, tmp_path).begin(None, "test")
    test.log_metrics({"test/loss": 7.0}, 0)
    test.save()
    fit.log_metrics({"train/loss": 2.0}, 2)
    fit.save()
    assert table((tmp_path / "metrics.csv").read_text()) == [
        {"step": "1", "train/loss": "1.0"},
        {"step": "2", "train/loss": "2.0"},
    ]


@pytest.mark.slow
@pytest.mark.parametrize("logger", ["CSVLogger", "TensorBoardLogger"])
def test_a_logger_may_write_to_an_address(logger, memory, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(words(tmp_path / "run", logger, "memory://logs"))
    (folder,) = {str(Path(file).parent) for file in memory}
    assert yaml.safe_load(memory[f"{folder}/hparams.yaml"].getvalue())["optimizer"] == "Adam"
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("run", "data")] == []


@pytest.mark.slow
def test_a_resumed_run_keeps_its_lines_at_an_address(memory, tmp_path):
    place = ("--trainer.logger.name=", "--trainer.logger.version=")
    main(words(tmp_path, "CSVLogger", "memory://logs", *place))
    more = (*place, "--ckpt_path=last", "--trainer.max_steps=3")
    main(words(tmp_path, "CSVLogger", "memory://logs", *more))
    rows = table(memory["/logs/metrics.csv"].getvalue().decode())
    assert {row["step"] for row in rows if row["train/loss"]} == {"1", "2", "3"}


def test_an_address_that_cannot_be_written_to_is_one_line_before_training(
    memory, capsys, tmp_path
):
    line = fail(capsys, *words(tmp_path / "run", "CSVLogger", "closed://logs"))
    assert "nothing can be written into closed://logs: Forbidden" in line
    assert not (tmp_path / "run").exists()


def test_a_file_at_an_address_stays_when_the_address_is_tried(memory):
    fsspec.filesystem("memory").pipe_file("/logs/probe", b"mine")
    check_address("memory://logs")
    assert {name: file.getvalue() for name, file in memory.items()} == {"/logs/probe": b"mine"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("logger", "package"), [("WandbLogger", "wandb"), ("MLFlowLogger", "mlflow")]
)
def test_a_logger_of_local_files_refuses_an_address(logger, package, tmp_path):
    pytest.importorskip(package)
    setting = {"class_path": f"{LOGGERS}.{logger}", "init_args": {"save_dir": "s3://bucket/logs"}}
    with pytest.raises(InputError, match=f"{logger}: save_dir s3://bucket/logs is an address"):
        in_run_folder([setting], str(tmp_path))


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address of this machine at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{free.getsockname()[1]}"


def test_a_silent_wandb_server_is_named_with_the_way_on(nobody, monkeypatch):
    wandb = pytest.importorskip("wandb")
    settings = SimpleNamespace(base_url=nobody, api_key="a" * 40)
    monkeypatch.setattr(wandb, "setup", lambda: SimpleNamespace(settings=settings))
    logger = SimpleNamespace(_offline=False, _wandb_init={})
    with pytest.raises(InputError, match=f"no W&B server answers at {nobody}") as caught:
        WandB(logger, Path()).check()
    assert "--trainer.logger.offline true" in str(caught.value)


def test_a_server_that_refuses_an_address_answers(nobody):
    assert why_silent(nobody) is not None
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:  # knows no method: 501
        Thread(target=server.handle_request, daemon=True).start()
        assert why_silent(f"http://127.0.0.1:{server.server_port}") is None


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_wandb_that_its_settings_keep_offline_needs_no_server(mode, nobody, monkeypatch):
    wandb = pytest.importorskip("wandb")
    settings = SimpleNamespace(base_url=nobody, api_key="a" * 40)
    monkeypatch.setattr(wandb, "setup", lambda: SimpleNamespace(settings=settings))
    logger = SimpleNamespace(_offline=False, _wandb_init={"settings": {"mode": mode}})
    WandB(logger, Path()).check()


def test_what_speaks_another_language_than_http_is_no_server():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with server.accept()[0] as client:
                client.sendall(b"SSH-2.0-OpenSSH\r\n")

        Thread(target=answer, daemon=True).start()
        assert why_silent(f"http://127.0.0.1:{server.getsockname()[1]}") is not None
