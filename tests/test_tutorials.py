"""The tutorials' recipes: every value in their config files that decides a result."""

from typing import Any

import pytest

from tests.test_recipes import IRRELEVANT, flat, found, read

FROM_SCRATCH = {
    "model.net": "DoubleConvUNet",
    "model.net.channels": 64,
    "model.net.multipliers": [1, 2, 4, 4],
    "model.net.wide_bottleneck": True,
    "model.net.heads": 4,
    "model.schedule": "Linear",
    "model.schedule.T": 1000,
    "model.schedule.beta_start": 1e-4,
    "model.schedule.beta_end": 0.02,
    "model.parameterization": "Eps",
    "model.variance": "FixedLarge",
    "model.objective": "MSE",
    "model.objective.weighting": "Plain",
    "model.timesteps": "Uniform",
    "model.optimizer": "AdamW",
    "model.ema.warmup": False,
    "data": "ImageFolder",
    "data.size": 64,
    "data.channels": 3,
    "data.resize": "cover",
    "data.crop": "RandomResizedCrop",
    "data.crop.enlarge": 1.25,
    "data.crop.scale": [0.8, 1.0],
}

RECIPES: dict[str, dict[str, Any]] = {
    "class_conditional": FROM_SCRATCH
    | {
        "trainer.max_epochs": 100,
        "model.conditional": True,
        "model.label_dropout.share": 0.1,
        "model.optimizer.lr": 5e-3,
        "model.optimizer.eps": 1e-5,
        "model.lr_schedule": "OneCycleLR",
        "model.lr_schedule.max_lr": 5e-3,
        "model.lr_schedule.total_steps": 100 * (50_000 // 10),
        "model.ema.decay": 0.995,
        "model.ema.start": 2000,
        "data.root": "data/cifar10",
        "data.held_out": 0,
        "data.store": "mapped",
        "data.global_batch_size": 10,
        "samplers": ["DDPM", "DDPM"],
        "guidances": [3.0, 3.0],
        "labels": [[*range(10)], [*range(10)]],
        "weights": ["raw"],  # and, in the other grid, the average
    },
    "unconditional": FROM_SCRATCH
    | {
        "trainer.max_epochs": 500,
        "model.conditional": False,
        "model.optimizer.lr": 3e-4,
        "model.ema.decay": 0.0,
        "data.root": "data/images",
        "data.held_out": 0.05,
        "data.global_batch_size": 12,
        "samplers": ["DDPM"],
        "guidances": [],
        "labels": [],
        "weights": ["raw"],
    },
}

STEPS_AN_EPOCH = 50_000 // 64
RECIPES["notebook"] = {
    "trainer.max_epochs": 30,
    "model.net": "SimpleUNet",
    "model.net.channels": 64,
    "model.schedule": "Linear",
    "model.schedule.T": 1000,
    "model.schedule.beta_start": 1e-4,
    "model.schedule.beta_end": 0.02,
    "model.parameterization": "Eps",
    "model.variance": "FixedSmall",
    "model.objective": "MSE",
    "model.objective.weighting": "Plain",
    "model.timesteps": "Uniform",
    "model.conditional": False,
    "model.optimizer": "Adam",
    "model.optimizer.lr": 1e-4,
    "model.ema.decay": 0.0,
    "model.ema.warmup": False,
    "data": "CIFAR10",
    "data.root": "data",
    "data.held_out": 0,
    "data.global_batch_size": 64,
    "samplers": ["DDPM", "DDPM"],
    "guidances": [],
    "labels": [],
    "weights": ["raw", "raw"],
}


def values_of(name: str) -> dict[str, Any]:
    """The values of a tutorial's config that decide a result, by dotted path."""
    config = read(f"tutorials/{name}")
    trainer = {key: value for key, value in config["trainer"].items() if key not in IRRELEVANT}
    values = flat({"trainer": trainer, "model": config["model"], "data": config["data"]})
    sampling = {
        "samplers": [sampler["class_path"] for sampler in found(config, "sampler")],
        "guidances": found(config, "guidance"),
        "labels": found(config, "labels"),
        "weights": found(config, "weights"),
    }
    return dict(values) | sampling


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_has_the_tutorials_values(name):
    assert values_of(name) == RECIPES[name]


def test_the_notebook_shows_its_progress_as_often_as_written():
    config = read("tutorials/notebook")
    assert config["trainer"]["log_every_n_steps"] == 100
    assert (config["grid"]["n"], config["grid"]["every_n_steps"]) == (4, 5 * STEPS_AN_EPOCH)
    (last,) = [one["init_args"] for one in config["trainer"]["callbacks"] if "init_args" in one]
    assert (last["n"], last["every_n_steps"]) == (16, 30 * STEPS_AN_EPOCH)
