"""Configs without a path, and what a wheel holds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ddpm_lightning.commands.config_file import read_config
from ddpm_lightning.commands.list_configs import shipped_configs
from ddpm_lightning.errors import InputError
from tests.small import shown

ROOT = Path(__file__).parents[1]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "name", ["digits", "digits.yaml", "trainer/fsdp", "tutorials/notebook.yaml"]
)
def test_a_shipped_config_is_named_without_its_path(name, elsewhere):
    file = ROOT / "configs" / f"{name.removesuffix('.yaml')}.yaml"
    assert read_config(name)[1] == yaml.safe_load(file.read_text("utf-8"))


@pytest.mark.parametrize("name", ["digits", "digits.yaml"])
def test_a_file_of_the_working_directory_wins(name, elsewhere):
    (elsewhere / "digits.yaml").write_text("seed_everything: 7")
    assert read_config(name)[1] == {"seed_everything": 7}


def test_a_folder_of_a_config_s_name_does_not_hide_it(elsewhere):
    (elsewhere / "digits").mkdir()
    assert read_config("digits")[1]["data"]["class_path"] == "Digits"


@pytest.mark.parametrize(
    ("name", "way_on"),
    [
        ("configs/digits.yaml", "--config digits takes"),
        ("digit", "did you mean digits?"),
        ("zzz", "list_configs"),
    ],
)
def test_a_config_that_is_missing_is_answered_by_the_way_on(name, way_on, elsewhere):
    with pytest.raises(InputError, match=way_on):
        read_config(name)


def test_every_config_is_listed_with_its_first_line(elsewhere, capsys):
    from ddpm_lightning.cli import main

    main(["list-configs"])
    listed = capsys.readouterr().out
    files = list((ROOT / "configs").rglob("*.yaml"))
    assert len(files) == len(shipped_configs())
    for file in files:
        assert file.read_text("utf-8").splitlines()[0].strip("# .") in listed


def test_fit_takes_a_config_by_its_name(elsewhere, capsys):
    printed = shown(capsys, "fit", "--config", "digits", "--print_config")
    assert yaml.safe_load(printed)["trainer"]["default_root_dir"] == "runs/digits"


@pytest.mark.slow
def test_a_wheel_holds_configs_templates_and_weights(tmp_path):
    """Built with pip, unpacked into a folder that comes first on Python's path."""
    pip = [sys.executable, "-m", "pip"]
    wheel = [*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(wheel, check=True, timeout=600)
    (built,) = tmp_path.glob("*.whl")
    target = tmp_path / "site"
    unpack = [*pip, "install", "--quiet", "--no-deps", "--target", str(target), str(built)]
    subprocess.run(unpack, check=True, timeout=600)
    assert (target / "ddpm_lightning" / "metrics" / "lenet.safetensors").is_file()
    assert (target / "ddpm_lightning" / "template" / "config.yaml").is_file()
    empty = tmp_path / "empty"
    empty.mkdir()
    listed = subprocess.run(
        [str(target / "bin" / "ddpm_lightning"), "list-configs"],
        env={**os.environ, "PYTHONPATH": str(target)},
        cwd=empty,
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    ).stdout
    assert str(target / "ddpm_lightning" / "configs") in listed
    assert "tutorials/class_conditional" in listed
