"""init: a project that runs at once, and overwrites nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ddpm_lightning.cli import main
from tests.small import fail

FILES = ["config.yaml", "test_my_project.py"]
FILES += [f"my_project/{name}.py" for name in ("__init__", "data", "network")]


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A new project as the working directory.

    Its package stays imported, because the parser finds its classes in the tests that follow.
    """
    folder = tmp_path / "project"
    main(["init", str(folder)])
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    return folder


def test_it_writes_these_files_and_no_others(tmp_path):
    main(["init", str(tmp_path / "new")])
    written = [path for path in (tmp_path / "new").rglob("*") if path.is_file()]
    assert {path.relative_to(tmp_path / "new").as_posix() for path in written} == {*FILES}


def test_it_writes_into_a_folder_that_holds_other_files(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    main(["init", str(tmp_path)])
    assert (tmp_path / "config.yaml").is_file()
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_nothing_is_overwritten_and_nothing_written_where_a_file_is_there(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("mine")
    assert f"{tmp_path / 'config.yaml'}: there already" in fail(capsys, "init", str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    assert (tmp_path / "config.yaml").read_text() == "mine"


def test_two_steps_of_its_own_config_train(project):
    main(["fit", "--config", "config.yaml", "--trainer.max_steps", "2", "--grid.n", "2"])
    assert (project / "runs" / "my_project" / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.slow
def test_its_own_tests_pass(project):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout
