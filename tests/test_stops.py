"""A stopped run, when it goes on, ends like one that was never stopped; who may write a folder."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import GradientAccumulationScheduler, LearningRateMonitor, Timer
from lightning.pytorch.loggers import TensorBoardLogger

from ddpm_lightning.callbacks import LossByTimestep, RunCheckpoint, SampleGrid, TrainingMonitor
from ddpm_lightning.checkpoint import read_checkpoint
from ddpm_lightning.cli import main
from ddpm_lightning.diffusion.samplers import DDIM
from ddpm_lightning.errors import InputError
from ddpm_lightning.run_folder import last_checkpoint, locked
from tests.outcome import differences, logged, outcome
from tests.small import Stop, assert_same_weights, fail, fit
from tests.soak import MOMENTS, soak
from tests.test_cli import tiny_run

STEPS = 11  # 8 make an epoch


def train(folder: Path, *callbacks: Callback, steps: int = STEPS, accumulate: int = 2, **more):
    """Begin a run or go on with it: saves every 3 steps, validation every 6, grids every 4."""
    run = {
        "logger": TensorBoardLogger(folder, name="", version="", default_hp_metric=False),
        "accumulate_grad_batches": accumulate,
        "val_check_interval": 6 * accumulate,
        "check_val_every_n_epoch": None,
        "limit_val_batches": 2,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 2,
    }
    run["callbacks"] = [
        LossByTimestep(),
        LearningRateMonitor(),
        *callbacks,
        SampleGrid(every_n_steps=4, n=2, columns=2, frames=2, sampler=DDIM(2)),
        TrainingMonitor(),
        RunCheckpoint(every_n_steps=3),
    ]
    resume = last_checkpoint(folder).exists()
    return fit(folder, steps, resume=resume, run=run | more)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a run leaves behind that is never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    train(folder)
    return outcome(folder)


@pytest.mark.parametrize(
    ("hook", "step"),
    [
        # the first validation, and no other before
        pytest.param("on_validation_batch_start", 6, marks=pytest.mark.slow),
        ("on_train_batch_end", 8),  # before a grid, at the end of an epoch
        # all of the step is logged, nothing is saved
        pytest.param("on_save_checkpoint", 6, marks=pytest.mark.slow),
        # behind a save that follows a validation
        pytest.param("on_train_batch_start", 6, marks=pytest.mark.slow),
        # in a window of losses that began before the save
        pytest.param("on_train_batch_start", 8, marks=pytest.mark.slow),
        # before the last pictures
        pytest.param("on_train_end", STEPS, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_goes_on_leaves_what_one_without_a_stop_leaves(tmp_path, whole, hook, step):
    with pytest.raises(RuntimeError, match="power cut"):
        train(tmp_path, Stop(hook, step))
    train(tmp_path)
    assert differences(outcome(tmp_path), whole) == []


@pytest.mark.slow
def test_a_validation_after_a_resume_sees_every_batch(tmp_path):
    # Of a run whose earlier validation is in the save: Lightning adds its batches to the next one.
    train(tmp_path / "whole", steps=13)
    with pytest.raises(RuntimeError, match="power cut"):
        train(tmp_path / "parts", Stop("on_validation_batch_start", 12), steps=13)
    train(tmp_path / "parts", steps=13)
    assert differences(logged(tmp_path / "parts"), logged(tmp_path / "whole")) == []


@pytest.mark.slow
def test_runs_stopped_from_outside_end_alike(tmp_path):
    assert soak(len(MOMENTS), 3, tmp_path) == len(MOMENTS)


@pytest.mark.slow
def test_two_processes_stop_together_and_go_on(tmp_path):
    assert soak(1, 4, tmp_path, ranks=2, stops=["SIGTERM"]) == 1


# ----------------------------------------------------------------------------- signals


class Kill(Callback):
    """Sends this process a signal at a hook."""

    def __init__(self, sent: int, hook: str = "on_train_batch_start", step: int = 2) -> None:
        def kill(trainer, *_):
            if trainer.global_step == step:
                os.kill(os.getpid(), sent)

        setattr(self, hook, kill)


def kill_at(sent: int, hook: str, step: int) -> str:
    words = f'"init_args": {{"sent": {sent:d}, "hook": "{hook}", "step": {step}}}'
    return f'--trainer.callbacks=[{{"class_path": "tests.test_stops.Kill", {words}}}]'


@pytest.mark.parametrize(
    ("sent", "code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)],
)
def test_a_signal_saves_the_step_and_says_how_to_go_on(sent, code, tmp_path, capsys):
    before = signal.getsignal(sent)
    with pytest.raises(SystemExit) as caught:
        main(["fit", *tiny_run(tmp_path, kill_at(sent, "on_train_batch_start", 4), max_steps=9)])
    assert caught.value.code == code
    assert read_checkpoint(last_checkpoint(tmp_path))["global_step"] == 5
    assert f"stopped by {signal.Signals(sent).name} after step 5" in capsys.readouterr().out
    assert signal.getsignal(sent) == before


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_validation(sent, code, tmp_path, tiny_checkpoint):
    kill = kill_at(sent, "on_validation_batch_start", 0)
    words = tiny_run(tmp_path, kill, f"--ckpt_path={tiny_checkpoint}", "--data.subset=64")
    with pytest.raises(SystemExit) as caught:
        main(["validate", *words])
    assert caught.value.code == code


# ------------------------------------------------------------- stops that the trainer makes


class Halt(Callback):
    """Asks the trainer to stop in the middle of an accumulation window."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        trainer.should_stop |= batch_idx == 7  # of four in a window


@pytest.mark.slow
def test_a_stop_within_a_window_is_one_at_the_end_of_the_step(tmp_path):
    run = {"accumulate_grad_batches": 4}
    fit(tmp_path / "parts", 6, Halt(), run={"callbacks": [Halt(), RunCheckpoint()]} | run)
    assert read_checkpoint(last_checkpoint(tmp_path / "parts"))["global_step"] == 2
    resumed = fit(tmp_path / "parts", 6, resume=True, run=run)
    assert_same_weights(resumed, fit(tmp_path / "whole", 6, run=run))


@pytest.mark.slow
def test_the_time_of_earlier_processes_does_not_count(tmp_path):
    spent = Timer({"hours": 1})
    spent.load_state_dict({"time_elapsed": {"train": 7200}})
    spent.on_fit_start = lambda *_: None
    fit(tmp_path, 6, spent)
    assert read_checkpoint(last_checkpoint(tmp_path))["global_step"] == 1
    assert fit(tmp_path, 6, Timer({"hours": 1}), resume=True).trainer.global_step == 6


def test_a_schedule_of_accumulation_is_refused_with_the_flag(tmp_path):
    with pytest.raises(InputError, match=r"--trainer\.accumulate_grad_batches N"):
        fit(tmp_path, 2, GradientAccumulationScheduler({0: 2}))


# ------------------------------------------------------------------ what is logged, and changes


@pytest.mark.slow
def test_the_logged_loss_is_the_mean_over_the_micro_batches(tmp_path):
    found = []
    for accumulate in (1, 4):
        train(tmp_path / str(accumulate), steps=4, accumulate=accumulate)
        found.append(logged(tmp_path / str(accumulate)))
    for step in (2, 4):
        one, four = (values[f"train/loss at {step}"] for values in found)
        assert four == pytest.approx(one, rel=1e-2)  # dropout differs by micro-batch


@pytest.mark.slow
def test_double_precision_goes_on_exactly(tmp_path):
    run = {"precision": "64-true"}
    fit(tmp_path / "parts", 3, run=run)
    resumed = fit(tmp_path / "parts", 6, resume=True, run=run)
    assert next(resumed.parameters()).dtype == torch.float64
    assert_same_weights(resumed, fit(tmp_path / "whole", 6, run=run))


@pytest.mark.slow
def test_precision_and_compilation_may_change_and_are_told(tmp_path, capsys):
    main(["fit", *tiny_run(tmp_path)])
    changed = ("--trainer.precision=bf16-mixed", "--model.compile=true", "--ckpt_path=last")
    with torch._dynamo.config.patch(disable=True):  # because compiling takes minutes
        main(["fit", *tiny_run(tmp_path, *changed, max_steps=3)])
    out = capsys.readouterr().out
    assert "from here on: precision bf16-mixed, was 32-true" in out
    assert "from here on: compile True, was False" in out


# ---------------------------------------------------------------------- who writes a folder


@pytest.mark.slow
def test_auto_starts_goes_on_and_ends(tmp_path, capsys):
    for steps in (1, 2, 2):
        with pytest.MonkeyPatch.context():
            words = tiny_run(tmp_path, "--ckpt_path=auto", max_steps=steps)
            if steps == 2 and last_step(tmp_path) == 2:
                with pytest.raises(SystemExit) as caught:
                    main(["fit", *words])
                assert not caught.value.code
            else:
                main(["fit", *words])
                assert last_step(tmp_path) == steps
    assert "stands at step 2 already: the run is finished" in capsys.readouterr().out


def last_step(folder: Path) -> int:
    return int(read_checkpoint(last_checkpoint(folder))["global_step"])


def test_a_second_run_is_refused_with_the_process_of_the_first(tmp_path, capsys):
    with locked(tmp_path / "run"):
        line = fail(capsys, "fit", *tiny_run(tmp_path / "run"))
    assert f"in use by process {os.getpid()} on" in line
    assert not (tmp_path / "run").exists()  # for nothing was written


def test_the_lock_of_a_killed_process_is_gone(tmp_path):
    ready, written = os.pipe()
    child = os.fork()
    if not child:
        with locked(tmp_path):
            os.write(written, b"!")
            signal.pause()
    os.read(ready, 1)
    with pytest.raises(InputError, match=f"process {child} on"), locked(tmp_path):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with locked(tmp_path):
        assert str(os.getpid()) in (tmp_path / "run.lock").read_text()
    assert not (tmp_path / "run.lock").exists()


def test_more_processes_than_train_together_are_refused(tmp_path, capsys, monkeypatch):
    started = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "1"}
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    line = fail(capsys, "fit", *tiny_run(tmp_path / "run"))
    assert "torchrun started 2 processes" in line
    assert "--trainer.devices" in line


@pytest.mark.slow
def test_events_of_a_start_that_saved_nothing_are_renamed(tmp_path, capsys):
    kill = kill_at(signal.SIGUSR1, "on_train_batch_start", 1)
    previous = signal.signal(signal.SIGUSR1, lambda *_: 1 / 0)
    try:
        with pytest.raises(ZeroDivisionError):
            main(["fit", *tiny_run(tmp_path, kill, "--trainer.log_every_n_steps=1")])
    finally:
        signal.signal(signal.SIGUSR1, previous)
    (old,) = tmp_path.glob("events.out.tfevents.*")
    main(["fit", *tiny_run(tmp_path)])
    assert f"{old} is of a start that saved nothing" in capsys.readouterr().out
    assert old not in set(tmp_path.glob("events.out.tfevents.*"))
    assert len(list(tmp_path.glob("unsaved.*"))) == 1
