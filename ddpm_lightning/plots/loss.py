"""The curve of a logged number: all of it, and its last steps from near."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from ddpm_lightning.plots.didactic import BLUE
from ddpm_lightning.plots.figure import new_figure

PARTS = 50
"""A running mean is drawn over this fraction of the points."""


def loss_figure(values: Mapping[int, float], name: str, last: int = 1000) -> Figure:
    """Draw values by step, in order: on the left all, on the right those of the last steps.

    The thin line has every value, the thick one their running mean over a fiftieth of the points.
    The left axis is logarithmic where all values are positive.
    """
    steps, y = np.array([*values]), np.array([*values.values()])
    figure = new_figure(10, 3.6)
    whole, crop = figure.subplots(1, 2)
    recent = steps > steps[-1] - last
    titles = f"{name}, {len(y):,} values", f"the last {min(last, int(steps[-1])):,} steps"
    for axes, title, shown in ((whole, titles[0], steps >= 0), (crop, titles[1], recent)):
        axes.plot(steps[shown], y[shown], color=BLUE, alpha=0.35, linewidth=0.7)
        width = max(1, int(shown.sum()) // PARTS)
        if width > 1:
            mean = np.convolve(y[shown], np.ones(width) / width, "valid")
            label = f"mean of {width}"
            axes.plot(steps[shown][width - 1 :], mean, color=BLUE, linewidth=1.5, label=label)
            axes.legend(fontsize="small")
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
    finite = y[np.isfinite(y)]
    if len(finite) and finite.min() > 0:
        whole.set_yscale("log")
    return figure
