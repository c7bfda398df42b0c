"""The curve of a logged number: all of it, and its last steps from near."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from ddpm_lightning.plots.figure import BLUE, new_figure, open_axes

PARTS = 50
"""A running mean is drawn over this fraction of the points."""


def loss_figure(values: Mapping[int, float], name: str, last: int = 1000) -> Figure:
    """Draw values by step, in order: on the left all, on the right those of the last steps.

    The thin line has every value, the thick one their running mean over a fiftieth of the points.
    The left axis is logarithmic where all values are positive. A run that has no more steps than
    the last ones has one plot.
    """
    steps, y = np.array([*values]), np.array([*values.values()])
    plots = [("", steps >= 0)]
    if steps[0] <= steps[-1] - last:
        plots = [(f"{len(y):,} values", steps >= 0)]
        plots += [(f"the last {last:,} steps", steps > steps[-1] - last)]
    figure = new_figure(4.6 * len(plots), 3.2, dpi=150)
    all_axes = figure.subplots(1, len(plots), squeeze=False)[0]
    for axes, (title, shown) in zip(all_axes, plots, strict=True):
        width = max(1, int(shown.sum()) // PARTS)
        every = {"alpha": 0.35, "linewidth": 0.7} if width > 1 else {"marker": ".", "linewidth": 1}
        axes.plot(steps[shown], y[shown], color=BLUE, **every)
        if width > 1:
            mean = np.convolve(y[shown], np.ones(width) / width, "valid")
            label = f"mean of {width}"
            axes.plot(steps[shown][width - 1 :], mean, color=BLUE, linewidth=1.5, label=label)
            axes.legend(fontsize="small", frameon=False)
        axes.set_title(title, fontsize="medium")
        axes.set_xlabel("optimizer step")
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.locator_params(axis="x", nbins=5, integer=True)
        axes.grid(alpha=0.25, linewidth=0.6)
        open_axes(axes)
    all_axes[0].set_ylabel(name)
    finite = y[np.isfinite(y)]
    if len(finite) and finite.min() > 0:
        _logarithmic(all_axes[0])
    return figure


def _logarithmic(axes: Axes) -> None:
    """Make the vertical axis logarithmic, with plain numbers at 1, 2, 3 and 5 of each decade."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
