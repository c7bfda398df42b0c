"""The tutorials of the first diffusion papers: every value of their config files, and figures."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
import torch
import yaml

from ddpm_lightning.batch import DataSpec
from ddpm_lightning.cli import main
from ddpm_lightning.diffusion import SohlDickstein
from ddpm_lightning.networks import PerStepMLP, UNet
from tests.small import image_spec
from tests.test_recipes import CONFIGS, read
from tests.test_tutorials import values_of

UNET = {
    "model.net": "UNet",
    "model.net.channels": 128,
    "model.net.multipliers": [1, 2, 2, 2],
    "model.net.blocks": 2,
    "model.net.attention_levels": [1],
    "model.net.heads": 1,
    "model.net.groups": 32,
    "model.schedule": "Linear",
    "model.schedule.T": 1000,
    "model.schedule.beta_start": 1e-4,
    "model.schedule.beta_end": 0.02,
    "model.parameterization": "Eps",
    "model.objective": "MSE",
    "model.objective.weighting": "Plain",
    "model.timesteps": "Uniform",
    "model.conditional": False,
    "model.optimizer": "Adam",
    "model.ema.warmup": False,
    "data.root": "data",
    "samplers": ["DDPM"],
    "guidances": [],
    "labels": [],
}

RECIPES: dict[str, dict[str, Any]] = {
    "toy_2015": {
        "trainer.max_steps": 300_000,
        "trainer.limit_val_batches": 1,
        "model.net": "PerStepMLP",
        "model.net.width": 128,
        "model.net.tails": 40,
        "model.schedule": "SohlDickstein",
        "model.schedule.T": 40,
        "model.parameterization": "PosteriorMean",
        "model.variance": "LearnedLogVariance",
        "model.objective": "VariationalBound",
        "model.objective.decoder": "GaussianDecoder",
        "model.timesteps": "Uniform",
        "model.optimizer": "Adam",
        "model.optimizer.lr": 1e-2,
        "model.ema.decay": 0.0,
        "model.ema.warmup": False,
        "data": "Toy2D",
        "data.kind": "swiss_roll",
        "data.n": 10 * 64_000,
        "data.noise": 0.0,
        "data.global_batch_size": 64_000,
        "samplers": ["DDPM", "DDPM"],
        "guidances": [],
        "labels": [],
        "weights": ["raw", "raw"],
    },
    "mnist": UNET
    | {
        "trainer.max_steps": 40_000,
        "model.net.dropout": 0.1,
        "model.variance": "FixedLarge",  # sigma² = beta
        "model.optimizer.lr": 2e-5,
        "model.ema.decay": 0.0,
        "data": "MNIST",
        "data.image_size": 32,
        "data.resize": "bilinear",
        "data.held_out": 10_000,
        "data.global_batch_size": 64,
        "weights": ["raw"],
    },
    "cifar10": UNET
    | {
        "trainer.max_steps": 800_000,
        "model.net.dropout": 0.0,
        "model.variance": "FixedSmall",  # beta_tilde
        "model.optimizer.lr": 2e-4,
        "model.ema.decay": 0.9999,
        "data": "CIFAR10",
        "data.held_out": 0,
        "data.flip": True,
        "data.global_batch_size": 128,
        "weights": [],
    },
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_has_the_tutorials_values(name):
    assert values_of(name) == RECIPES[name]


def test_pictures_come_as_often_as_written():
    grids = {name: read(f"tutorials/{name}")["grid"] for name in RECIPES}
    mnist, cifar10 = grids["mnist"], grids["cifar10"]
    assert (mnist["n"], mnist["columns"], mnist["every_n_steps"]) == (9, 3, 5000)
    assert (cifar10["n"], cifar10["frames"], cifar10["every_n_steps"]) == (16, 30, 10_000)
    *_, marginals = read("tutorials/toy_2015")["trainer"]["callbacks"]
    assert marginals["class_path"] == "Marginals"
    settings = marginals["init_args"]
    assert (settings["columns"], settings["every_n_steps"]) == (3, 10_000)  # levels 0, 20, 40


def variants_in_header(name: str) -> list[list[str]]:
    """The flags of each variant that a config's header states, a line each."""
    text = (CONFIGS / "tutorials" / f"{name}.yaml").read_text()
    lines = re.findall(r"^# +(--model\.\S.*)$", text, re.M)
    return [shlex.split(line) for line in lines if "parameterization" in line or "Cosine" in line]


@pytest.mark.slow
def test_the_header_states_noise_and_v_linear_and_cosine(capsys):
    found = []
    for flags in variants_in_header("cifar10"):
        config = str(CONFIGS / "tutorials" / "cifar10.yaml")
        with pytest.raises(SystemExit):
            main(["fit", "--config", config, *flags, "--print_config"])
        model = yaml.safe_load(capsys.readouterr().out)["model"]
        found.append(
            tuple(
                model[part]["class_path"].split(".")[-1]
                for part in ("parameterization", "schedule")
            )
        )
    assert found == [("V", "Linear"), ("Eps", "Cosine"), ("V", "Cosine")]


def test_the_networks_have_the_sizes_of_the_tutorials():
    with torch.device("meta"):
        nets = {
            "toy": PerStepMLP(
                DataSpec((2,)), 4, **read("tutorials/toy_2015")["model"]["net"]["init_args"]
            ),
            "mnist": UNet(
                image_spec(1, 32), 1, **read("tutorials/mnist")["model"]["net"]["init_args"]
            ),
        }
    count = {name: sum(p.numel() for p in net.parameters()) for name, net in nets.items()}
    head, tail = (2 * 128 + 128) + (128 * 128 + 128), (128 * 128 + 128) + (128 * 4 + 4)
    assert count["toy"] == head + 40 * tail
    # DDPM's 35.7 M with one channel in and out in place of three, 3×3 kernels and biases.
    assert count["mnist"] == 35_746_307 - 2 * (9 * 128 * 2) - 2


def test_the_toys_levels_are_those_of_the_tutorial():
    betas = torch.sigmoid(torch.linspace(-18, 10, 40, dtype=torch.float64)) * (0.3 - 1e-5) + 1e-5
    schedule = SohlDickstein(40)
    torch.testing.assert_close(schedule.alpha[1:] ** 2, torch.cumprod(1 - betas, 0))
