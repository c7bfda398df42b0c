"""plot loss: what a run has logged is read back, and drawn whole and from near."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image

from ddpm_lightning.cli import main
from ddpm_lightning.errors import InputError
from ddpm_lightning.plots.loss import loss_figure
from ddpm_lightning.trackers.scalars import logged
from tests.small import fail

LOGGERS = {
    "csv": lambda folder: CSVLogger(folder, "", ""),
    "tensorboard": lambda folder: TensorBoardLogger(folder, "", ""),
}


def write(logger, values: dict[int, float], tag: str = "train/loss") -> None:
    for step, value in values.items():
        logger.log_metrics({tag: value}, step)
    logger.log_metrics({"val/loss": 7.0}, max(values))
    logger.save()
    logger.finalize("success")


@pytest.mark.parametrize("kind", LOGGERS)
def test_logged_values_are_read_back_by_step(kind, tmp_path):
    values = {step: 1 / step for step in range(10, 2000, 10)}
    write(LOGGERS[kind](tmp_path), values)
    assert logged(tmp_path, "train/loss") == pytest.approx(values, rel=1e-6)


def test_steps_that_a_resumed_run_did_again_have_its_values(tmp_path):
    write(TensorBoardLogger(tmp_path, "", ""), {1: 5.0, 2: 4.0, 3: 3.0})
    write(TensorBoardLogger(tmp_path, "", "", filename_suffix=".b"), {2: 2.5, 3: 2.0, 4: 1.0})
    assert logged(tmp_path, "train/loss") == {1: 5.0, 2: 2.5, 3: 2.0, 4: 1.0}


def test_a_line_cut_by_a_kill_and_paths_of_pictures_are_no_numbers(tmp_path):
    rows = [
        ["step", "train/loss", "samples"],
        ["1", "0.5", "a.png"],
        ["2", "", "b.png"],
        ["", "0."],
    ]
    with (tmp_path / "metrics.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    assert logged(tmp_path, "train/loss") == {1: 0.5}
    with pytest.raises(InputError, match="has no samples"):
        logged(tmp_path, "samples")


def test_the_crop_holds_the_last_steps_and_no_other():
    values = {step: 1.0 + step for step in range(0, 5000, 10)}
    whole, crop = loss_figure(values, "train/loss", last=1000).axes
    steps, y = crop.lines[0].get_data()
    assert (steps[0], steps[-1], len(steps)) == (4000, 4990, 100)
    np.testing.assert_allclose(y, steps + 1.0)
    assert len(whole.lines[0].get_xdata()) == 500
    # The running mean of a straight line is the line itself, half a window ago.
    steps, mean = whole.lines[1].get_data()
    np.testing.assert_allclose(mean, steps + 1.0 - 10 * (10 - 1) / 2)


def test_a_run_of_the_last_steps_alone_is_drawn_once():
    assert len(loss_figure({step: 1.0 for step in range(1, 1001)}, "x", last=1000).axes) == 1
    assert len(loss_figure({step: 1.0 for step in range(1, 1002)}, "x", last=1000).axes) == 2


def test_a_loss_below_zero_is_drawn_on_a_linear_axis():
    scales = [loss_figure({1: 1.0, 2: low}, "x").axes[0].get_yscale() for low in (0.5, -0.5)]
    assert scales == ["log", "linear"]


def test_the_command_draws_a_run(tmp_path):
    write(CSVLogger(tmp_path / "run", "", ""), {1: 0.5, 2: 0.4})
    out = tmp_path / "loss.png"
    main(["plot", "loss", f"--run={tmp_path / 'run'}", f"--out={out}"])
    with Image.open(out) as image:
        assert image.size == (690, 480)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--run=nothing"], "nothing has neither a metrics.csv nor TensorBoard's events"),
        (["--run=run", "--tag=train/los"], "did you mean train/loss?"),
        (["--run=run", "--last=0"], "last=0: give 1 or more"),
    ],
)
def test_mistakes_are_one_line(flags, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(CSVLogger(Path("run"), "", ""), {1: 0.5})
    assert message in fail(capsys, "plot", "loss", *flags, "--out=a.png")
    assert not Path("a.png").exists()
