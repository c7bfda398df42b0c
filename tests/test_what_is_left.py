"""What a run goes on from, and what it leaves, where files are missing, damaged or foreign."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    ModelPruning,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment

from ddpm_lightning import run_folder
from ddpm_lightning.callbacks import RunCheckpoint
from ddpm_lightning.checkpoint import read_checkpoint
from ddpm_lightning.cli import main
from ddpm_lightning.errors import InputError
from ddpm_lightning.networks import UNet
from ddpm_lightning.run_folder import PREVIOUS, last_checkpoint, locked
from tests.small import fail, fit
from tests.test_cli import tiny_run

OFTEN = ("--checkpoint.every_n_steps=1", "--checkpoint.keep_all=true")


# ----------------------------------------------------------------- the last save is missing


@pytest.mark.parametrize(
    ("gone", "left"),
    [
        (["last.ckpt", "step_00000002.ckpt"], PREVIOUS),
        pytest.param(["last.ckpt"], "step_00000002.ckpt", marks=pytest.mark.slow),
    ],
)
def test_auto_goes_on_from_the_newest_that_is_left(gone, left, tmp_path, capsys):
    main(["fit", *tiny_run(tmp_path, *OFTEN, max_steps=2)])
    for name in gone:
        last_checkpoint(tmp_path).with_name(name).unlink()
    # Saves of a run lie further apart; step_00000001.ckpt is the same file as previous.ckpt.
    last_checkpoint(tmp_path).with_name("step_00000001.ckpt").unlink()
    capsys.readouterr()
    main(["fit", *tiny_run(tmp_path, "--ckpt_path=auto", max_steps=3)])
    out = capsys.readouterr().out
    assert f"goes on from {tmp_path / 'checkpoints' / left}" in out
    assert not list(tmp_path.glob("unsaved.*"))


@pytest.mark.slow
def test_events_stay_where_a_run_goes_on_from_its_previous_save(tmp_path):
    main(["fit", *tiny_run(tmp_path, *OFTEN, max_steps=2)])
    last_checkpoint(tmp_path).unlink()
    previous = last_checkpoint(tmp_path).with_name(PREVIOUS)
    main(["fit", *tiny_run(tmp_path, f"--ckpt_path={previous}", max_steps=3)])
    assert not list(tmp_path.glob("unsaved.*"))


@pytest.mark.slow
def test_a_new_run_is_refused_where_only_the_previous_save_is_left(tmp_path, capsys):
    main(["fit", *tiny_run(tmp_path, OFTEN[0], max_steps=2)])
    last_checkpoint(tmp_path).unlink()
    line = fail(capsys, "fit", *tiny_run(tmp_path))
    assert f"--ckpt_path {last_checkpoint(tmp_path).with_name(PREVIOUS)}" in line


# --------------------------------------------------------------------------- SLURM's signal


class Send(Callback):
    """Sends this process SIGUSR1 in its third step."""

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 2:
            os.kill(os.getpid(), signal.SIGUSR1)


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no such signal")
def test_slurms_signal_saves_the_step_and_ends(tmp_path, monkeypatch):
    # Only the kind of the environment matters; the rest would ask for srun.
    alone = LightningEnvironment()
    monkeypatch.setattr(SLURMEnvironment, "__init__", lambda self: None)
    for name in ("creates_processes_externally", "main_address", "main_port"):
        monkeypatch.setattr(SLURMEnvironment, name, getattr(LightningEnvironment, name))
    for name in ("world_size", "global_rank", "local_rank", "node_rank"):
        monkeypatch.setattr(SLURMEnvironment, name, lambda self, name=name: getattr(alone, name)())
    monkeypatch.setattr(SLURMEnvironment, "validate_settings", lambda *_: None)
    environment = SLURMEnvironment()
    environment.auto_requeue, environment.requeue_signal = True, signal.SIGUSR1
    before = signal.signal(signal.SIGUSR1, lambda *_: None)  # so that a fault is no kill
    try:
        with pytest.raises(SystemExit) as caught:
            fit(tmp_path, 9, Send(), run={"plugins": [environment]})
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert caught.value.code == 128 + signal.SIGUSR1
    assert read_checkpoint(last_checkpoint(tmp_path))["global_step"] == 3


# ------------------------------------------------------------------------- who holds a folder


def test_a_run_waits_for_the_children_of_a_killed_process(tmp_path):
    ready, written = os.pipe()
    child = os.fork()
    if not child:
        with locked(tmp_path):
            if not os.fork():  # as a data loader forks its workers
                os.write(written, b"!")
                time.sleep(1)
                os._exit(0)
            signal.pause()
    os.read(ready, 1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with locked(tmp_path):
        assert f"process {os.getpid()} on" in (tmp_path / "run.lock").read_text()


def test_the_lock_file_is_closed_before_it_is_removed_where_that_is_needed(tmp_path, monkeypatch):
    unlink = Path.unlink

    def windows_unlink(path, missing_ok=False):
        if path in (Path(os.readlink(f)) for f in Path("/proc/self/fd").iterdir() if f.exists()):
            raise PermissionError(f"{path} is open")
        unlink(path, missing_ok)

    monkeypatch.setattr(run_folder, "fcntl", None)
    monkeypatch.setattr(Path, "unlink", windows_unlink)
    with locked(tmp_path):
        assert (tmp_path / "run.lock").exists()
    assert not (tmp_path / "run.lock").exists()


# ------------------------------------------------------------------------------------ saves


@pytest.mark.slow
def test_a_damaged_save_does_not_take_the_place_of_a_sound_one(tmp_path):
    fit(tmp_path, 6)
    last = last_checkpoint(tmp_path)
    last.write_bytes(last.read_bytes()[:-1000])
    fit(tmp_path, 6, resume=last.with_name(PREVIOUS))
    assert read_checkpoint(last)["global_step"] == 6
    assert read_checkpoint(last.with_name(PREVIOUS), weights=True)["global_step"] == 3


@pytest.mark.slow
def test_the_save_that_a_run_goes_on_from_becomes_the_previous_one(tmp_path):
    fit(tmp_path, 3)
    fit(tmp_path, 4, resume=True)
    assert read_checkpoint(last_checkpoint(tmp_path).with_name(PREVIOUS))["global_step"] == 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_failed_save_under_another_name_says_what_is_saved(tmp_path):
    module = fit(tmp_path, 3)
    last = last_checkpoint(tmp_path)
    last.with_name("mine.ckpt.part").symlink_to("/dev/full")
    with pytest.raises(InputError, match=rf"step 3 is saved still: go on from {last} by"):
        module.trainer.save_checkpoint(last.with_name("mine.ckpt"))


def test_half_a_copy_of_a_save_is_not_kept(tmp_path, monkeypatch):
    def half(path, copy):
        Path(copy).write_bytes(Path(path).read_bytes()[:1000])
        raise KeyboardInterrupt

    def no_links(*_):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr("shutil.copyfile", half)
    with pytest.raises(SystemExit):
        fit(tmp_path, 2, run={"callbacks": [RunCheckpoint(2, keep_all=True)]})
    assert [path.name for path in (tmp_path / "checkpoints").glob("*.ckpt")] == ["last.ckpt"]


# ------------------------------------------------------------------- what is not exact is refused


@pytest.mark.parametrize(
    "callback",
    [EMAWeightAveraging(), StochasticWeightAveraging(1e-4), ModelPruning("l1_unstructured")],
)
def test_callbacks_that_replace_the_weights_before_the_last_save_are_refused(callback, tmp_path):
    with pytest.raises(InputError, match="replaces the trained weights at the end"):
        fit(tmp_path, 2, callback)


class Filed(UNet):
    """A network that names a file."""

    def __init__(self, data, out_channels, file: Path):
        super().__init__(data, out_channels, channels=8, blocks=1, groups=4)


@pytest.mark.slow
def test_a_network_with_a_path_goes_on(tmp_path):
    net = '{"class_path": "tests.test_what_is_left.Filed", "init_args": {"file": "/data/weights"}}'
    words = [w for w in tiny_run(tmp_path, f"--model.net={net}") if "model.net." not in w]
    main(["fit", *words])
    main(["fit", *words, "--ckpt_path=last", "--trainer.max_steps=3"])
    assert read_checkpoint(last_checkpoint(tmp_path))["global_step"] == 3


# ----------------------------------------------------------------------------- what is measured


class Losses(Callback):
    """Keeps each step's loss as ``monitor:`` has it, and the mean over its micro-batches."""

    def __init__(self):
        self.monitored, self.means, self._window = [], [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self._window.append(outputs["per_sample"])
        if len(self._window) == trainer.accumulate_grad_batches:
            self.means.append(torch.cat(self._window).mean().item())
            self.monitored.append(trainer.callback_metrics["train/loss"].item())
            self._window.clear()


def test_monitor_has_the_mean_over_the_micro_batches_of_a_step(tmp_path):
    losses = Losses()
    fit(tmp_path, 4, losses, run={"accumulate_grad_batches": 4, "log_every_n_steps": 2})
    assert losses.monitored == pytest.approx(losses.means, rel=1e-5)


class Own(Callback):
    """Logs a value of its own at every step."""

    def on_train_batch_end(self, trainer, pl_module, *_):
        pl_module.log("mine", float(trainer.global_step))


class Lines(CSVLogger):
    """Keeps the steps at which a value of the user's own was logged."""

    def __init__(self, folder):
        super().__init__(folder)
        self.steps = []

    def log_metrics(self, metrics, step=None):
        if "mine" in metrics:
            self.steps.append(step)


def test_a_value_of_the_users_own_is_logged_once_at_a_step_that_is_saved(tmp_path):
    logger = Lines(tmp_path)
    run = {"logger": logger, "log_every_n_steps": 1}
    fit(tmp_path, 7, run=run | {"callbacks": [Own(), RunCheckpoint(3)]})
    assert sorted(set(logger.steps)) == logger.steps
    assert len(logger.steps) == 7
