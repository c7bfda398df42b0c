"""What a run goes on from, and what it leaves, where files are missing, damaged or foreign."""

from __future__ import annotations

import os
import signal

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment

from ddpm_lightning.checkpoint import read_checkpoint
from ddpm_lightning.cli import main
from ddpm_lightning.run_folder import PREVIOUS, last_checkpoint
from tests.small import fail, fit
from tests.test_cli import tiny_run

OFTEN = ("--checkpoint.every_n_steps=1", "--checkpoint.keep_all=true")


# ----------------------------------------------------------------- the last save is missing


@pytest.mark.parametrize(
    ("gone", "left"),
    [
        (["last.ckpt", "step_00000002.ckpt"], PREVIOUS),
        (["last.ckpt"], "step_00000002.ckpt"),
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


def test_events_stay_where_a_run_goes_on_from_its_previous_save(tmp_path):
    main(["fit", *tiny_run(tmp_path, *OFTEN, max_steps=2)])
    last_checkpoint(tmp_path).unlink()
    previous = last_checkpoint(tmp_path).with_name(PREVIOUS)
    main(["fit", *tiny_run(tmp_path, f"--ckpt_path={previous}", max_steps=3)])
    assert not list(tmp_path.glob("unsaved.*"))


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
