"""Two processes on the CPU train, draw and measure what one does."""

from __future__ import annotations

import atexit
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from PIL import Image, ImageChops

STEPS = 6


def run(folder: Path, cache: Path, devices: int) -> None:
    """A run with uneven shares: 5 samples a grid and 19 a metric, on two processes."""
    from ddpm_lightning.callbacks import GenerativeMetrics, LossByTimestep, SampleGrid
    from ddpm_lightning.diffusion import Linear, LossSecondMoment, Stratified
    from ddpm_lightning.diffusion.samplers import DDIM
    from ddpm_lightning.metrics import KID, LeNet
    from tests.small import TinyUNet, fit

    sampler = DDIM(2, eta=1.0)
    fit(
        folder,
        STEPS,
        SampleGrid(n=5, frames=2, sampler=sampler),
        GenerativeMetrics(
            LeNet(),
            n=19,
            metrics=["fd", KID(subset_size=10), "is"],
            weights="both",
            cache=str(cache),
            sampler=sampler,
            batch_size=4,
        ),
        LossByTimestep(),
        run={"devices": devices, "strategy": "ddp" if devices > 1 else "auto"}
        | {"val_check_interval": 3, "limit_val_batches": 2, "log_every_n_steps": 2},
        net=partial(TinyUNet, dropout=0.0),  # whose masks are each process' own
        conditional=True,
        schedule=Linear(25),
        timesteps=Stratified(LossSecondMoment(history=1)),
    )


def start(folder: Path, cache: Path, devices: int) -> None:
    command = [sys.executable, "-m", "tests.test_distributed", str(folder), str(cache)]
    done = subprocess.run([*command, str(devices)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "joined: False" in done.stdout  # else gloo's threads may abort the process as it ends


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory) -> tuple[Path, Path]:
    """The same run on one process and on two."""
    folder = tmp_path_factory.mktemp("runs")
    start(folder / "one", folder / "cache_of_one", 1)
    start(folder / "two", folder / "cache_of_two", 2)
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
    learned, ours = (c["ddpm_lightning"]["timesteps"] for c in (two, one))
    assert torch.equal(learned["counts"], ours["counts"])
    assert ours["counts"].sum() == STEPS * 8


@pytest.mark.slow
def test_two_processes_draw_the_grid_of_one(one_and_two):
    name = f"ddim2_eta1_ema_step_{STEPS:08d}.png"
    one, two = (Image.open(root / "samples" / name) for root in one_and_two)
    difference = np.asarray(ImageChops.difference(one, two))
    assert difference.max() <= 2  # of 255: sums in another order


def measured(root: Path) -> dict[tuple[str, str], list[float]]:
    results = json.loads((root / "metrics.json").read_text())
    names = [(result["metric"], result["samples"]["weights"]) for result in results]
    values = [[result["value"], result["floor"]["value"]] for result in results]
    return dict(zip(names, values, strict=True))


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
    torch.testing.assert_close(*map(safetensors.torch.load_file, (kept, other)))
    written = kept.stat().st_mtime_ns
    start(tmp_path / "run", kept.parent, 2)
    assert kept.stat().st_mtime_ns == written
    found, before = measured(tmp_path / "run"), measured(one)
    for name, values in before.items():
        assert found[name] == pytest.approx(values, rel=1e-3), name


if __name__ == "__main__":
    atexit.register(lambda: print("joined:", dist.is_initialized()))  # called after all others
    run(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
