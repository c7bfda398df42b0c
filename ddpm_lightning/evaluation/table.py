"""Tables of results as text, and for a paper: CSV, LaTeX and Markdown; names that read well."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Layout = Literal["text", "csv", "latex", "markdown"]
"""How a table is laid out."""

ENDINGS: dict[Layout, str] = {"text": "txt", "csv": "csv", "latex": "tex", "markdown": "md"}
"""Endings of the files of tables."""

METRICS = {
    "fid": "FID",
    "fd": "Fréchet distance",
    "kid": "KID",
    "kd": "kernel distance",
    "is": "Inception score",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "swd": "sliced Wasserstein distance",
    "mmd": "squared MMD",
    "bpd": "bits/dim",
    "npd": "nats/dim",
}
"""Metrics as papers name them, by the first part of their name."""

EXTRACTORS = {"lenet": "LeNet", "colour": "ColourNet", "pixels": "pixels", "inf": "extrapolated"}
"""What the other parts of a metric's name mean."""


@dataclass(frozen=True)
class Number:
    """A cell: a number, not finite if None, with its standard error, not known if None."""

    value: float | None
    error: float | None = None

    def __str__(self) -> str:
        if self.value is None:
            return "not finite"
        return f"{self.value:.4g}" + ("" if self.error is None else f" ± {self.error:.2g}")


Cell = str | int | Number


def metric_title(name: str) -> str:
    """Name a metric in words: fd_lenet is Fréchet distance (LeNet)."""
    stem, *details = name.split("_")
    if stem not in METRICS:
        return name
    words = ", ".join(EXTRACTORS.get(detail, detail) for detail in details)
    return METRICS[stem] + (f" ({words})" if words else "")


def readable(curve: str) -> str:
    """Name a combination of a sweep as papers do: DPMSolverPP, eta=1 is DPM-Solver++, η = 1."""
    for ours, theirs in (("DPMSolverPP", "DPM-Solver++"), ("eta=", "η="), ("guidance ", "w=")):
        curve = curve.replace(ours, theirs)
    return curve.replace("=", " = ")


def lay_out(header: Sequence[str], rows: Sequence[Sequence[Cell]], layout: Layout) -> str:
    """Lay out a table.

    Args:
        header: A name a column. Of a column of numbers CSV makes two, the second of errors.
        rows: A cell a column; the first columns are text.
        layout: For whom.
    """
    if layout == "csv":
        return _csv(header, rows)
    cells = [[str(cell) for cell in row] for row in rows]
    if layout == "latex":
        return _latex(header, cells)
    if layout == "markdown":
        lines = [list(header), ["---", *["---:"] * (len(header) - 1)], *cells]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    return "\n".join(
        "  ".join(
            f"{cell:{'<' if i == 0 else '>'}{width}}" for i, (cell, width) in enumerate(line)
        )
        for line in (list(zip(row, widths, strict=True)) for row in (header, *cells))
    )


def _csv(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    numbers = [isinstance(cell, Number) for cell in rows[0]]

    def names() -> Iterator[str]:
        for name, number in zip(header, numbers, strict=True):
            yield from (name, f"{name}_error") if number else (name,)

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names())
    for row in rows:
        pairs = [(c.value, c.error) if isinstance(c, Number) else (c,) for c in row]
        writer.writerow([value for pair in pairs for value in pair])
    return text.getvalue().rstrip("\n")


def _latex(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    lines = [f"\\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", "\\toprule"]
    lines += [" & ".join(map(_escaped, header)) + r" \\", r"\midrule"]
    lines += [" & ".join(map(_escaped, row)) + r" \\" for row in cells]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _escaped(text: str) -> str:
    """Text for LaTeX: its special characters, and the ones that mathematics sets."""
    text = re.sub(r"([&%$#_{}])", r"\\\1", text)
    for sign, command in (("±", r"$\pm$"), ("η", r"$\eta$"), ("−", "$-$")):
        text = text.replace(sign, command)
    return re.sub(r"(?<![\w$])-(?=\d)", "$-$", text)
