"""Figures: grids and scatter plots of samples, strips, curves."""
