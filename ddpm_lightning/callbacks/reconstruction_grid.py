"""Grids of reconstructions while an autoencoder trains."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from ddpm_lightning.autoencoder import Autoencoder, psnr
from ddpm_lightning.callbacks.drawing import Drawing
from ddpm_lightning.errors import at_least
from ddpm_lightning.images import write_png
from ddpm_lightning.plots.pictures import pictures_of
from ddpm_lightning.plots.strips import captioned
from ddpm_lightning.trackers import show


class ReconstructionGrid(Drawing):
    """Draws the first images of the validation split above their reconstructions.

    By the averaged weights, from the mean of the latents; as files in the run folder and into the
    loggers.

    Args:
        every_n_steps: Optimizer steps from one grid to the next; the end of training has one, too.
        n: Number of images.
        columns: Images a row.
        name: Folder inside the run folder and tag in the loggers.

    Raises:
        InputError: A number is out of range, or the name no folder's.
    """

    def __init__(
        self,
        every_n_steps: int = 1000,
        n: int = 32,
        columns: int = 8,
        name: str = "reconstructions",
    ) -> None:
        super().__init__(every_n_steps, name)
        at_least(1, self, n=n, columns=columns)
        self.n = n
        self.columns = columns

    @override
    def run(self, trainer: Trainer, module: LightningModule, step: int) -> None:
        assert isinstance(module, Autoencoder)
        if not trainer.is_global_zero:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        x = data.finished("val", self.n).x0.to(module.device)
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            again = module.reconstruct(x).float()
        mean = float(psnr(again, x).mean())
        title = f"step {step} · images above their reconstructions · PSNR {mean:.2f} dB"
        rows = []
        for first in range(0, len(x), self.columns):
            part = slice(first, first + self.columns)
            rows += [*x[part].cpu(), *again[part].cpu()]
        picture = pictures_of(module.data.shape).together(torch.stack(rows), self.columns)
        file = self.folder(trainer) / f"step_{step:08d}.png"
        write_png(file, captioned(picture, title=title), {"step": step, "psnr": mean})
        show(trainer, self.name, file, step)
