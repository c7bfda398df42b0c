"""The configs of autoencoders and of diffusion in their latents, made small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ddpm_lightning.cli import main
from ddpm_lightning.run_folder import last_checkpoint
from tests.make_data import write_cifar10, write_mnist

FOLDER = Path(__file__).parent.parent / "configs"
NAMES = ("mnist_autoencoder", "cifar10_autoencoder", "mnist_latent")
COMMON = [
    *("--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.max_steps=2"),
    *("--trainer.val_check_interval=2", "--trainer.limit_val_batches=1"),
    *("--trainer.limit_test_batches=1", "--trainer.log_every_n_steps=1"),
    *("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
    *("--data.global_batch_size=4", "--data.subset=16", "--data.held_out=20", "--grid.n=4"),
    *("--model.net.channels=8", "--model.net.groups=4", "--model.net.blocks=1"),
]
SAMPLING = [
    *("--model.schedule.T=50", "--grid.sampler.steps=2", "--grid.frames=2"),
    *("--metrics.n=4", "--metrics.sampler.steps=2", "--likelihood.evaluations=2"),
]


@pytest.mark.parametrize("name", NAMES)
def test_config_says_where_it_comes_from(name):
    lines = (FOLDER / f"{name}.yaml").read_text().splitlines()
    header = "".join(line for line in lines if line.startswith("#"))
    wanted = f"fit --config configs/{name}.yaml", "Source:", "Expected:", "Measured:", "Cost:"
    assert not [entry for entry in wanted if entry not in header]


def train(name: str, root: Path, *more: str) -> list[str]:
    """Train by a shrunk config in root/run; return the flags."""
    flags = [f"--config={FOLDER / name}.yaml", *COMMON, f"--data.root={root / 'data'}", *more]
    flags.append(f"--trainer.default_root_dir={root / name}")
    main(["fit", *flags])
    return flags


@pytest.mark.slow
def test_the_autoencoder_and_the_model_in_its_latents_run_through_all_commands(tmp_path):
    write_mnist(tmp_path / "data")
    flags = train("mnist_autoencoder", tmp_path)
    for command in ("validate", "test"):
        main([command, *flags, "--ckpt_path=last"])
    assert list((tmp_path / "mnist_autoencoder" / "reconstructions").glob("*.png"))
    codec = f"--model.codec.ckpt={last_checkpoint(tmp_path / 'mnist_autoencoder')}"
    flags = train("mnist_latent", tmp_path, codec, *SAMPLING)
    for command in ("validate", "test", "predict"):
        main([command, *flags, "--ckpt_path=last"])
    run = tmp_path / "mnist_latent"
    records = json.loads((run / "metrics.json").read_text())
    assert {record["metric"] for record in records} >= {"npd_latent"}
    assert list((run / "samples").glob("*.gif"))
    drawn = ["--n=2", "--sampler=DDIM", "--sampler.steps=2", f"--out={tmp_path / 'drawn'}"]
    main(["sample", f"--ckpt={last_checkpoint(run)}", *drawn])


@pytest.mark.slow
def test_the_autoencoder_of_cifar10_is_trained(tmp_path):
    write_cifar10(tmp_path / "data")
    train("cifar10_autoencoder", tmp_path)
    assert last_checkpoint(tmp_path / "cifar10_autoencoder").exists()
