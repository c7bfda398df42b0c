"""The names of commands, and the help of those that are no training and no plain function."""

from __future__ import annotations

import pytest
import yaml

from ddpm_lightning.cli import main
from tests.small import fail, shown


def test_completion_has_a_help_that_is_no_script(capsys):
    text = shown(capsys, "completion", "--help")
    assert "usage: python -m ddpm_lightning completion" in text
    assert "COMPREPLY" not in text


def test_completion_takes_no_words(capsys):
    assert "unexpected 'zsh'" in fail(capsys, "completion", "zsh")


def test_a_dash_in_a_command_s_name_is_an_underscore(capsys):
    main(["list_configs"])
    listed = capsys.readouterr().out
    main(["list-configs"])
    assert capsys.readouterr().out == listed


@pytest.mark.parametrize("command", ["find-lr", "analytic-variance"])
def test_it_is_so_for_every_kind_of_command(command, capsys):
    assert f"python -m ddpm_lightning {command.replace('-', '_')}" in shown(
        capsys, command, "--help"
    )


def test_the_nearest_command_is_suggested_for_a_misspelt_one(capsys):
    assert "did you mean analytic_variance?" in fail(capsys, "analitic-variance")


def test_a_printed_config_without_required_settings_is_one_to_fill_in(capsys):
    assert yaml.safe_load(shown(capsys, "fit", "--print_config"))["data"] is None
