"""How samples are shown and kept: images as grids and PNG files, points as scatter plots."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from typing_extensions import override

from ddpm_lightning.data.data_module import DiffusionData
from ddpm_lightning.errors import InputError
from ddpm_lightning.files import atomic_write
from ddpm_lightning.images import OVERVIEW, grid, to_uint8, write_png
from ddpm_lightning.plots.figure import new_figure, pixels_of

BACKDROP = 2000
"""Points of the data that stand behind the samples."""


class Pictures(ABC):
    """How samples of one kind of data become pictures and files."""

    overview: str
    """Name of the file that shows all samples."""

    @abstractmethod
    def together(
        self, x: Tensor, columns: int = 8, inputs: Tensor | None = None, **bands: Tensor
    ) -> Tensor:
        """Show samples, or x_t [n, ...] on the way to them, in one picture uint8 [C, H, W].

        Of images with so many columns, given ones [M, ...] before all, and others ``above`` and
        ``below`` each. The size depends on n and columns alone.
        """

    @abstractmethod
    def strip(self, frames: Tensor) -> Tensor:
        """Show frames [F, n, ...] of x_t, noise on the left: uint8 [C, H, W]."""

    @abstractmethod
    def write(self, folder: Path, x: Tensor, about: Mapping[str, Any]) -> None:
        """Write the samples [n, ...] into a folder, and into PNG files what made them."""


def pictures_of(shape: tuple[int, ...], data: object = None) -> Pictures:
    """Find how data of this shape are drawn.

    Points of a DiffusionData are drawn behind the samples and fix the axes.

    Raises InputError: Such data cannot be drawn.
    """
    if len(shape) == 3 and shape[0] in (1, 3, 4):
        return Images()
    if tuple(shape) == (2,):
        if isinstance(data, DiffusionData) and data.shape == (2,):
            return Scatter(data.finished("train", BACKDROP).x0)
        return Scatter()
    raise InputError(
        f"data of shape {list(shape)} cannot be drawn, only images of 1, 3 or 4 channels and "
        "points in the plane"
    )


def strip_rows(n: int) -> Tensor:
    """Of n samples the ones in a strip: ten at most, evenly spread, so that each class has one."""
    return torch.linspace(0, n - 1, min(10, n)).long()


class Images(Pictures):
    """Images in [−1, 1]: a grid, and a PNG each at its own size."""

    overview = OVERVIEW

    @override
    def together(
        self, x: Tensor, columns: int = 8, inputs: Tensor | None = None, **bands: Tensor
    ) -> Tensor:
        above, below = bands.get("above"), bands.get("below")
        return grid(x, columns, inputs=inputs, above=above, below=below)

    @override
    def strip(self, frames: Tensor) -> Tensor:
        """A row a sample of :func:`strip_rows`."""
        shown = rearrange(frames[:, strip_rows(frames.shape[1])], "frame n ... -> (n frame) ...")
        return grid(shown, columns=len(frames), tile=48)

    @override
    def write(self, folder: Path, x: Tensor, about: Mapping[str, Any]) -> None:
        """Write 000000.png, 000001.png and so on."""
        for k, image in enumerate(to_uint8(x)):
            write_png(folder / f"{k:06d}.png", image, {**about, "sample": k})


class Scatter(Pictures):
    """Points in the plane: a scatter plot with the data behind in grey, and samples.npy.

    The axes never change, so that pictures of a run compare: they show the data with a margin of a
    quarter, or −3…3 without data.
    """

    overview = "scatter.png"

    def __init__(self, backdrop: Tensor | None = None) -> None:
        self.backdrop = backdrop
        self.middle, self.reach = (0.0, 0.0), 3.0
        if backdrop is not None:
            low, high = backdrop.amin(0), backdrop.amax(0)
            x, y = ((low + high) / 2).tolist()
            self.middle, self.reach = (x, y), 1.25 * float((high - low).max()) / 2 or 1.0

    @override
    def together(
        self, x: Tensor, columns: int = 8, inputs: Tensor | None = None, **bands: Tensor
    ) -> Tensor:
        return self._plot(x, pixels=480)

    @override
    def strip(self, frames: Tensor) -> Tensor:
        """A plot a frame."""
        return torch.cat([self._plot(x, pixels=160, ticks=False) for x in frames], dim=2)

    @override
    def write(self, folder: Path, x: Tensor, about: Mapping[str, Any]) -> None:
        """Write samples.npy, float32 [n, 2]."""
        with atomic_write(folder / "samples.npy") as partial, partial.open("wb") as file:
            np.save(file, x.numpy())

    def _plot(self, x: Tensor, pixels: int, ticks: bool = True) -> Tensor:
        """Plot [n, 2] as uint8 [3, pixels, pixels], on fixed axes."""
        figure = new_figure(pixels / 100, pixels / 100)
        axes = figure.add_subplot(aspect="equal")
        dot = (pixels / 200) ** 2 / 2  # an area, in points
        if self.backdrop is not None:
            axes.scatter(self.backdrop[:, 0], self.backdrop[:, 1], s=dot, c="0.8", linewidths=0)
        axes.scatter(x[:, 0], x[:, 1], s=dot, c="tab:blue", linewidths=0)
        axes.set_xlim(self.middle[0] - self.reach, self.middle[0] + self.reach)
        axes.set_ylim(self.middle[1] - self.reach, self.middle[1] + self.reach)
        if not ticks:
            axes.set_xticks([])
            axes.set_yticks([])
        return pixels_of(figure)
