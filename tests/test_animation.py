"""Animations as MP4, read back frame by frame."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm_lightning.cli import main
from ddpm_lightning.images import write_animation, write_mp4
from tests.small import fail

pytestmark = pytest.mark.slow


def frames_of(path: Path) -> tuple[dict, list[np.ndarray]]:
    """The facts and the frames uint8 [H, W, 3] of a video."""
    from imageio_ffmpeg import read_frames

    reader = read_frames(str(path))
    facts = next(reader)
    width, height = facts["size"]
    return facts, [np.frombuffer(one, np.uint8).reshape(height, width, 3) for one in reader]


@pytest.fixture
def colours():
    """Three frames of one colour each, of an odd size."""
    return [torch.tensor(c, dtype=torch.uint8).view(3, 1, 1).expand(3, 31, 45) for c in COLOURS]


COLOURS = ((250, 20, 20), (20, 250, 20), (20, 20, 250))


def test_an_mp4_has_the_frames_and_holds_the_last_for_a_second(tmp_path, colours):
    pytest.importorskip("imageio_ffmpeg")
    write_mp4(tmp_path / "a.mp4", colours, fps=5)
    facts, frames = frames_of(tmp_path / "a.mp4")
    assert facts["codec"].startswith("h264")
    assert (facts["fps"], facts["size"], len(frames)) == (5, (46, 32), 3 + 5)
    seen = [frames[min(k, 2)][15, 20].astype(int) for k in range(8)]
    assert np.abs(np.array(seen[:3]) - COLOURS).max() < 12


def test_the_same_frames_give_the_same_bytes(tmp_path, colours):
    pytest.importorskip("imageio_ffmpeg")
    for name in ("a", "b"):
        write_mp4(tmp_path / f"{name}.mp4", colours, fps=5)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_grey_frames_become_grey(tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    grey = torch.full((1, 32, 32), 200, dtype=torch.uint8)
    files = write_animation(tmp_path / "a", [grey, grey], 2, "both")
    assert [file.name for file in files] == ["a.gif", "a.mp4"]
    assert abs(int(frames_of(files[1])[1][0][3, 3, 0]) - 200) < 4


def test_sample_and_plot_write_mp4(tmp_path, lively_checkpoint):
    pytest.importorskip("imageio_ffmpeg")
    ckpt = ("--ckpt", str(lively_checkpoint), "--sampler=DDIM", "--sampler.steps=4")
    out = tmp_path / "samples"
    main(["sample", *ckpt, f"--out={out}", "--n=4", "--grid.frames=3", "--grid.animation=mp4"])
    main(["plot", "reverse", *ckpt, f"--out={tmp_path / 'a.mp4'}", "--n=2", "--frames=3"])
    assert len(frames_of(out / "trajectory.mp4")[1]) == 3 + 10
    assert len(frames_of(tmp_path / "a.mp4")[1]) == 3 + 5
    assert not list(out.glob("*.gif"))


def test_without_the_package_it_is_one_line(tmp_path, capsys, monkeypatch, lively_checkpoint):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "ddpm_lightning.images.animation.find_spec",
        lambda name: None if name == "imageio_ffmpeg" else found(name),
    )
    line = fail(
        capsys, "plot", "reverse", f"--ckpt={lively_checkpoint}", f"--out={tmp_path / 'a.mp4'}"
    )
    assert "pip install imageio-ffmpeg" in line
