"""Pictures of samples while training, and of how they came about."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from einops import rearrange
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from ddpm_lightning.callbacks.periodic import Periodic
from ddpm_lightning.callbacks.sharing import gather, share, shows_progress
from ddpm_lightning.callbacks.tensorboard import show_animation, show_picture
from ddpm_lightning.checks import check_fps, check_frames, check_seed
from ddpm_lightning.data.conditioned import condition_source
from ddpm_lightning.diffusion.denoiser import Guidance
from ddpm_lightning.diffusion.samplers import DDPM, Sampler
from ddpm_lightning.errors import InputError
from ddpm_lightning.module import DiffusionModule
from ddpm_lightning.networks.network import NULL_LABEL
from ddpm_lightning.pictures.images import write_gif, write_png
from ddpm_lightning.pictures.samples import Scatter, pictures_of
from ddpm_lightning.pictures.strips import captioned
from ddpm_lightning.sampling import levels_from_noise, sampling_tag


class SampleGrid(Periodic):
    """Runs the full reverse chain and shows the samples: in TensorBoard and as files on disk.

    The noise is the same every time, so that the same images take shape over a run. A caption says
    the step and how they were drawn; the class stands beside rows or above columns that have one.
    Points in the plane are drawn as a scatter plot, with the training data behind them in grey. A
    model that is given images gets the first of the validation split: they stand above the
    samples, and what they were made from stands below.

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
        seed: Seed of the noise, 0 to 2**64 − 1.
        batch_size: Samples at a time on each device.
        frames: Also draw the way from noise to sample in this many frames: as a strip (noise
            on the left; a row a sample, or a scatter plot a frame) and as an animated GIF.
            0: neither; otherwise at least 2.
        fps: Frames a second of the GIF, 0.002 to 50.
        name: Folder inside the run folder and tag in TensorBoard; two grids need two names.

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
        if min(n, columns, batch_size) < 1:
            raise InputError(
                f"SampleGrid(n={n}, columns={columns}, batch_size={batch_size}): each is at least "
                "1"
            )
        try:
            check_seed(seed)
            check_frames(frames)
            check_fps(fps)
        except InputError as error:
            raise InputError(f"SampleGrid: {error}") from error
        folder = Path(name)
        if folder.is_absolute() or ".." in folder.parts or not folder.parts:
            raise InputError(f"SampleGrid(name={name!r}): name a folder inside the run folder")
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
        self._labels: list[int] | None = None
        self._condition: Tensor | None = None
        self._beside: dict[str, Tensor] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse settings that do not fit the model, before training."""
        assert isinstance(pl_module, DiffusionModule)
        try:
            self._pictures = pictures_of(pl_module.shape, getattr(trainer, "datamodule", None))
        except InputError as error:
            raise InputError(f"SampleGrid: {error}; leave the callback out") from error
        levels_from_noise(self.sampler, pl_module.denoiser(self.ema))
        pl_module.check_labels(self.labels, self.guidance)
        self._labels, self._condition, self._beside = self.labels, None, {}
        num_classes = pl_module.num_classes
        data = condition_source(getattr(trainer, "datamodule", None), pl_module.condition_channels)
        if data is not None and stage == "fit":
            self._condition = data.conditions("val", self.n)
            truth, y = data.finished("val", self.n)
            repeated = torch.arange(self.n) % len(truth)
            shown = data.task.shown(self._condition, data.shape)
            self._beside = {"above": shown[repeated], "below": truth[repeated]}
            if self._labels is None and num_classes is not None:
                self._labels = y.tolist()
        if self._labels is None and num_classes is not None and len(pl_module.shape) > 1:
            classes = torch.arange(num_classes)
            self._labels = classes.repeat_interleave(self.columns).tolist()
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
                self._labels,
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
        how = re.sub("_(guidance|interval|rescale)", r" · \1 ", tag).replace("_", " · ")
        title = f"step {step} · {how}"
        columns, rows = self._class_captions()

        def grid(samples: Tensor) -> Tensor:
            picture = self._pictures.together(samples, self.columns, **self._beside)
            return captioned(picture, columns, rows, title)

        pictures = {tag: grid(x)}
        if frames is not None:
            strip = self._pictures.strip(frames)
            pictures[f"{tag}_denoising"] = captioned(strip, title=title)
            file = folder / f"{tag}_step_{step:08d}.gif"
            write_gif(file, [grid(x_t) for x_t in frames], self.fps)
            show_animation(trainer, f"{self.name}/{tag}_animated", file, step)
        for name, picture in pictures.items():
            write_png(folder / f"{name}_step_{step:08d}.png", picture)
            show_picture(trainer, f"{self.name}/{name}", picture, step)

    def _class_captions(self) -> tuple[list[str], list[str]]:
        """The class of each column or of each row, where it has but one."""
        if self._labels is None or isinstance(self._pictures, Scatter):
            return [], []
        shown = [self._labels[k % len(self._labels)] for k in range(self.n)]
        rows = [shown[k : k + self.columns] for k in range(0, self.n, self.columns)]
        columns = [shown[k :: self.columns] for k in range(min(self.n, self.columns))]
        if all(len(set(row)) == 1 for row in rows):
            return [], [_class_name(row[0]) for row in rows]
        if all(len(set(column)) == 1 for column in columns):
            empty = self.columns - len(columns) if self._beside else 0  # which bands fill up
            return [_class_name(column[0]) for column in columns] + [""] * empty, []
        return [], []


def _class_name(label: int) -> str:
    return "none" if label == NULL_LABEL else str(label)
