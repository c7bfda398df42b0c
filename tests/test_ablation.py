"""The ablation: averages and clocks of a run, judges, and the table."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from benchmarks.ablation import Results, table
from benchmarks.ablation_rows import PLAIN, ROWS
from benchmarks.judges import Judge, as_channels
from benchmarks.trial import Data, Trial
from ddpm_lightning.callbacks.stop_signals import Stopped
from ddpm_lightning.errors import InputError
from ddpm_lightning.loaded import Loaded

CONFIG = Path(__file__).parents[1] / "benchmarks" / "ablation_base.yaml"


@pytest.fixture
def small_config(tmp_path) -> str:
    settings = yaml.safe_load(CONFIG.read_text())
    settings["model"]["net"]["init_args"] |= {"channels": 8, "attention_levels": []}
    settings["model"]["schedule"]["init_args"] = {"T": 20}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return str(path)


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge(Data("Digits")())


@pytest.mark.parametrize(("end", "error"), [(SystemExit(2), InputError), (Stopped(2), Stopped)])
def test_a_row_that_fit_refuses_fails_alone_and_a_stop_ends_all(
    end, error, small_config, tmp_path, monkeypatch
):
    def refused(_words):
        raise end

    monkeypatch.setattr("benchmarks.trial.main", refused)
    with pytest.raises(error):
        Trial(small_config).fit(tmp_path, 1, [])


@pytest.mark.slow
def test_a_trial_keeps_further_averages_as_the_module_keeps_its_own(small_config, tmp_path):
    file = tmp_path / "averages.pt"
    averages = {"decays": [0.2, 0.5], "file": str(file)}
    callbacks = [{"class_path": "benchmarks.callbacks.Averages", "init_args": averages}]
    flags = {"model.ema.decay": 0.2, "data.global_batch_size": 8}
    trial = Trial(small_config, flags, Data("Digits"))
    trial.fit(tmp_path / "run", 5, callbacks)
    module = Loaded.read(tmp_path / "run" / "checkpoints" / "last.ckpt").module
    kept = torch.load(file)
    for name, value in module.ema.net.state_dict().items():
        torch.testing.assert_close(kept[0.2][name], value)
    assert not torch.equal(kept[0.5]["stem.weight"], kept[0.2]["stem.weight"])


@pytest.mark.slow
def test_a_trial_keeps_the_settings_of_its_data_and_ends_the_decay_with_the_run(
    small_config, tmp_path
):
    Trial(small_config, {}, Data("Digits"), seed=3).fit(tmp_path / "run", 30, [])
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    data, model = settings["data"]["init_args"], settings["model"]
    assert (data["held_out"], data["global_batch_size"]) == (0, 64)
    steps = model["warmup_steps"] + model["lr_schedule"]["init_args"]["total_iters"]
    assert (settings["seed_everything"], steps) == (3, 30)


@pytest.mark.slow
def test_training_images_have_no_distance_to_themselves(judge):
    images = judge.data.images("train")[0]
    assert judge.of_images(images) == pytest.approx({"fd_lenet": 0, "fd_colour": 0}, abs=1e-6)


@pytest.mark.slow
def test_noise_is_further_than_the_floor_by_both_extractors(judge):
    floor, noise = judge.floor(), judge(torch.rand(200, 1, 8, 8) * 2 - 1)
    assert all(noise[name] > 2 * floor[name] for name in floor)


@pytest.mark.slow
def test_labels_come_in_the_shares_of_the_training_images(judge):
    shares = judge.data.images("train")[1].bincount() / len(judge.data.images("train")[1])
    torch.testing.assert_close(judge.labels(300).bincount() / 300, shares, atol=1 / 300, rtol=0)


def test_channels_are_repeated_or_weighted_as_luma():
    colour = torch.tensor([[[[200]], [[100]], [[50]]]], dtype=torch.uint8)
    luma = round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)
    grey = as_channels(colour, (1,))
    assert grey.tolist() == [[[[luma]]]]
    assert as_channels(grey, (3,)).flatten().tolist() == [luma] * 3


def test_the_table_is_printed_from_the_file_alone(tmp_path):
    results = Results(tmp_path / "results.json")
    results.values["floors"]["MNIST"] = {"fd_lenet": 18.0, "fd_colour": 0.5}
    for row, distances in {"base": (60.0, 70.0), "batch 32": (40.0, 44.0)}.items():
        results.costs("MNIST")[row] = {"seconds": 0.25, "machine": "here"}
        for seed, value in enumerate(distances):
            ways = {PLAIN: {"fd_lenet": value, "fd_colour": 1.0}}
            run = {"row": row, "data": "MNIST", "budget": 100.0, "seed": seed, "steps": 400}
            run |= {"flags": ROWS[row], "distances": ways, "evaluations": {PLAIN: 50.0}}
            results.runs.append(run | {"machine": "there"})
    results.save()
    lines = table(Results(tmp_path / "results.json")).splitlines()
    rows = [line for line in lines if line.startswith(("| batch 32", "| **base**"))]
    assert "42 (41 to 43)" in rows[0]
    assert "| 250 | 400 | 12800 | 2 |" in rows[0]
    assert "65 (62.5 to 67.5)" in rows[1]
    assert results.has({"row": "base", "data": "MNIST", "budget": 100.0, "seed": 1})
    assert not results.has({"row": "base", "data": "MNIST", "budget": 100.0, "seed": 2})
