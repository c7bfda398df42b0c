"""The nearest class or module for a misspelt path into a package of the user's own."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from ddpm_lightning.imports import near_path
from tests.small import fail

SCHEDULE = """\
from ddpm_lightning.diffusion import Cosine


class Helix(Cosine):
    '''A cosine schedule.'''


class _Hidden(Cosine):
    '''Nobody's choice.'''
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A package with a schedule, and a module that must not run unasked.

    It stays imported, because the parser finds its classes in the tests that follow.
    """
    root = tmp_path_factory.mktemp("own")
    folder = root / "own_idea"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "schedule.py").write_text(SCHEDULE)
    (folder / "sampler.py").write_text("raise SystemError('it was run')\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root)
        yield "own_idea"


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("own_idea.schedule.Helx", "own_idea.schedule.Helix"),
        ("own_idea.schedul.Spiral", "own_idea.schedule"),
    ],
)
@pytest.mark.parametrize("flag", ["--model.schedule", "--model.schedule.help"])
def test_the_nearest_name_is_suggested(flag, path, near, package, capsys):
    line = fail(capsys, "fit", "--config", "digits", f"{flag}={path}")
    assert line.endswith(f"; did you mean {near}?")


def test_so_it_is_for_metrics_which_are_read_later(capsys, tmp_path):
    run = ("--config", "digits", f"--trainer.default_root_dir={tmp_path / 'run'}")
    line = fail(capsys, "fit", *run, "--metrics.metrics=[ddpm_lightning.metrics.KIDD]")
    assert line.endswith("; did you mean ddpm_lightning.metrics.KID?")


def test_without_a_near_name_those_there_are_are_listed(package, capsys):
    line = fail(capsys, "fit", "--config", "digits", "--model.schedule=own_idea.schedule.Zebra")
    assert line.endswith("has no attribute 'Zebra'; it has Helix")


def test_nothing_is_imported_for_a_suggestion(package):
    __import__(package)
    assert near_path("own_idea.sampl.Mine") == "; did you mean own_idea.sampler?"
    assert "own_idea.sampler" not in sys.modules


def test_a_class_of_a_module_below_is_suggested_by_its_whole_path(package):
    __import__("own_idea.schedule")
    assert near_path("own_idea.Helix") == ("; did you mean own_idea.schedule.Helix?")


@pytest.mark.parametrize("path", ["nobody_has_this.Name", "json.JSONDecoder", "json"])
def test_a_path_of_which_nothing_is_known_to_be_wrong_has_no_suggestion(path):
    assert near_path(path) == ""


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("ddpm_lightning.schedules.Cosine", "; did you mean ddpm_lightning.diffusion.Cosine?"),
        ("ddpm_lightning.diffusion.Cosin", "; did you mean ddpm_lightning.diffusion.Cosine?"),
        ("ddpm_lightning.Adam", ""),  # MuonAdamW is another
    ],
)
def test_the_class_itself_is_looked_for_before_a_name_like_its_module_s(path, answer):
    assert near_path(path) == answer


def test_a_suggestion_imports_nothing(monkeypatch):
    lazy = ModuleType("lazy_idea")
    lazy.__getattr__ = pytest.fail
    monkeypatch.setitem(sys.modules, "lazy_idea", lazy)
    monkeypatch.setitem(sys.modules, "lazy_idea.blocked", None)  # as Python blocks an import
    assert near_path("lazy_idea.Foo") == ""
