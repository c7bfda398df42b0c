"""Progress in log files: a line an interval, nothing of what is quick, no bar drawn over."""

from __future__ import annotations

import signal
import time

import pytest
from lightning.pytorch import Callback

from ddpm_lightning.callbacks import StepLines, StepProgressBar
from ddpm_lightning.callbacks.stop_signals import Stopped
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


@pytest.mark.parametrize(("seconds", "shown"), [(0, {1, 2, 3}), (60, {1, 3})])
def test_a_bar_shows_the_first_step_and_slow_ones(tmp_path, capsys, seconds, shown):
    fit(tmp_path, 3, StepProgressBar(seconds=seconds), run={"enable_progress_bar": True})
    bars = capsys.readouterr().out.split("training:")
    assert {
        n for n in (1, 2, 3) if any(f" {n}/3 [" in bar and "loss" in bar for bar in bars)
    } == shown


def test_a_bar_shows_the_first_step_of_several_micro_batches(tmp_path, capsys):
    run = {"enable_progress_bar": True, "accumulate_grad_batches": 4}
    fit(tmp_path, 3, StepProgressBar(seconds=60), run=run)
    assert " 1/3 [" in capsys.readouterr().out


def test_a_bar_that_is_never_drawn_lets_a_run_train(tmp_path, capsys):
    module = fit(tmp_path, 3, StepProgressBar(refresh_rate=0), run={"enable_progress_bar": True})
    assert module.trainer.global_step == 3
    assert "training:" not in capsys.readouterr().out


class _Interrupts(Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 2:
            signal.raise_signal(signal.SIGINT)


def test_a_bar_ends_at_the_step_of_a_stop_before_its_message(tmp_path, capsys):
    bar = StepProgressBar(seconds=60)
    with pytest.raises(Stopped):
        fit(tmp_path, 5, bar, _Interrupts(), run={"enable_progress_bar": True})
    drawn, _, message = capsys.readouterr().out.partition("stopped by SIGINT after step 2")
    assert " 2/5 [" in drawn.split("training:")[-1]
    assert "training:" not in message


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
