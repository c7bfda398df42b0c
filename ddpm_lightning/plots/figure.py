"""Matplotlib figures without pyplot and its global state: made, written and turned to pixels."""

from __future__ import annotations

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
