"""Help without waiting: the stored texts are those of the parsers, and need no torch."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from ddpm_lightning.__main__ import run
from ddpm_lightning.stored_help import stored_help

WALK = """
import contextlib, io, sys
from ddpm_lightning.__main__ import run
from ddpm_lightning.stored_help import FOLDER

for path in sorted(FOLDER.glob("*.txt")):
    words = path.stem.split(".")[1:]
    sys.argv[1:] = [*words, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        run()
    assert shown.getvalue() == path.read_text("utf-8") != "", words
print(*{name.partition(".")[0] for name in sys.modules})
"""


def python(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_help_of_no_plain_command_imports_what_takes_seconds():
    imported = set(python("-c", WALK).split())
    assert imported & {"torch", "lightning", "torchvision", "matplotlib", "jsonargparse"} == set()


def test_the_collector_leaves_the_imports_alone_and_runs_when_the_program_does(monkeypatch):
    calls = []
    for name in ("disable", "freeze", "enable"):
        monkeypatch.setattr(gc, name, lambda name=name: calls.append(name))
    monkeypatch.setattr(sys, "argv", ["ddpm_lightning", "list_configs"])
    monkeypatch.setattr("ddpm_lightning.cli.main", lambda: calls.append("main"))
    run()
    assert calls == ["disable", "freeze", "enable", "main"]


@pytest.mark.slow
def test_the_stored_help_is_what_the_parsers_print():
    said = python("-m", "ddpm_lightning.cli.help_texts", "--check")
    if "not compared" in said:
        pytest.skip(said)


@pytest.mark.parametrize("words", [["-h"], ["sample", "-h"], ["list-configs", "--help"]])
def test_help_has_short_forms(words):
    assert (stored_help(words) or "").startswith("usage: python -m ddpm_lightning")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["sample"],
        ["fit", "--help"],
        ["plot", "nothing", "--help"],
        ["../sample", "--help"],
        ["sample", "--n", "--help"],
        ["versions", "--help"],
        ["program", "--help"],
        ["ddpm_lightning", "--help"],
        ["plot_loss", "--help"],
        ["plot-loss", "--help"],
        ["plot.loss", "--help"],
    ],
)
def test_other_words_are_the_parsers_own(words):
    assert stored_help(words) is None
