"""Matplotlib figures without pyplot and its global state, and the curve of the bound."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from ddpm_lightning.files import atomic_write
from ddpm_lightning.images import to_pil, write_png

# Okabe and Ito's colours, which the colour-blind tell apart.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, BLACK = "#CC79A7", "#56B4E9", "#000000"


def new_figure(width: float, height: float, dpi: int = 100) -> Figure:
    """Make an empty figure of that many inches, whose parts do not overlap."""
    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def open_axes(axes: Axes, *sides: str) -> None:
    """Leave out the frame's lines of some sides; by default top and right."""
    for side in sides or ("top", "right"):
        axes.spines[side].set_visible(False)


def pixels_of(figure: Figure) -> Tensor:
    """Draw a figure: uint8 [3, H, W]."""
    canvas: Any = figure.canvas
    canvas.draw()
    rgba = torch.from_numpy(np.array(canvas.buffer_rgba()))
    return rearrange(rgba[..., :3], "h w c -> c h w").contiguous()


FIGURES = (".png", ".pdf", ".svg")
"""Endings of the files that a figure is written to."""

EDITABLE: dict[Any, Any] = {
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "ddpm_lightning",
}
"""Text stays text in a PDF and an SVG, and the same figure gives the same file."""


def write_figure(path: Path, figure: Figure) -> None:
    """Write a figure as PNG, PDF or SVG, by its ending; a stopped write leaves no half a file."""
    kind = path.suffix[1:].lower()
    dated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind)
    with atomic_write(path) as partial, rc_context(EDITABLE):
        figure.savefig(partial, format=kind, metadata=dated)


def write_picture(path: Path, picture: Tensor, about: Mapping[str, Any] | None = None) -> None:
    """Write a uint8 picture [C, H, W] as PNG, with what made it, or as a PDF or SVG of pixels."""
    if path.suffix.lower() == ".png":
        write_png(path, picture, about)
        return
    height, width = picture.shape[-2:]
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    figure.figimage(np.asarray(to_pil(picture).convert("RGBA")))
    write_figure(path, figure)


def terms_figure(terms: list[float], edges: list[int], unit: str) -> Figure:
    """Draw L_{t−1} over t (improved DDPM, fig. 2), the mean of each stratum between K + 1 edges.

    ``terms`` are K + 1 means of the bound's columns; the last is L_T and is not drawn.
    """
    figure = new_figure(6, 4, dpi=120)
    axes = figure.add_subplot(xscale="log", yscale="log", xlabel="t")
    axes.set_ylabel(f"L_(t−1), {unit}")
    # The mean over a stratum at its geometric middle.
    spans = list(pairwise(edges))
    middles = [((below + 1) * top) ** 0.5 for below, top in spans]
    heights = [term / (top - below) for term, (below, top) in zip(terms, spans, strict=False)]
    axes.plot(middles, heights, ".-")
    axes.grid(alpha=0.3)
    return figure
