"""Grids of samples while training, and how they came about."""

from __future__ import annotations

from pathlib import Path

import torch
from einops import rearrange
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from ddpm_lightning.callbacks.periodic import Periodic
from ddpm_lightning.callbacks.sharing import gather, share
from ddpm_lightning.diffusion.denoiser import guide
from ddpm_lightning.diffusion.samplers import DDPM, Sampler
from ddpm_lightning.images import grid, write_gif, write_png
from ddpm_lightning.module import DiffusionModule
from ddpm_lightning.sampling import generate


class SampleGrid(Periodic):
    """Runs the full reverse chain and shows the samples: in TensorBoard and as PNG on disk.

    The noise is the same every time, so that the same images take shape over a run. Files go to
    samples/ in the run folder.

    Args:
        every_n_steps: Optimizer steps from one grid to the next; the end of training has one, too.
        n: Number of samples.
        columns: Images a row.
        sampler: How to sample; default: DDPM over all levels. Clips to the data's range.
        labels: Class labels, one a sample or a list that is repeated; default: no class.
        guidance: Strength of classifier-free guidance; 1 is none.
        ema: Averaged weights (true) or the ones in training (false).
        seed: Seed of the noise.
        batch_size: Samples at a time on each device.
        frames: Also draw the way from noise to sample in this many frames: as a strip (a row a
            sample, noise on the left) and as an animated GIF. 0: neither; otherwise at least 2.
        fps: Frames a second of the GIF.
    """

    def __init__(
        self,
        every_n_steps: int = 1000,
        n: int = 64,
        columns: int = 8,
        sampler: Sampler | None = None,
        labels: list[int] | None = None,
        guidance: float = 1.0,
        ema: bool = True,
        seed: int = 0,
        batch_size: int = 256,
        frames: int = 0,
        fps: float = 10.0,
    ) -> None:
        super().__init__(every_n_steps)
        self.n = n
        self.columns = columns
        self.sampler = sampler or DDPM()
        self.labels = labels
        self.guidance = guidance
        self.ema = ema
        self.seed = seed
        self.batch_size = batch_size
        self.frames = frames
        self.fps = fps

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse labels and step counts that do not fit the model, before training."""
        assert isinstance(pl_module, DiffusionModule)
        self.sampler.levels(pl_module.schedule)
        if self.labels is not None:
            pl_module.check_labels(torch.tensor(self.labels), len(self.labels))

    def run(self, trainer: Trainer, module: LightningModule, step: int) -> None:
        """Sample, log the grid and write the files."""
        assert isinstance(module, DiffusionModule)
        indices = share(self.n, trainer)
        with trainer.precision_plugin.forward_context():
            samples = generate(
                guide(module.denoiser(self.ema), self.guidance),
                self.sampler.clipped(module.data_range),
                module.shape,
                indices,
                labels=self._labels(indices),
                seed=self.seed,
                batch_size=self.batch_size,
                frames=self.frames,
                device=module.device,
                progress=trainer.is_global_zero,
            )
        x = gather(samples.x, self.n, trainer)
        frames = None
        if samples.frames is not None:
            by_sample = rearrange(samples.frames, "frame n ... -> n frame ...")
            frames = rearrange(gather(by_sample, self.n, trainer), "n frame ... -> frame n ...")
        if trainer.is_global_zero:
            tag = f"{self.sampler.tag(module.schedule)}_{'ema' if self.ema else 'raw'}"
            self._show(trainer, tag, step, x, frames)

    def _labels(self, indices: Tensor) -> Tensor | None:
        if self.labels is None:
            return None
        return torch.tensor(self.labels)[indices % len(self.labels)]

    def _show(
        self, trainer: Trainer, tag: str, step: int, x: Tensor, frames: Tensor | None
    ) -> None:
        folder = Path(trainer.default_root_dir) / "samples"
        pictures = {"samples": grid(x, self.columns)}
        if frames is not None:
            pictures["denoising"] = denoising_strip(frames)
            gif = [grid(frame, self.columns) for frame in frames]
            write_gif(folder / f"{tag}_step_{step:08d}.gif", gif, self.fps)
        for name, picture in pictures.items():
            suffix = "" if name == "samples" else f"_{name}"
            write_png(folder / f"{tag}_step_{step:08d}{suffix}.png", picture)
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_image(f"{name}/{tag}", picture, step)


def denoising_strip(frames: Tensor, rows: int = 8) -> Tensor:
    """Lay trajectories out as a picture: a row a sample, from noise on the left to the sample.

    Args:
        frames: [F, n, C, H, W] in [−1, 1] and beyond, noise first.
        rows: How many of the samples are shown.
    """
    shown = rearrange(frames[:, :rows], "frame n ... -> (n frame) ...")
    return grid(shown, columns=len(frames), tile=32)
