"""Prompts on the command line: sample, evaluate, fit, and what they refuse."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from ddpm_lightning.callbacks import GenerativeMetrics, SampleGrid
from ddpm_lightning.cli import main
from ddpm_lightning.commands.words import complete
from ddpm_lightning.data import Shapes
from ddpm_lightning.diffusion.samplers import DDIM
from ddpm_lightning.metrics import ShapeReader
from ddpm_lightning.text import VocabularyEncoder
from tests.small import fail, fit
from tests.test_text import TextUNet

PROMPTS = ["a red ring left of a blue square", "a green disc"]
QUICK = ["--sampler", "DDIM", "--sampler.steps", "2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of three steps on Shapes: its folder, with a grid and measurements."""
    folder = tmp_path_factory.mktemp("shapes")
    grid = SampleGrid(every_n_steps=3, n=6, columns=2, sampler=DDIM(2), guidance=2.0)
    metrics = GenerativeMetrics(
        ShapeReader(), 3, n=4, metrics=["alignment"], reference="val", sampler=DDIM(2)
    )
    data = Shapes(global_batch_size=4, subset=16, held_out=20)
    fit(folder, 3, grid, metrics, data=data, net=TextUNet, text=VocabularyEncoder())
    return folder


@pytest.fixture(scope="module")
def ckpt(run):
    return str(run / "checkpoints" / "last.ckpt")


@pytest.mark.slow
def test_a_grid_of_training_asks_for_captions_of_the_validation_split(run):
    (file,) = (run / "samples").glob("ddim2_guidance2_ema_step_*.png")
    captions = [*dict.fromkeys(Shapes(held_out=20).captions("val"))][:3]
    stated = json.loads(Image.open(file).text["prompts"].replace("'", '"'))
    assert stated == [one for one in captions for _ in range(2)]


@pytest.mark.slow
def test_training_measures_alignment_beside_that_of_real_pictures(run):
    records = json.loads((run / "metrics.json").read_text())
    found = {one["metric"]: one for one in records}
    assert found["alignment"]["floor"]["value"] == 1
    assert {"alignment_colour", "alignment_shape", "alignment_count"} <= found.keys()


@pytest.mark.slow
def test_sample_draws_every_prompt_in_turn(ckpt, tmp_path):
    words = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    out, alone = tmp_path / "out", tmp_path / "alone"
    main(["sample", "--ckpt", ckpt, "--out", str(out), "--n", "4", *QUICK, *words])
    main(["sample", "--ckpt", ckpt, "--out", str(alone), "--n", "3", *QUICK, *words[2:]])
    assert json.loads((out / "samples.json").read_text())["prompts"] == PROMPTS
    for name in ("000001.png", "000002.png"):  # the second prompt has the odd samples
        same = Image.open(out / name).tobytes() == Image.open(alone / name).tobytes()
        assert same == (name == "000001.png")


@pytest.mark.slow
def test_the_overview_has_a_captioned_grid_a_prompt(ckpt, tmp_path):
    words = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    heights = []
    for prompts in (words[:2], words):
        out = tmp_path / str(len(prompts))
        main(["sample", "--ckpt", ckpt, "--out", str(out), "--n", "8", *QUICK, *prompts])
        heights.append(Image.open(out / "grid.png").size[1])
    assert heights[1] > heights[0]


@pytest.mark.slow
def test_a_sample_goes_on_only_with_the_same_prompt(ckpt, tmp_path, capsys):
    words = ["sample", "--ckpt", ckpt, "--out", str(tmp_path / "out"), "--n", "2", *QUICK]
    main([*words, "--prompt", PROMPTS[0]])
    assert "with another prompts" in fail(capsys, *words, "--prompt", PROMPTS[1])


@pytest.mark.slow
def test_evaluate_asks_for_the_captions_of_the_split(ckpt, tmp_path):
    words = ["--metrics", "alignment", "--extractor", "ShapeReader", "--reference.split", "test"]
    main(["evaluate", "--ckpt", ckpt, "--out", str(tmp_path), "--n", "4", *QUICK, *words])
    (record, *_) = json.loads((tmp_path / "results.json").read_text())
    assert record["samples"]["prompts"] == list(Shapes().captions("test")[:4])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt", "a pink ring"], "the word 'pink' is none of the 16 that the model knows"),
        (["--prompt", "a red ring " * 4], "has 12 words, the encoder takes 10"),
        (["--negative_prompt", "a red ring"], "changes nothing at guidance 1"),
        (["--guidance", "2"], "guidance needs labels, or a prompt"),
        (["--negative-prompt", "a ring"], "did you mean --negative_prompt"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(words, message, ckpt, tmp_path, capsys):
    line = fail(capsys, "sample", "--ckpt", ckpt, "--out", str(tmp_path / "o"), *QUICK, *words)
    assert message in line
    assert not (tmp_path / "o").exists()


def test_a_prompt_for_a_model_without_text_is_refused(tiny_checkpoint, tmp_path, capsys):
    words = ["--ckpt", str(tiny_checkpoint), "--out", str(tmp_path / "o"), "--prompt", "a seven"]
    assert "so it takes no prompt; leave out --prompt" in fail(capsys, "sample", *words, *QUICK)


@pytest.mark.slow
def test_alignment_of_other_prompts_is_refused(ckpt, tmp_path, capsys):
    words = ["--metrics", "alignment", "--extractor", "ShapeReader", "--prompt", "a a a"]
    line = fail(capsys, "evaluate", "--ckpt", ckpt, "--out", str(tmp_path), "--n", "4", *words)
    assert "a prompt is none of the captions of Shapes" in line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--prompt", "a: b", "--n", "2", "--prompt=c"], ["--n", "2", '--prompt=["a: b", "c"]']),
        (["--grid.prompt", "a"], ['--grid.prompt=["a"]']),
        (["--prompt", '["a", "b"]'], ['--prompt=["a", "b"]']),
        (["--prompt", "null"], ["--prompt=null"]),
    ],
)
def test_repeated_prompts_are_one_list(words, expected):
    assert complete(words, {}) == expected
