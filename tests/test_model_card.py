"""Model cards, read by the hub's own library."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import yaml
from PIL import Image

from ddpm_lightning.cli import main
from ddpm_lightning.interchange.card import picture_of, results_of
from ddpm_lightning.metrics import Score
from ddpm_lightning.metrics.result import Result, write_results
from tests.small import fail

hub = pytest.importorskip("huggingface_hub")


@pytest.fixture
def evaluated(tmp_path):
    """A folder of evaluate: results and a grid."""
    folder = tmp_path / "scores"
    folder.mkdir()
    sampler = {"class_path": "ddpm_lightning.diffusion.samplers.DDIM", "init_args": {}}
    samples = {"n": 500, "sampler": sampler, "steps": 20, "weights": "ema"}
    write_results(
        folder / "results.json",
        [Result("fd_lenet", Score(35.7098, 4.37), samples, step=3)],
    )
    Image.new("L", (4, 4), 77).save(folder / "grid.png")
    return folder


def card(ckpt, folder, *words, out="out"):
    main(["export", f"--ckpt={ckpt}", f"--out={folder / out}", "--card=true", *words])
    return hub.ModelCard.load(folder / "out" / "README.md")


def test_a_card_states_recipe_data_results_and_picture(tiny_checkpoint, tmp_path, evaluated):
    shown = card(tiny_checkpoint, tmp_path, f"--results={evaluated}")
    (result,) = shown.data.eval_results
    assert (result.metric_type, result.metric_value) == ("fd_lenet", 35.7098)
    assert result.dataset_name == "Digits"
    assert (shown.data.library_name, shown.data.datasets) == ("diffusers", ["digits"])
    for line in (
        "| fd_lenet | 35.71 ± 4.4 |  | 500 | DDIM, 20 steps | ema |",
        "| optimizer steps | 3 |",
        "| optimizer | Adam, lr 0.0002, learning rate schedule: none |",
        "UNet(channels=8, multipliers=[1, 2]",
        'DDPMPipeline.from_pretrained("OWNER/NAME")',
        "![Samples](samples.png)",
    ):
        assert line in shown.text
    assert (tmp_path / "out" / "samples.png").read_bytes() == (evaluated / "grid.png").read_bytes()


def test_the_licence_is_left_to_the_person(tiny_checkpoint, tmp_path):
    shown = card(tiny_checkpoint, tmp_path)
    assert shown.data.license is None
    front = (tmp_path / "out" / "README.md").read_text().split("---\n")[1]
    assert front.startswith("# license:   choose one of https://huggingface.co/docs/hub")
    assert "license" not in yaml.safe_load(front)
    assert "## Results" not in shown.text  # this run measured none


SAFE = "--format=safetensors"


def test_a_card_beside_safetensors_says_how_to_sample(tiny_checkpoint, tmp_path):
    shown = card(tiny_checkpoint, tmp_path, SAFE, out="out/model.safetensors")
    assert "python -m ddpm_lightning sample --ckpt model.safetensors" in shown.text


def test_only_the_files_of_an_export_are_published(tiny_checkpoint, tmp_path, evaluated, capsys):
    words = [f"--results={evaluated}", SAFE]
    card(tiny_checkpoint, tmp_path, *words, out="out/my model.safetensors")
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines()[-3:]]
    names = ("my model.safetensors", "README.md", "samples.png")
    assert commands == [
        ["hf", "upload", "OWNER/NAME", str(tmp_path / "out" / name), name] for name in names
    ]


def test_a_picture_that_is_there_is_not_overwritten(tiny_checkpoint, tmp_path, evaluated, capsys):
    (tmp_path / "samples.png").write_text("mine")
    out = tmp_path / "model.safetensors"
    words = [f"--ckpt={tiny_checkpoint}", f"--out={out}", "--card=true", SAFE]
    error = fail(capsys, "export", *words, f"--results={evaluated}")
    assert f"{tmp_path / 'samples.png'} exists already" in error
    assert (tmp_path / "samples.png").read_text() == "mine"
    assert not out.exists()


def at_steps(evaluated, *steps):
    """The results of a run's steps, of value 10·step."""
    first = json.loads((evaluated / "results.json").read_text())[0]
    return json.dumps([{**first, "step": step, "value": 10.0 * step} for step in steps])


def test_only_results_of_the_step_of_the_checkpoint_are_shown(
    tiny_checkpoint, tmp_path, evaluated
):
    (evaluated / "metrics.json").write_text(at_steps(evaluated, 1, 3, 6))
    shown = card(tiny_checkpoint, tmp_path, f"--results={evaluated / 'metrics.json'}")
    assert [one.metric_value for one in shown.data.eval_results] == [30.0]


def test_results_of_another_checkpoint_are_one_line(tiny_checkpoint, tmp_path, evaluated, capsys):
    (evaluated / "results.json").write_text(at_steps(evaluated, 6))
    words = [f"--ckpt={tiny_checkpoint}", f"--out={tmp_path / 'o'}", "--card=true"]
    error = fail(capsys, "export", *words, f"--results={evaluated}")
    assert "holds no result of step 3" in error


@pytest.fixture
def run(tmp_path, evaluated):
    """A run that measured and drew at two steps; returns its folder of checkpoints."""
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "samples").mkdir()
    (folder / "metrics.json").write_text(at_steps(evaluated, 3, 6))
    for name in ("ddpm_ema", "ddpm_ema_denoising", "neighbours_ddpm_ema"):
        for step in (3, 6):
            (folder / "samples" / f"{name}_step_{step:08d}.png").touch()
    return folder / "checkpoints"


def test_results_and_picture_of_a_run_are_of_the_step(run, monkeypatch):
    monkeypatch.chdir(run)
    (result,) = results_of(Path("last.ckpt"), None, 3)
    assert result["value"] == 30
    picture = picture_of(Path("last.ckpt"), None, 3)
    assert picture == run.parent / "samples" / "ddpm_ema_step_00000003.png"


def test_a_run_that_measured_and_drew_at_other_steps_shows_nothing(run):
    assert results_of(run / "last.ckpt", None, 4) == []
    assert picture_of(run / "last.ckpt", None, 4) is None


def test_a_checkpoint_outside_a_run_takes_nothing_of_what_lies_around(run):
    ckpt = run.with_name("other") / "x.ckpt"
    assert results_of(ckpt, None, 3) == []
    assert picture_of(ckpt, None, 3) is None


def test_results_without_a_card_are_one_line(tiny_checkpoint, tmp_path, evaluated, capsys):
    words = [f"--ckpt={tiny_checkpoint}", f"--out={tmp_path / 'o'}", f"--results={evaluated}"]
    assert "add --card true" in fail(capsys, "export", *words)
