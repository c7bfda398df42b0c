"""Pictures of samples while training, and of how they came about."""

from __future__ import annotations

from pathlib import Path

import torch
from einops import rearrange
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from ddpm_lightning.callbacks.periodic import Periodic
from ddpm_lightning.callbacks.sharing import gather, share, shows_progress
from ddpm_lightning.callbacks.tensorboard import show_animation, show_picture
from ddpm_lightning.data.conditioned import condition_source
from ddpm_lightning.diffusion.denoiser import Guidance
from ddpm_lightning.diffusion.samplers import DDPM, Sampler
from ddpm_lightning.errors import InputError
from ddpm_lightning.images import write_gif, write_png
from ddpm_lightning.module import DiffusionModule
from ddpm_lightning.pictures import pictures_of
from ddpm_lightning.sampling import sampling_tag


class SampleGrid(Periodic):
    """Runs the full reverse chain and shows the samples: in TensorBoard and as files on disk.

    The noise is the same every time, so that the same images take shape over a run. Points in the
    plane are drawn as a scatter plot, with the training data behind them in grey. A model that is
    given images gets the first of the validation split: they stand above the samples, and what
    they were made from stands below.

    Args:
        every_n_steps: Optimizer steps from one grid to the next; the end of training has one, too.
        n: Number of samples.
        columns: Images a row; no matter for points.
        sampler: How to sample; default: DDPM over all levels. Clips to the data's range.
        labels: Class labels for a conditional model, repeated up to n; default: a class a row
            (for points: one class after the other; with given images: theirs).
        guidance: Strength of classifier-free guidance; 1 is none, 0 ignores the labels.
        guidance_interval: Guide only at levels low < t/T ≤ high, e.g. [0.2, 0.8]; null: at all.
        guidance_rescale: Share, 0 to 1, by which guided predictions are brought back to the spread
            of unguided ones, against over-exposure; Lin et al. (2023) use 0.7.
        ema: Averaged weights (true) or the ones in training (false).
        seed: Seed of the noise.
        batch_size: Samples at a time on each device.
        frames: Also draw the way from noise to sample in this many frames: as a strip (noise
            on the left; a row a sample, or a scatter plot a frame) and as an animated GIF.
            0: neither; otherwise at least 2.
        fps: Frames a second of the GIF.
        name: Folder in the run folder and tag in TensorBoard; two grids need two names.

    Raises:
        InputError: A number is out of range.
    """

    def __init__(
        self,
        every_n_steps: int = 1000,
        n: int = 64,
        columns: int = 8,
        sampler: Sampler | None = None,
        labels: list[int] | None = None,
        guidance: float = 1.0,
        guidance_interval: tuple[float, float] | None = None,
        guidance_rescale: float = 0.0,
        ema: bool = True,
        seed: int = 0,
        batch_size: int = 256,
        frames: int = 0,
        fps: float = 10.0,
        name: str = "samples",
    ) -> None:
        super().__init__(every_n_steps)
        if min(n, columns, batch_size) < 1 or fps <= 0 or frames in (-1, 1) or seed < 0:
            raise InputError(
                f"SampleGrid(n={n}, columns={columns}, batch_size={batch_size}, frames={frames}, "
                f"fps={fps}, seed={seed}): n, columns and batch_size are at least 1, frames 0 or "
                "at least 2, fps above 0, seed not negative"
            )
        self.n = n
        self.columns = columns
        self.sampler = sampler or DDPM()
        self.labels = labels
        self.guidance = Guidance(guidance, guidance_interval, guidance_rescale)
        self.ema = ema
        self.seed = seed
        self.batch_size = batch_size
        self.frames = frames
        self.fps = fps
        self.name = name
        self._condition: Tensor | None = None
        self._beside: dict[str, Tensor] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse settings that do not fit the model, before training."""
        assert isinstance(pl_module, DiffusionModule)
        try:
            self._pictures = pictures_of(pl_module.shape, getattr(trainer, "datamodule", None))
        except InputError as error:
            raise InputError(f"SampleGrid: {error}; leave the callback out") from error
        self.sampler.levels(pl_module.schedule)
        pl_module.check_labels(self.labels, self.guidance)
        data = condition_source(getattr(trainer, "datamodule", None), pl_module.condition_channels)
        if data is not None and stage == "fit":
            self._condition = data.conditions("val", self.n)
            truth, y = data.finished("val", self.n)
            repeated = torch.arange(self.n) % len(truth)
            shown = data.task.shown(self._condition, data.shape)
            self._beside = {"above": shown[repeated], "below": truth[repeated]}
            if self.labels is None and pl_module.num_classes is not None:
                self.labels = y.tolist()
        if self.labels is None and pl_module.num_classes is not None and len(pl_module.shape) > 1:
            classes = torch.arange(pl_module.num_classes)
            self.labels = classes.repeat_interleave(self.columns).tolist()
        grids = [grid for grid in trainer.callbacks if isinstance(grid, SampleGrid)]  # type: ignore[attr-defined]
        if [grid.name for grid in grids].count(self.name) > 1:
            raise InputError(f"two SampleGrids are called {self.name!r}; give each a name")

    def run(self, trainer: Trainer, module: LightningModule, step: int) -> None:
        """Sample, log the grid and write the files."""
        assert isinstance(module, DiffusionModule)
        with trainer.precision_plugin.forward_context():
            samples = module.generate(
                share(self.n, trainer),
                self.sampler,
                self.labels,
                self.guidance,
                self.seed,
                self.ema,
                self._condition,
                batch_size=self.batch_size,
                frames=self.frames,
                progress=shows_progress(trainer),
            )
        x = gather(samples.x, self.n, trainer)
        frames = None
        if samples.frames is not None:
            by_sample = rearrange(samples.frames, "frame n ... -> n frame ...")
            frames = rearrange(gather(by_sample, self.n, trainer), "n frame ... -> frame n ...")
        if trainer.is_global_zero:
            tag = sampling_tag(self.sampler, module.schedule, self.guidance, self.ema)
            self._show(trainer, tag, step, x, frames)

    def _show(
        self, trainer: Trainer, tag: str, step: int, x: Tensor, frames: Tensor | None
    ) -> None:
        folder = Path(trainer.default_root_dir) / self.name
        pictures = {tag: self._pictures.together(x, self.columns, **self._beside)}
        if frames is not None:
            pictures[f"{tag}_denoising"] = self._pictures.strip(frames)
            gif = [self._pictures.together(x_t, self.columns, **self._beside) for x_t in frames]
            file = folder / f"{tag}_step_{step:08d}.gif"
            write_gif(file, gif, self.fps)
            show_animation(trainer, f"{self.name}/{tag}_animated", file, step)
        for name, picture in pictures.items():
            write_png(folder / f"{name}_step_{step:08d}.png", picture)
            show_picture(trainer, f"{self.name}/{name}", picture, step)
