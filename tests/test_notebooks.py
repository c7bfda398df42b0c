"""The notebooks run from a clean kernel."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
SHORTER = {
    "digits": {"max_steps=300": "max_steps=20", "n = 300": "n = 40"},
    "figures": {
        "max_steps=1500": "max_steps=100",
        "last=1000": "last=50",
        "max_steps=500": "max_steps=20",
        "schedule=Linear(T=1000)": "schedule=Linear(T=50)",
    },
    "score_sde": {
        "(10, 20, 40, 80, 160, 320)": "(10, 20, 40, 320)",
        "steps, rows = 2500, 512": "steps, rows = 1200, 512",
    },
}
"""Settings of training and sampling, and what stands in their place here."""


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    for setting, shorter in SHORTER.get(path.stem, {}).items():
        (cell,) = (cell for cell in notebook.cells if setting in cell.source)
        cell.source = cell.source.replace(setting, shorter)
    NotebookClient(
        notebook, timeout=540, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_checked_in_with_its_pictures(path):
    notebook = nbformat.read(path, as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output.output_type == "error"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_stays_below_the_hooks_limit_of_a_file(path):
    assert path.stat().st_size <= 1000 * 1024
