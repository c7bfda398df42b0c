"""No function asks for too much, or goes on for too long."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import ddpm_lightning

FILES = sorted(Path(ddpm_lightning.__file__).parent.rglob("*.py"))
MOST_PARAMETERS = 8
MOST_LINES = 60


@cache
def functions() -> list[tuple[str, ast.FunctionDef, int]]:
    """Every function of the package: where it stands, its node, its lines without docstring."""
    found = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                body = node.body
                if ast.get_docstring(node) is not None and len(body) > 1:
                    body = body[1:]
                lines = (node.end_lineno or 0) - body[0].lineno + 1
                found.append((f"{path.name}:{node.lineno} {node.name}", node, lines))
    return found


def parameters(node: ast.FunctionDef) -> list[str]:
    """Parameters of its own; a constructor mirrors a config, and **request is one Request."""
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return [argument.arg for argument in arguments if argument.arg not in ("self", "cls")]


def test_no_function_but_a_constructor_has_more_than_eight_parameters_of_its_own():
    counts = {w: len(parameters(n)) for w, n, _ in functions() if n.name != "__init__"}
    assert {where: count for where, count in counts.items() if count > MOST_PARAMETERS} == {}


def test_no_function_is_longer_than_sixty_lines():
    lengths = {where: lines for where, _, lines in functions()}
    assert {where: lines for where, lines in lengths.items() if lines > MOST_LINES} == {}
