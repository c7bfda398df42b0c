"""benchmarks.gpu_run: the command line trains, is stopped, goes on, draws and scores."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image


@pytest.mark.slow
def test_the_plan_runs_from_end_to_end(tmp_path):
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in range(10):
            folder = tmp_path / "images" / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(4):
                pixels = random.integers(256, size=(32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.jpg")
    words = "--trainer.accelerator cpu --model.net.channels 16 --model.net.multipliers [1,2] "
    words += "--model.net.blocks 1 --model.net.groups 8 --data.global_batch_size 4"
    command = [sys.executable, "-m", "benchmarks.gpu_run", "--root", str(tmp_path / "images")]
    command += ["--out", str(tmp_path / "out"), "--seconds", "4", "--n", "20", "--steps", "4"]
    command += ["--device", "cpu", *words.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert done.stdout.count("fit: code 143") == 2
    assert (tmp_path / "out" / "grid" / "grid.png").exists()
    assert "fd_colour" in done.stdout
