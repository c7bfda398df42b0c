"""The ten changes a stranger makes, each a class of an outside package and a line of YAML."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm_lightning import DiffusionModule
from ddpm_lightning.cli import main

OUTSIDE = Path(__file__).parent / "outside"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The run folder of a training with nothing but the outside package's parts.

    The package stays imported, because the parser finds its classes in the tests that follow.
    """
    folder = tmp_path_factory.mktemp("outside")
    shutil.copytree(OUTSIDE / "my_idea", folder / "my_idea")
    shutil.copy(OUTSIDE / "my_idea.yaml", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.chdir(folder)
        main(["fit", "--config", "my_idea.yaml", "--trainer.max_steps", "3"])
        main(["fit", "--config", "my_idea.yaml", "--ckpt_path", "last"])
        yield folder / "runs" / "my_idea"


def checkpoint(run):
    return str(run / "checkpoints" / "last.ckpt")


def test_all_parts_are_the_outside_packages(run):
    module = DiffusionModule.load_from_checkpoint(checkpoint(run), trust=["my_idea"])
    parts = (module.net, module.schedule, module.objective.weighting)
    parts += (module.ema, module.label_dropout)
    names = [type(part).__module__ for part in parts]
    files = ("network", "schedule", "parts", "parts", "parts")
    assert names == [f"my_idea.{file}" for file in files]


def test_the_metric_is_measured_and_the_callback_called(run):
    record = json.loads((run / "metrics.json").read_text())[0]
    assert record["metric"].startswith("brightness")
    assert (run / "diary.txt").read_text().split() == ["1", "2", "3", "4", "5", "6"]


def test_the_grid_is_drawn_with_the_outside_sampler_and_spacing(run):
    assert [png.name for png in (run / "samples").glob("renoise6_middle_guidance2_ema_*.png")]


def test_the_ema_follows_parameters_and_running_statistics(run):
    module = DiffusionModule.load_from_checkpoint(checkpoint(run), trust=["my_idea"])
    assert module.ema.decay_at(0) == 0.5**0.5
    assert torch.equal(module.ema.net.norm.running_mean, module.net.norm.running_mean)
    assert float(module.net.norm.running_mean.abs().max()) > 0


def test_a_resumed_run_equals_one_that_never_stopped(run):
    words = "fit --config my_idea.yaml --trainer.default_root_dir runs/whole"
    main([*words.split(), "--grid", "null", "--metrics", "null"])
    stopped, whole = (
        torch.load(path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for path in (run, run.parent / "whole")
    )
    assert all(torch.equal(stopped[name], whole[name]) for name in whole)


@pytest.mark.parametrize(
    "words",
    [
        "sample --trust my_idea --n 2 --sampler my_idea.sampler.Renoise --sampler.steps 3",
        "evaluate --trust my_idea --n 8 --extractor Pixels --metrics fd,my_idea.parts.Brightness "
        "--sampler DDIM --sampler.steps 3 --sampler.spacing my_idea.parts.Middle",
    ],
    ids=["sample", "evaluate"],
)
def test_the_checkpoint_describes_itself_to_every_command(run, tmp_path, words):
    out = str(tmp_path / "out")
    main([*words.split(), "--ckpt", checkpoint(run), "--out", out, "--device", "cpu"])
    assert list((tmp_path / "out").rglob("*.png"))


@pytest.mark.slow
def test_a_data_set_larger_than_memory_is_trained_and_scored(run, tmp_path):
    for split in ("train", "val", "test"):
        folder = tmp_path / "files" / split
        folder.mkdir(parents=True)
        for place in range(40):
            image = np.full((1, 8, 8), 6 * place, dtype=np.uint8)
            np.save(folder / f"{place}.npy", image)
    root, out = str(tmp_path / "disk"), str(tmp_path / "scores")
    words = "fit --config my_idea.yaml --data my_idea.data_on_disk.BarFiles --data.workers 1"
    main([*words.split(), f"--data.root={tmp_path}/files", f"--trainer.default_root_dir={root}"])
    trained = json.loads((Path(root) / "metrics.json").read_text())[0]
    words = "evaluate --n 8 --extractor Pixels --sampler DDIM --sampler.steps 3 --device cpu"
    main([*words.split(), "--trust=my_idea", "--ckpt", checkpoint(Path(root)), "--out", out])
    scored = json.loads((tmp_path / "scores" / "results.json").read_text())[0]
    pixels = np.repeat(6 * np.arange(40, dtype=np.uint8), 64)
    for record in (trained, scored):
        assert record["reference"]["count"] == 40
        assert record["reference"]["sha256"] == hashlib.sha256(pixels.tobytes()).hexdigest()
