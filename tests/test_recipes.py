"""The CIFAR-10 recipes: every value in the config files that decides a published number."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ddpm_lightning.networks import UNet
from tests.small import image_spec

CONFIGS = Path(__file__).parents[1] / "configs"

# What does not change a result: places, devices, and when to log and validate.
IRRELEVANT = {
    *("default_root_dir", "accelerator", "devices", "callbacks"),
    *("val_check_interval", "check_val_every_n_epoch", "log_every_n_steps"),
}

# Ho et al. 2020, section 4 and appendix B; "DDIM" is Song et al. 2021, appendix D.2.
DDPM = {
    "trainer.max_steps": 800_000,
    "trainer.gradient_clip_val": 1.0,
    "model.net": "UNet",
    "model.net.channels": 128,
    "model.net.multipliers": [1, 2, 2, 2],
    "model.net.blocks": 2,
    "model.net.attention_levels": [1],  # 16×16
    "model.net.heads": 1,
    "model.net.dropout": 0.1,
    "model.net.groups": 32,
    "model.schedule": "Linear",
    "model.schedule.T": 1000,
    "model.schedule.beta_start": 1e-4,
    "model.schedule.beta_end": 0.02,
    "model.parameterization": "Eps",
    "model.variance": "FixedLarge",
    "model.objective": "MSE",
    "model.objective.weighting": "Plain",
    "model.timesteps": "Uniform",
    "model.optimizer": "Adam",
    "model.optimizer.lr": 2e-4,
    "model.warmup_steps": 5000,
    "model.ema.decay": 0.9999,
    "model.ema.warmup": False,
    "data": "CIFAR10",
    "data.root": "data",
    "data.held_out": 0,
    "data.flip": True,
    "data.global_batch_size": 128,
    "samplers.0": "DDPM",
    "samplers.1": "DDIM",
    "samplers.1.steps": 50,
    "samplers.1.spacing": "QuadraticSpacing",
}


def changed(changes: dict[str, Any], without: tuple[str, ...] = ()) -> dict[str, Any]:
    """DDPM's values with some changed, and those below some paths left out."""
    kept = {path: value for path, value in DDPM.items() if not path.startswith(without)}
    return kept | changes


RECIPES = {
    "cifar10": DDPM,
    # Nichol & Dhariwal 2021, table 2 and appendix A: 4,000 steps, cosine, L_hybrid.
    "cifar10_iddpm": changed(
        {
            "trainer.max_steps": 500_000,
            "model.net.blocks": 3,
            "model.net.attention_levels": [1, 2],  # 16×16 and 8×8
            "model.net.heads": 4,
            "model.net.dropout": 0.3,
            "model.net.scale_shift": True,
            "model.schedule": "Cosine",
            "model.schedule.T": 4000,
            "model.variance": "LearnedRange",
            "model.objective": "Hybrid",
            "model.optimizer": "AdamW",
            "model.optimizer.lr": 1e-4,
            "model.optimizer.weight_decay": 0.0,
            "samplers.0.steps": 1000,
        },
        without=(
            "trainer.gradient_clip_val",
            "model.schedule.beta",
            "model.objective.",
            "model.warmup_steps",
            "data.flip",
        ),
    ),
    # Karras et al. 2022, table 1: dropout, and 18 steps of Heun's method, 35 evaluations.
    "cifar10_edm": changed(
        {
            "model.net.dropout": 0.13,
            "model.schedule": "Karras",
            "model.parameterization": "EDMPreconditioning",
            "model.objective.weighting": "EDM",
            "model.timesteps": "LogNormal",
            "samplers.0": "Heun",
            "samplers.0.steps": 18,
            "samplers.0.spacing": "KarrasSpacing",
            "samplers.1": "Heun",
            "samplers.1.steps": 18,
            "samplers.1.spacing": "KarrasSpacing",
        },
        without=("model.schedule.beta",),
    ),
    # Song et al. 2021, section 4 and appendix C: the variance-preserving SDE in continuous time.
    "cifar10_score": changed(
        {
            "model.schedule": "VP",
            "model.schedule.beta_min": 0.1,
            "model.schedule.beta_max": 20.0,
            "model.parameterization": "Score",
            "model.objective.weighting": "EpsMSE",
            "model.timesteps": "RealTimes",
            "model.timesteps.smallest": 1e-5,
            "samplers.0": "PredictorCorrector",
            "samplers.0.steps": 500,
            "samplers.0.corrector": "Langevin",
            "samplers.0.corrector.snr": 0.16,
            "samplers.1": "AdaptiveODE",
            "samplers.1.rtol": 1e-3,
            "samplers.1.atol": 1e-3,
        },
        without=("model.schedule.beta", "samplers.1"),
    ),
    # Liu et al. 2023, Lipman et al. 2023; logit-normal levels of Esser et al. 2024.
    "cifar10_flow": changed(
        {
            "model.schedule": "Straight",
            "model.parameterization": "Velocity",
            "model.timesteps": "LogitNormal",
            "model.timesteps.uniform": 0.05,
            "samplers.0": "Euler",
            "samplers.0.steps": 50,
            "samplers.1": "Euler",
        },
        without=("model.schedule.beta", "samplers.1.spacing"),
    ),
    # Ho & Salimans 2022: labels dropped for a tenth of the rows.
    "cifar10_cfg": changed(
        {"model.conditional": True, "model.label_dropout.share": 0.1, "guidances.0": 3.0}
    ),
}


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Values by dotted path; a class stands by its name at its own path."""
    if isinstance(value, dict):
        if "class_path" in value:
            yield path, value["class_path"].rpartition(".")[2]
            value = value.get("init_args", {})
        for key, item in value.items():
            yield from flat(item, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        yield from flat(dict(enumerate(value)), path)
    else:
        yield path, value


def found(config: Any, key: str) -> list[Any]:
    """Every value of that key, at any depth, in order."""
    if isinstance(config, list):
        return [value for item in config for value in found(item, key)]
    if not isinstance(config, dict):
        return []
    deeper = [value for item in config.values() for value in found(item, key)]
    return [*deeper, config[key]] if key in config else deeper


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_has_the_published_values(name):
    config = read(name)
    trainer = {key: value for key, value in config["trainer"].items() if key not in IRRELEVANT}
    values = {
        "trainer": trainer,
        "model": config["model"],
        "data": config["data"],
        "samplers": dict(enumerate(found(config, "sampler"))),
        "guidances": dict(enumerate(found(config, "guidance"))),
    }
    assert dict(flat(values)) == RECIPES[name]


@pytest.mark.parametrize(
    ("name", "out_channels", "parameters"),
    [("cifar10", 3, 35_746_307), ("cifar10_iddpm", 6, 52_546_438)],
)
def test_recipe_builds_the_published_network(name, out_channels, parameters):
    with torch.device("meta"):
        net = UNet(image_spec(3, 32), out_channels, **read(name)["model"]["net"]["init_args"])
    assert sum(p.numel() for p in net.parameters()) == parameters
