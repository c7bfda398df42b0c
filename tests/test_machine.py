"""What the machine refuses is one line with what can be done, and exit code 2."""

from __future__ import annotations

import errno
import gzip
import json
import os
import subprocess
import sys

import pytest
import requests
import torch
from lightning.pytorch import Callback
from torch.optim.lr_scheduler import OneCycleLR

from ddpm_lightning.busy import busy_machine
from ddpm_lightning.cli import main
from ddpm_lightning.commands.machine import refusal_of
from ddpm_lightning.data import MNIST
from ddpm_lightning.data.image_data import ImageData
from ddpm_lightning.errors import InputError
from ddpm_lightning.evaluation.compare import compare_results
from ddpm_lightning.files import atomic_write
from ddpm_lightning.metrics import Result, Score
from ddpm_lightning.metrics.cache import default_cache
from ddpm_lightning.metrics.result import append_result, write_results
from ddpm_lightning.optimization import last_step, make_lr_schedule, refuse_short_schedule
from tests.faults import FAULTS, Skipped
from tests.make_data import write_mnist
from tests.small import tiny_data, tiny_module, trainer
from tests.test_cli import DIGITS, fail, shown, tiny_run


class One(ImageData):
    """One image."""

    native_shape, num_classes = (1, 8, 8), 1

    def read(self, split):
        return torch.zeros(1, 1, 8, 8, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)


# ---------------------------------------------------------------------- errors of the system


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left", "a.png"), "a.png: No space left; make room"),
        (OSError(errno.EROFS, "Read-only", "a"), "a: Read-only; name another folder"),
        (ModuleNotFoundError("No module named 'x'", name="x"), "install it: pip install x"),
        (MemoryError("7 TiB"), "there is not enough memory (7 TiB)"),
        (torch.OutOfMemoryError("CUDA out of memory"), "there is not enough memory"),
        (ImportError("no", name="ddpm_lightning.data.gone"), None),
        (FileNotFoundError(errno.ENOENT, "No such file", "a"), None),
        (OSError("a bug"), None),
        (ValueError("a bug"), None),
    ],
)
def test_an_error_of_the_machine_says_what_can_be_done(error, line):
    found = refusal_of(error)
    assert (found is None) if line is None else (line in found)


def test_the_cause_of_an_error_counts():
    error = RuntimeError("a library")
    error.__cause__ = OSError(errno.ENOSPC, "No space left", "a.png")
    assert "a.png: No space left" in (refusal_of(error) or "")


def test_an_import_that_failed_before_is_not_the_fault():
    error = KeyError("a bug")
    error.__context__ = ModuleNotFoundError("No module named 'x'", name="x")
    assert refusal_of(error) is None


def test_a_network_that_fails_is_not_the_loggers():
    error = requests.ConnectionError("no route to host")
    assert refusal_of(error) == (
        "requests: no route to host; the network or a server fails, so try again"
    )


def test_of_a_whole_page_that_a_server_answers_the_beginning_is_shown():
    Answer = type("MlflowException", (Exception,), {"__module__": "mlflow.exceptions"})
    error = Answer(
        "API request failed with error code 404: '<!DOCTYPE HTML>\n" + 99 * "<p>\n" + "'"
    )
    line = refusal_of(error) or ""
    assert line.startswith("mlflow: API request failed with error code 404")
    assert line.endswith("…; leave out --trainer.logger to go without")
    assert len(line) < 400


def test_a_failed_write_leaves_the_file_before_it_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("before")

    def fail_half_way() -> None:
        with atomic_write(path) as partial:
            partial.write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space") as caught:
        fail_half_way()
    assert caught.value.filename == str(path)
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("a.json", "before")]


CHEAP = ("full disk at results", "read only results", "full disk at an archive", "key twice")


@pytest.mark.slow
@pytest.mark.parametrize("name", CHEAP)
def test_a_fault_is_one_line_and_loses_nothing(name, tmp_path):
    try:
        seen = FAULTS[name][1](tmp_path)
    except Skipped as reason:
        pytest.skip(str(reason))
    assert (seen.code, seen.lost) == (2, "")
    assert seen.line.startswith("error: ")


@pytest.mark.slow
def test_every_fault_of_the_table_is_one_line_and_loses_nothing():
    done = subprocess.run([sys.executable, "-m", "tests.faults"], timeout=1200, check=False)
    assert done.returncode == 0


def test_without_a_home_folder_nothing_is_kept_and_that_is_said(monkeypatch):
    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 123_456_789)
    with pytest.warns(UserWarning, match="no features are kept.*Set XDG_CACHE_HOME"):
        assert default_cache() is None


# ------------------------------------------------------------------ settings of the trainer


def test_a_limit_of_one_batch_is_one_batch(capsys, tmp_path):
    (tmp_path / "l.yaml").write_text(
        "trainer: {limit_test_batches: 1, limit_predict_batches: 1.0}"
    )
    flags = ("--trainer.limit_val_batches=1", "--trainer.limit_train_batches=0.5")
    config = f"--config={tmp_path / 'l.yaml'}"
    text = shown(capsys, "fit", "--config", DIGITS, *flags, config, "--print_config")
    lines = {line.strip() for line in text.splitlines() if "limit_" in line}
    assert lines == {
        "limit_val_batches: 1",
        "limit_train_batches: 0.5",
        "limit_test_batches: 1",
        "limit_predict_batches: 1.0",
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--trainer.check_val_every_n_epoch=0"], "check_val_every_n_epoch 0: give 1 or more"),
        (["--trainer.barebones=true"], "trainer.barebones true runs without"),
        (["--trainer.enable_checkpointing=false"], "by --checkpoint.every_n_steps"),
        (["--trainer.callbacks+=LearningRateFinder"], "give --model.optimizer.lr"),
        (["--trainer.callbacks+=BatchSizeFinder"], "divide the step by --trainer.accum"),
    ],
)
def test_what_cannot_work_here_is_refused_with_what_can(more, message, capsys, tmp_path):
    assert message in fail(capsys, "fit", *tiny_run(tmp_path / "run", *more))


@pytest.mark.parametrize(
    ("kind", "arguments", "warmup", "longest"),
    [
        ("OneCycleLR", {"max_lr": 0.1, "total_steps": 4}, 0, 4),
        ("OneCycleLR", {"max_lr": 0.1, "total_steps": 4}, 3, 7),
        ("PolynomialLR", {"total_iters": 5}, 0, 5),
        (type("Mine", (OneCycleLR,), {}), {"max_lr": 0.1, "total_steps": 4}, 0, 4),
    ],
)
def test_a_schedule_is_refused_for_runs_in_which_it_would_end(kind, arguments, warmup, longest):
    make = getattr(torch.optim.lr_scheduler, kind) if isinstance(kind, str) else kind
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    schedule = make_lr_schedule(optimizer, warmup, lambda one: make(one, **arguments))
    refuse_short_schedule(schedule, warmup, longest)
    with pytest.raises(InputError, match=f"ends at step {longest}, before the run does"):
        refuse_short_schedule(schedule, warmup, longest + 1)
    for _ in range(longest):  # torch agrees: so many steps can be taken
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(
    ("max_steps", "max_epochs", "last"), [(5, 1, 5), (20, 1, 8), (-1, 2, 16), (20, -1, 20)]
)
def test_the_last_step_is_that_of_the_end_that_comes_first(max_steps, max_epochs, last, tmp_path):
    seen = []

    class Seen(Callback):
        def on_train_start(self, trainer, pl_module):
            seen.append(last_step(trainer))
            trainer.should_stop = True

    run = {"callbacks": [Seen()], "max_epochs": max_epochs, "limit_train_batches": None}
    trainer(tmp_path, max_steps, **run).fit(tiny_module(), tiny_data())
    assert seen == [last]


# ---------------------------------------------------------------------------- numbers


def test_an_error_that_is_not_known_is_null_and_is_no_noise(tmp_path):
    for name, value in (("a", 1.0), ("b", 2.0)):
        score = Score(value, float("nan"), settings={})
        write_results(tmp_path / name / "results.json", [Result("bpd", score, {"n": 1})])
    (record,) = json.loads((tmp_path / "a" / "results.json").read_text())
    assert record["standard_error"] is None
    assert "its noise is not known" in compare_results(tmp_path / "a", tmp_path / "b")
    old = (
        (tmp_path / "b" / "results.json")
        .read_text()
        .replace('"standard_error": null', '"standard_error": NaN')
    )
    (tmp_path / "b" / "results.json").write_text(old)
    line = compare_results(tmp_path / "a", tmp_path / "b")
    assert "its noise is not known" in line
    assert "nan" not in line


@pytest.mark.slow
def test_the_likelihood_of_one_test_sample_has_no_error(tmp_path, capsys):
    words = tiny_run(tmp_path, "--data=tests.test_machine.One", max_steps=1)
    words = [word for word in words if "global_batch_size" not in word]
    main(["fit", *words, "--data.global_batch_size=4"])
    more = ["--likelihood.evaluations=2", "--likelihood.flow_n=1", "--likelihood.flow_steps=2"]
    main(["test", *words, "--data.global_batch_size=4", "--ckpt_path=last", *more])
    text = (tmp_path / "metrics.json").read_text()
    assert "NaN" not in text
    assert [record["standard_error"] for record in json.loads(text)] == [None, None]
    output = capsys.readouterr().out
    assert "nan" not in output
    assert "stderr" not in output


@pytest.mark.parametrize("content", ["", "{", "[1]", '[{"format": 1}]', "\xff", "{}", "[" * 9999])
def test_damaged_results_are_named_and_left_alone(content, tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text(content, encoding="latin1")
    with pytest.raises(InputError, match=r"metrics\.json is damaged"):
        append_result(path, Result("bpd", Score(1.0), {"n": 1}, step=1))
    assert path.read_text(encoding="latin1") == content


# ------------------------------------------------------------------------------- .gz


def test_mnist_is_read_gzipped_as_it_is_plain(tmp_path):
    write_mnist(tmp_path / "plain")
    write_mnist(tmp_path / "gzipped")
    for path in list((tmp_path / "gzipped").rglob("*ubyte")):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    for split in ("train", "test"):
        a, b = (
            MNIST(str(tmp_path / name), download=False, held_out=20).images(split)
            for name in ("plain", "gzipped")
        )
        assert all(torch.equal(*pair) for pair in zip(a, b, strict=True))


@pytest.mark.parametrize(
    ("device", "load", "threads", "told"),
    [
        ("cpu", 6.0, 2, True),
        ("cpu", 2.0, 2, False),
        ("cpu", 6.0, 1, False),
        ("meta", 6.0, 2, False),
    ],
)
def test_threads_on_a_busy_machine_are_told_of(device, load, threads, told, monkeypatch):
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    assert ("OMP_NUM_THREADS=1" in busy_machine(torch.device(device))) is told
