"""Progress in log files: a line an interval, nothing of what is quick, no bar drawn over."""

from __future__ import annotations

import time

import pytest

from ddpm_lightning.callbacks import StepLines
from ddpm_lightning.cli import main
from ddpm_lightning.progress import Lines, show_progress
from tests.small import fit
from tests.test_cli import tiny_run


def test_quick_work_prints_nothing(capsys):
    assert list(show_progress(range(3), desc="work")) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_long_work_prints_a_line_an_interval(capsys):
    with Lines(total=40, desc="work", initial=10, seconds=0.1) as lines:
        for _ in range(3):
            time.sleep(0.11)
            lines.update(5)
            lines.update(0)  # at once, so within the interval
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(",")[0] for line in told] == [f"work: {n} of 40" for n in (15, 20, 25)]
    assert told[-1].endswith(" left")


def test_what_is_disabled_prints_nothing(capsys):
    Lines(total=2, disable=True, seconds=0).update()
    assert capsys.readouterr().err == ""


def test_training_prints_steps_and_losses_by_line(tmp_path, capsys):
    fit(tmp_path, 3, StepLines(seconds=0), run={"enable_progress_bar": True})
    told = [one for one in capsys.readouterr().err.splitlines() if one.startswith("training:")]
    assert [one.partition(",")[0] for one in told] == [f"training: {n} of 3" for n in (1, 2, 3)]
    assert "train/loss " in told[-1]


@pytest.mark.slow
def test_a_run_without_a_terminal_draws_no_bar(tmp_path, capsys):
    words = [one for one in tiny_run(tmp_path) if "progress" not in one]
    main(["fit", *words])
    streams = capsys.readouterr()
    assert "\r" not in streams.err + streams.out
    assert "it/s" not in streams.err + streams.out


@pytest.mark.parametrize("command", ["sample"])
def test_a_command_without_a_terminal_draws_no_bar(command, tmp_path, capsys, lively_checkpoint):
    words = (f"--ckpt={lively_checkpoint}", "--n=2", "--sampler=DDIM", "--sampler.steps=2")
    main([command, *words, f"--out={tmp_path / 'a'}"])
    assert "\r" not in capsys.readouterr().err
