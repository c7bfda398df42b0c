"""The annotated diffusion model: every value in its config files that decides a result."""

from typing import Any

import pytest

from tests.test_recipes import IRRELEVANT, flat, found, read

STEPS_AN_EPOCH = 60_000 // 128

BOTH: dict[str, Any] = {
    "model.net.channels": 28,  # the size of the images
    "model.net.multipliers": [1, 2, 4],
    "model.net.heads": 4,
    "model.schedule": "Linear",
    "model.schedule.beta_start": 1e-4,
    "model.schedule.beta_end": 0.02,
    "model.schedule.rescale": False,  # whatever T is
    "model.parameterization": "Eps",
    "model.variance": "FixedSmall",
    "model.objective": "Huber",
    "model.objective.delta": 1.0,
    "model.objective.weighting": "Plain",
    "model.timesteps": "Uniform",
    "model.conditional": False,
    "model.optimizer": "Adam",
    "model.optimizer.lr": 1e-3,
    "model.ema.decay": 0.0,
    "model.ema.warmup": False,
    "data": "FashionMNIST",
    "data.root": "data",
    "data.held_out": 0,
    "data.flip": True,
    "data.global_batch_size": 128,
    "samplers": ["DDPM"] * 3,
    "weights": ["raw"] * 3,
}

RECIPES = {
    "annotated_2022": BOTH
    | {
        "trainer.max_epochs": 5,
        "model.net": "AnnotatedUNet2022",
        "model.net.stem_channels": 28 // 3 * 2,
        "model.net.block": "convnext",
        "model.net.groups": 1,
        "model.schedule.T": 200,
    },
    "annotated": BOTH
    | {
        "trainer.max_epochs": 6,
        "model.net": "AnnotatedUNet",
        "model.net.stem_channels": 28,
        "model.net.stem_kernel": 1,
        "model.net.groups": 4,
        "model.net.self_conditioning": False,
        "model.schedule.T": 300,
    },
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_has_the_texts_values(name):
    config = read(f"tutorials/{name}")
    trainer = {key: value for key, value in config["trainer"].items() if key not in IRRELEVANT}
    values = flat({"trainer": trainer, "model": config["model"], "data": config["data"]})
    sampling = {
        "samplers": [sampler["class_path"] for sampler in found(config, "sampler")],
        "weights": list(found(config, "weights")),
    }
    assert dict(values) | sampling == RECIPES[name]


@pytest.mark.parametrize("name", RECIPES)
def test_samples_are_drawn_as_often_as_written_and_at_the_end_with_every_frame(name):
    config, wanted = read(f"tutorials/{name}"), RECIPES[name]
    assert config["trainer"]["log_every_n_steps"] == 100
    assert (config["grid"]["n"], config["grid"]["every_n_steps"]) == (4, 1000)
    last = wanted["trainer.max_epochs"] * STEPS_AN_EPOCH
    all_frames = {"every_n_steps": last, "frames": wanted["model.schedule.T"] + 1, "fps": 20}
    grids = [one["init_args"] for one in config["trainer"]["callbacks"] if "init_args" in one]
    assert [grid["n"] for grid in grids] == [64, 1]
    for grid in grids:
        assert {key: grid[key] for key in all_frames} == all_frames
