"""Code, docstring, comment and blank lines of the package and the tests.

Usage: ``python -m tests.count_lines [ROOT]``. ROOT is a checkout, this one by default.
"""

from __future__ import annotations

import ast
import sys
import tokenize
from collections import Counter
from pathlib import Path

KINDS = ("code", "docstring", "comment", "blank")
SILENT = (
    tokenize.ENCODING,
    tokenize.ENDMARKER,
    tokenize.NEWLINE,
    tokenize.NL,
    tokenize.INDENT,
    tokenize.DEDENT,
)


def count_lines(path: Path) -> Counter[str]:
    """Count the lines of a Python file by kind; a line that holds any code counts as code.

    A string that stands alone as a statement counts as a docstring, wherever it stands.

    Args:
        path: The file.

    Returns:
        Numbers of lines by kind; they add up to the lines of the file.
    """
    text = path.read_text(encoding="utf-8")
    kinds = ["blank"] * len(text.splitlines())
    documented: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Expr(value=ast.Constant(value=str())):
                documented |= set(range(node.lineno, (node.end_lineno or 0) + 1))
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type in SILENT:
                continue
            lines = range(token.start[0], token.end[0] + 1)
            if token.type == tokenize.COMMENT:
                kind = "comment"
            elif token.type == tokenize.STRING and documented.issuperset(lines):
                kind = "docstring"
            else:
                kind = "code"
            for line in lines:
                if KINDS.index(kind) < KINDS.index(kinds[line - 1]):
                    kinds[line - 1] = kind
    return Counter(kinds)


def main(root: Path) -> None:
    """Print a table: package, tests, both."""
    print(f"{'':<16}{'files':>7}" + "".join(f"{kind:>11}" for kind in KINDS) + f"{'all':>11}")
    total, files = Counter[str](), 0
    for folder in ("ddpm_lightning", "tests"):
        paths = sorted((root / folder).rglob("*.py"))
        lines = sum((count_lines(path) for path in paths), Counter[str]())
        print(_row(folder, len(paths), lines))
        total, files = total + lines, files + len(paths)
    print(_row("both", files, total))


def _row(name: str, files: int, lines: Counter[str]) -> str:
    numbers = [lines[kind] for kind in KINDS]
    return f"{name:<16}{files:>7}" + "".join(
        f"{number:>11}" for number in [*numbers, sum(numbers)]
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1])
