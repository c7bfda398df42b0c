"""Model cards, read by the hub's own library."""

from __future__ import annotations

import json

import pytest
import yaml
from PIL import Image

from ddpm_lightning.cli import main
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


def test_a_card_beside_safetensors_says_how_to_sample(tiny_checkpoint, tmp_path, capsys):
    shown = card(tiny_checkpoint, tmp_path, "--format=safetensors", out="out/model.safetensors")
    assert "python -m ddpm_lightning sample --ckpt model.safetensors" in shown.text
    assert f"hf upload OWNER/NAME {tmp_path / 'out'}\n" in capsys.readouterr().out


def test_of_a_run_the_results_of_the_last_step_are_shown(tiny_checkpoint, tmp_path, evaluated):
    first = json.loads((evaluated / "results.json").read_text())[0]
    records = [{**first, "step": 100 * k, "value": 10.0 * k} for k in (1, 3, 2)]
    (evaluated / "metrics.json").write_text(json.dumps(records))
    shown = card(tiny_checkpoint, tmp_path, f"--results={evaluated / 'metrics.json'}")
    assert [one.metric_value for one in shown.data.eval_results] == [30.0]


def test_results_without_a_card_are_one_line(tiny_checkpoint, tmp_path, evaluated, capsys):
    words = [f"--ckpt={tiny_checkpoint}", f"--out={tmp_path / 'o'}", f"--results={evaluated}"]
    assert "add --card true" in fail(capsys, "export", *words)
