"""Completion: what bash offers after the printed script is sourced."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.small import shown

TRY = """
source {script}
COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_ddpm_lightning; echo "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    return tmp_path_factory.mktemp("completion") / "completion.bash"


@pytest.fixture
def offered(script, capsys, tmp_path):
    """What is offered for a line, in an empty folder."""
    if (bash := shutil.which("bash")) is None:
        pytest.skip("no bash")
    if not script.is_file():
        script.write_text(shown(capsys, "completion"))

    def offer(words: str) -> list[str]:
        text = TRY.format(script=script, words=f"ddpm_lightning {words}")
        done = subprocess.run(
            [bash, "--norc", "-c", text],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return done.stdout.split()

    return offer


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("sa", {"sample"}),
        ("compl", {"completion"}),
        ("fit --trainer.max_s", {"--trainer.max_steps"}),
        ("find_lr --min", {"--min_lr"}),
        ("fit --config swiss", {"swiss_roll"}),
        ("fit --model.net SmallU", {"SmallUNet"}),
        ("fit --data Dig", {"Digits"}),
        ("sample --sampler DD", {"DDIM", "DDPM"}),
        ("plot rev", {"reverse"}),
        ("fit --nothing_of_the_kind", set()),
    ],
)
def test_bash_offers_what_fits(words, wanted, offered):
    assert {*offered(words)} == wanted


def test_files_are_offered_beside_the_configs(offered, tmp_path):
    (tmp_path / "swan.yaml").touch()
    assert {*offered("fit --config sw")} == {"swiss_roll", "swan.yaml"}
