"""Files around the package that repeat what another file states."""

from __future__ import annotations

import re
from pathlib import Path

from tests.conftest import CORE
from tests.count_lines import KINDS, count_lines

ROOT = Path(__file__).parents[1]
BOUND = re.compile(r'^    "([\w.-]+)(?:\[\w+\])?>=([\d.]+)"', re.MULTILINE)


def test_the_core_tests_are_files():
    missing = [name for name in CORE if not (ROOT / "tests" / f"test_{name}.py").exists()]
    assert missing == []


def test_the_lowest_releases_are_the_bounds_of_the_project_file():
    bounds = dict(BOUND.findall((ROOT / "pyproject.toml").read_text()))
    lines = (ROOT / ".ci" / "lowest.txt").read_text().splitlines()
    lowest = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert len(bounds) > 20
    assert lowest.keys() == bounds.keys() - {"typing-extensions"}
    assert [name for name in lowest if not f"{lowest[name]}.".startswith(f"{bounds[name]}.")] == []


def test_every_line_is_of_one_kind(tmp_path):
    path = tmp_path / "a.py"
    path.write_text('"""A.\n\nB."""\n\nx = 1  # code\n# comment\ny = """a\n\nb"""\n')
    assert count_lines(path) == dict(zip(KINDS, (4, 3, 1, 1), strict=True))
