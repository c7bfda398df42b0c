"""Two processes on the CPU: a whole run, under a time-out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image, ImageChops

CONFIG = Path(__file__).parent.parent / "configs" / "digits.yaml"
STEPS = 6
TWO = ("--trainer.strategy=ddp", "--trainer.devices=2")


def fit(root: Path, cache: Path, *more: str) -> None:
    """Run the command line; uneven shares: 5 samples a grid, 19 a metric, on two processes."""
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
                "n": 19,
                "batch_size": 4,
                "metrics": ["fd", {"class_path": "KID", "init_args": {"subset_size": 10}}, "is"],
                "weights": "both",
                "cache": str(cache),
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
    fit(folder / "one", folder / "cache_of_one")
    fit(folder / "two", folder / "cache_of_two", *TWO)
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


def measured(root: Path) -> dict[tuple[str, str], list[float]]:
    results = json.loads((root / "metrics.json").read_text())
    return {
        (r["metric"], r["samples"]["weights"]): [r["value"], r["floor"]["value"]] for r in results
    }


@pytest.mark.slow
def test_two_processes_measure_the_distances_of_one(one_and_two):
    one, two = map(measured, one_and_two)
    assert len(one) == 6
    assert one.keys() == two.keys()
    for name, values in one.items():
        assert two[name] == pytest.approx(values, rel=1e-3), name


@pytest.mark.slow
def test_two_processes_find_the_features_that_one_has_kept(one_and_two, tmp_path):
    one, _ = one_and_two
    (kept,) = (one.parent / "cache_of_one").iterdir()
    (other,) = (one.parent / "cache_of_two").iterdir()
    assert kept.name == other.name
    torch.testing.assert_close(
        safetensors.torch.load_file(kept), safetensors.torch.load_file(other)
    )
    written = kept.stat().st_mtime_ns
    fit(tmp_path / "run", kept.parent, *TWO)
    assert kept.stat().st_mtime_ns == written
    found, before = measured(tmp_path / "run"), measured(one)
    for name, values in before.items():
        assert found[name] == pytest.approx(values, rel=1e-3), name
