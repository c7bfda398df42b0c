"""Matplotlib figures without pyplot and its global state, and the curve of the bound."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from ddpm_lightning.files import atomic_write


def new_figure(width: float, height: float, dpi: int = 100) -> Figure:
    """Make an empty figure of that many inches, whose parts do not overlap."""
    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def pixels_of(figure: Figure) -> Tensor:
    """Draw a figure: uint8 [3, H, W]."""
    canvas: Any = figure.canvas
    canvas.draw()
    rgba = torch.from_numpy(np.array(canvas.buffer_rgba()))
    return rearrange(rgba[..., :3], "h w c -> c h w").contiguous()


def write_figure(path: Path, figure: Figure) -> None:
    """Write a figure as PNG; a stopped write never leaves half a file."""
    with atomic_write(path) as partial:
        figure.savefig(partial, format="png")


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
