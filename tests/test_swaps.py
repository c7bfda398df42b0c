"""A class swapped on the command line, beside what a config file says of the one before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ddpm_lightning.cli import main

CONFIGS = Path(__file__).parent.parent / "configs"


def configured(capsys: Any, config: str, *flags: str) -> dict[str, Any]:
    """What the command line makes of a config and these flags."""
    with pytest.raises(SystemExit) as end:
        main(["fit", f"--config={CONFIGS / config}.yaml", *flags, "--print_config"])
    assert end.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize("flags", [("--model.net=DiT",), ("--model.net", "DiT")])
def test_a_new_network_has_its_own_defaults(capsys, flags):
    net = configured(capsys, "cifar10", *flags)["model"]["net"]
    assert net["init_args"] == {
        **{"patch": 2, "width": 384, "depth": 12, "heads": 6},
        "mlp_ratio": 4,
    }


def test_arguments_given_beside_the_class_hold(capsys):
    flags = ("--model.net=SmallUNet", "--model.net.channels=48")
    net = configured(capsys, "cifar10", *flags)["model"]["net"]
    assert net["init_args"] == {"channels": 48}


def test_an_argument_given_as_it_was_before_holds(capsys):
    flags = ("--model.net=SmallUNet", "--model.net.channels=128")
    net = configured(capsys, "cifar10", *flags)["model"]["net"]
    assert net["init_args"] == {"channels": 128}


def test_the_same_class_named_again_keeps_the_config_s_arguments(capsys):
    before = configured(capsys, "digits")["model"]
    after = configured(capsys, "digits", "--model.net=UNet", "--model.schedule=Cosine")["model"]
    assert after == before


def test_a_part_of_a_part_has_its_own_defaults(capsys, tmp_path):
    file = tmp_path / "min_snr.yaml"
    file.write_text(
        "model: {objective: {class_path: MSE, init_args: {weighting: "
        "{class_path: MinSNR, init_args: {gamma: 3.0}}}}}"
    )
    flags = (f"--config={file}", "--model.objective.weighting=P2")
    objective = configured(capsys, "digits", *flags)["model"]["objective"]
    assert objective["init_args"]["weighting"]["init_args"] == {"k": 1.0, "gamma": 1.0}


def test_what_two_classes_inherit_from_one_base_stays(capsys, tmp_path):
    file = tmp_path / "min_snr.yaml"
    file.write_text(
        "model: {objective: {class_path: MSE, init_args: {weighting: {class_path: MinSNR}}}}"
    )
    objective = configured(capsys, "digits", f"--config={file}", "--model.objective=Huber")
    weighting = objective["model"]["objective"]["init_args"]["weighting"]
    assert weighting["class_path"].endswith("MinSNR")
    data = configured(capsys, "cifar10", "--data=CIFAR100")["data"]
    assert data["class_path"].endswith("CIFAR100")
    assert (data["init_args"]["flip"], data["init_args"]["held_out"]) == (True, 0)


def test_flags_after_a_swapped_class_are_read_as_they_stand(capsys):
    flags = ("--model.net", "DiT", "--trainer.callbacks+=LossByTimestep")
    more = ("--trainer.callbacks.bins", "3", "--trainer.default_root_dir", "runs/help")
    settings = configured(capsys, "digits", *flags, *more)
    assert settings["trainer"]["callbacks"][-1]["init_args"]["bins"] == 3
    assert settings["trainer"]["default_root_dir"] == "runs/help"
    assert settings["model"]["net"]["init_args"]["heads"] == 6
