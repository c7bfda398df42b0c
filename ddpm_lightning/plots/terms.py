"""The terms of the variational bound as a curve."""

from __future__ import annotations

from itertools import pairwise

from matplotlib.figure import Figure

from ddpm_lightning.plots.figure import new_figure


def terms_figure(terms: list[float], edges: list[int], unit: str) -> Figure:
    """Draw L_{t−1} over t (improved DDPM, fig. 2).

    Args:
        terms: K + 1 means of the bound's columns; the last is L_T and is not drawn.
        edges: K + 1 edges of the strata.
        unit: Label of the axis.
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
