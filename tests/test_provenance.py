"""A picture says what made it, and samples lie beside the settings that repeat them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from ddpm_lightning.callbacks import SampleGrid
from ddpm_lightning.cli import main
from ddpm_lightning.diffusion.samplers import DDIM
from ddpm_lightning.images import write_png
from tests.small import logged_fit


def said(path: Path) -> dict:
    return dict(Image.open(path).text)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory, lively_checkpoint) -> Path:
    """The folder of three samples with a setting of every kind."""
    out = tmp_path_factory.mktemp("provenance") / "a"
    sampler = ("--sampler=DDIM", "--sampler.steps=3", "--sampler.eta=0.5")
    more = ("--guidance=2", "--labels=[1,7]", "--seed=5", "--grid.columns=2")
    main(["sample", f"--ckpt={lively_checkpoint}", f"--out={out}", "--n=3", *sampler, *more])
    return out


def test_a_sample_says_what_made_it(drawn, lively_checkpoint):
    text = said(drawn / "000002.png")
    assert text["checkpoint"] == str(lively_checkpoint)
    assert (text["step"], text["seed"], text["sample"]) == ("2", "5", "2")
    assert text["weights"] == "ema"
    sampler = json.loads(text["sampler"])
    assert sampler["class_path"].endswith("DDIM")
    assert (sampler["init_args"]["steps"], sampler["init_args"]["eta"]) == (3, 0.5)
    assert json.loads(text["guidance"])["scale"] == 2


def test_the_overview_says_it_but_for_the_sample(drawn):
    one, all_of_them = said(drawn / "000000.png"), said(drawn / "grid.png")
    assert one.pop("sample") == "0"
    assert all_of_them == one


def test_the_config_beside_the_samples_repeats_them(drawn, tmp_path):
    main(["sample", f"--config={drawn / 'config.yaml'}", f"--out={tmp_path / 'b'}"])
    files = sorted(path.name for path in drawn.iterdir())
    assert files == sorted(path.name for path in (tmp_path / "b").iterdir())
    for name in files:
        assert (tmp_path / "b" / name).read_bytes() == (drawn / name).read_bytes()


@pytest.mark.slow
def test_the_config_of_an_archive_lies_beside_it(lively_checkpoint, tmp_path):
    words = (f"--ckpt={lively_checkpoint}", "--n=2", "--sampler=DDIM", "--sampler.steps=2")
    main(["sample", *words, f"--out={tmp_path / 'a.npz'}"])
    main(["sample", f"--config={tmp_path / 'a.npz.yaml'}", f"--out={tmp_path / 'b.npz'}"])
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_a_grid_of_a_run_says_its_step_and_sampler(tmp_path):
    grid = SampleGrid(n=2, columns=2, every_n_steps=1, sampler=DDIM(2), seed=3)
    logged_fit(tmp_path, 1, grid)
    (file,) = (tmp_path / "samples").glob("*.png")
    text = said(file)
    assert (text["step"], text["seed"]) == ("1", "3")
    assert json.loads(text["sampler"])["init_args"]["steps"] == 2


def test_text_beyond_latin_1_survives(tmp_path):
    write_png(tmp_path / "a.png", torch.zeros(1, 2, 2, dtype=torch.uint8), {"checkpoint": "模型"})
    assert said(tmp_path / "a.png")["checkpoint"] == "模型"
