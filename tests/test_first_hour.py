"""What a new user ran into: help by parts, a checkpoint without its config, modes and sizes."""

from __future__ import annotations

import warnings

import pytest
import torch

from ddpm_lightning import DiffusionModule
from ddpm_lightning.cli import main
from ddpm_lightning.data import Digits
from tests.small import fail, shown, tiny_data, tiny_module, trainer

# ------------------------------------------------------------------------------ help


def test_the_help_of_fit_is_one_screen_that_names_the_parts(capsys):
    text = shown(capsys, "fit", "--help")
    assert len(text.splitlines()) < 60
    parts = ("trainer", "model", "data", "checkpoint", "likelihood", "grid", "metrics")
    assert not [part for part in parts if f"--{part}.help" not in text]
    assert "--ckpt_path" in text


@pytest.mark.parametrize(
    ("part", "own", "other"),
    [
        ("trainer", "--trainer.max_steps", "--model.warmup_steps"),
        ("model", "--model.warmup_steps", "--trainer.max_steps"),
        ("checkpoint", "--checkpoint.every_n_steps", "--likelihood.evaluations"),
        ("data", "Digits", "--trainer.max_steps"),
    ],
)
def test_a_part_s_help_shows_its_settings_alone(part, own, other, capsys):
    text = shown(capsys, "fit", f"--{part}.help")
    assert own in text
    assert other not in text


def test_a_part_given_as_a_whole_is_not_a_question(capsys):
    assert "Unable to load config" in fail(capsys, "fit", "--data=Digits", "--checkpoint=- null")


def test_all_settings_can_be_listed_at_once(capsys):
    text = shown(capsys, "fit", "--help", "all")
    settings = ("--trainer.max_steps", "--model.warmup_steps", "--likelihood.evaluations")
    assert not [flag for flag in settings if flag not in text]


def test_the_help_of_a_part_s_part_needs_no_other_flag(capsys):
    words = ("fit", "--model.objective.weighting.help", "MinSNR")
    assert "--model.objective.weighting.gamma" in shown(capsys, *words)


# ------------------------------------------------------------------------- missing flags


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["sample"], "missing: --ckpt, --out"),
        (["fit", "--data", "Conditioned"], "missing: --data.data, --data.task"),
        (["sample", "--edit", "RePaint"], "missing: --edit.image, --edit.mask"),
    ],
)
def test_missing_flags_are_named_at_once(words, named, capsys):
    assert named in fail(capsys, *words)


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_a_checkpoint_without_its_config_is_answered_by_the_whole_command(
    command, tiny_checkpoint, capsys
):
    line = fail(capsys, command, "--ckpt_path", str(tiny_checkpoint))
    assert f"python -m ddpm_lightning {command} --ckpt_path {tiny_checkpoint} --config" in line


def test_a_checkpoint_alone_goes_on_by_the_config_of_its_run(tmp_path):
    run = tmp_path / "run"
    small = ["--model.net.channels=8", "--model.net.groups=4", "--model.net.blocks=1"]
    small += ["--data.global_batch_size=8", "--trainer.accelerator=cpu", "--grid=null"]
    small += ["--metrics=null", "--trainer.limit_val_batches=1", "--trainer.callbacks=[]"]
    where = f"--trainer.default_root_dir={run}"
    main(["fit", "--config=digits", *small, where, "--trainer.max_steps=1"])
    last = run / "checkpoints" / "last.ckpt"
    main(["fit", f"--ckpt_path={last}", "--trainer.max_steps=2"])
    assert torch.load(last, weights_only=True)["global_step"] == 2


# ------------------------------------------------------------------------- the module


def test_a_network_in_evaluation_mode_is_warned_of(tmp_path):
    module = tiny_module()
    module.net.eval()
    with pytest.warns(UserWarning, match=r"evaluation mode .*module\.net\.train\(\) before fit"):
        trainer(tmp_path, 1).fit(module, tiny_data())


def test_a_network_in_training_mode_is_not(tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "modules of the network")
        trainer(tmp_path, 1).fit(tiny_module(), tiny_data())


def test_the_default_network_fits_small_images():
    module = DiffusionModule(data=Digits().spec)
    assert sum(one.numel() for one in module.net.parameters()) < 500_000
