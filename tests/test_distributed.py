"""Two processes on the CPU: a whole run, under a time-out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops

CONFIG = Path(__file__).parent.parent / "configs" / "digits.yaml"
STEPS = 6


def fit(root: Path, *more: str) -> None:
    """Run the command line; uneven shares: 5 samples a grid, 9 a metric, on two processes."""
    callbacks = [
        {
            "class_path": "SampleGrid",
            "init_args": {"n": 5, "frames": 2, "sampler": ddim(2, eta=1.0)},
        },
        {
            "class_path": "GenerativeMetrics",
            "init_args": {
                "extractor": {"class_path": "LeNet"},
                "every_n_steps": STEPS,
                "n": 9,
                "sampler": ddim(2, eta=1.0),
            },
        },
        {"class_path": "LossByTimestep"},
    ]
    command = [
        *(sys.executable, "-m", "ddpm_lightning", "fit", f"--config={CONFIG}"),
        "--model.net.channels=8",
        "--model.net.groups=4",
        "--model.net.blocks=1",
        "--data.global_batch_size=8",
        "--trainer.accelerator=cpu",
        f"--trainer.max_steps={STEPS}",
        "--trainer.val_check_interval=3",
        "--trainer.log_every_n_steps=2",
        "--trainer.enable_progress_bar=false",
        f"--trainer.default_root_dir={root}",
        f"--trainer.callbacks={json.dumps(callbacks)}",
        *more,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def ddim(steps: int, eta: float) -> dict:
    return {"class_path": "DDIM", "init_args": {"steps": steps, "eta": eta}}


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory) -> tuple[Path, Path]:
    """The same run on one process and on two."""
    folder = tmp_path_factory.mktemp("runs")
    fit(folder / "one")
    fit(folder / "two", "--trainer.strategy=ddp", "--trainer.devices=2")
    return folder / "one", folder / "two"


@pytest.mark.slow
def test_two_processes_train_as_one_on_the_same_global_batch(one_and_two):
    # Were the noise of both processes the same, every weight would differ.
    one, two = (
        torch.load(root / "checkpoints" / "last.ckpt", weights_only=True) for root in one_and_two
    )
    assert two["global_step"] == STEPS
    for name, value in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_two_processes_draw_the_grid_of_one(one_and_two):
    one, two = (
        Image.open(root / "samples" / f"ddim2_eta1_ema_step_{STEPS:08d}.png")
        for root in one_and_two
    )
    difference = ImageChops.difference(one, two).getextrema()
    assert max(high for _, high in difference) <= 2  # of 255: sums in another order


@pytest.mark.slow
def test_two_processes_measure_the_distance_of_one(one_and_two):
    one, two = (
        json.loads((root / "metrics.json").read_text())[-1]["value"] for root in one_and_two
    )
    assert two == pytest.approx(one, rel=1e-3)
