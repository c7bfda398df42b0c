"""Imports of the package point down its layers, and never in a circle."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import ddpm_lightning

# From the bottom up. A name is a file or a folder; a file imports from its own row and the rows
# above it in this table. Imports in functions and under TYPE_CHECKING count like any other.
LAYERS = (
    ("errors", "imports", "files", "memory", "busy", "typed", "trust"),
    ("closed_pipe", "stored_help"),
    ("configurable", "batch", "progress"),
    ("randomness", "processes"),
    ("diffusion", "networks", "text", "perceptual"),
    ("images",),
    ("trackers",),
    ("data",),
    ("metrics",),
    ("integrity", "checkpoint_structure", "run_folder", "shipped_models"),
    ("checkpoint", "checkpoint_io", "training_state"),
    ("codecs",),
    ("compilation", "sharding", "ema", "muon", "optimization", "sampling", "resume"),
    ("diagnosis", "finite", "step_means", "trained", "module", "autoencoder"),
    ("loaded",),
    ("plots",),
    ("evaluation",),
    ("interchange", "initial_weights"),
    ("callbacks",),
    ("doctor",),
    ("terminal",),
    ("commands",),
    ("cli", "__main__", "__init__"),
    ("template",),
)

PACKAGE = "ddpm_lightning"
ROOT = Path(ddpm_lightning.__file__).parent
FILES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts): path
    for path in sorted(ROOT.rglob("*.py"))
}
FOLDERS = {name.removesuffix(".__init__") for name in FILES if name.endswith(".__init__")}


def file_of(name: str) -> str | None:
    """Name the file in which a dotted name is found; None outside the package."""
    while name.split(".")[0] == PACKAGE:
        if name in FOLDERS:
            return f"{name}.__init__"
        if name in FILES:
            return name
        name = name.rpartition(".")[0]
    return None


def imports_of(name: str) -> set[str]:
    """Collect the files of the package that a file imports from."""
    found = set()
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {file_of(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} line {node.lineno}: a relative import"
            found |= {file_of(f"{node.module}.{alias.name}") for alias in node.names}
    return {file for file in found if file is not None and file != name}


@cache
def all_imports() -> dict[str, set[str]]:
    return {name: imports_of(name) for name in FILES}


def layer_of(name: str) -> int | None:
    top = name.split(".")[1]
    return next((i for i, row in enumerate(LAYERS) if top in row), None)


def circle(graph: dict[str, set[str]]) -> str | None:
    """Write out a circle of a graph, if there is one."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return " → ".join(reversed(error.args[1]))
    return None


def test_every_file_has_a_layer():
    assert [name for name in FILES if layer_of(name) is None] == []


def test_every_name_of_the_table_is_a_file_or_a_folder():
    tops = {name.split(".")[1] for name in FILES}
    assert [name for row in LAYERS for name in row if name not in tops] == []


def test_no_import_points_up():
    upwards = [
        f"{name} imports {other}"
        for name, others in all_imports().items()
        for other in sorted(others)
        if (layer_of(name) or 0) < (layer_of(other) or 0)
    ]
    assert not upwards, "\n".join(upwards)


def test_no_circle_of_files():
    assert circle(all_imports()) is None


@pytest.mark.parametrize("folder", sorted(FOLDERS))
def test_no_circle_of_what_lies_side_by_side(folder):
    """The files and folders of one folder, taken as wholes."""

    def side(name: str) -> str:
        return name.removeprefix(f"{folder}.").split(".")[0]

    inside = [name for name in FILES if name.startswith(f"{folder}.")]
    graph: dict[str, set[str]] = {side(name): set() for name in inside}
    for name in inside:
        others = {side(other) for other in all_imports()[name] if other.startswith(f"{folder}.")}
        graph[side(name)] |= others - {side(name)}
    assert circle(graph) is None
