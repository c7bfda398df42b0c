"""Data on the way to noise beside samples on the way back, while training."""

from __future__ import annotations

from typing import Any

from einops import rearrange
from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from ddpm_lightning.batch import Condition
from ddpm_lightning.callbacks.drawing import Drawing
from ddpm_lightning.callbacks.sharing import gather, share, shows_progress
from ddpm_lightning.data.data_module import DiffusionData
from ddpm_lightning.errors import InputError, at_least
from ddpm_lightning.evaluation.sample_set import made_by, state_of
from ddpm_lightning.images import write_png
from ddpm_lightning.module import DiffusionModule
from ddpm_lightning.plots.pictures import pictures_of
from ddpm_lightning.plots.strips import marginals_picture, noised
from ddpm_lightning.sampling import Frames, Request
from ddpm_lightning.trackers import show


class Marginals(Drawing):
    """Draws q(x_t) above p(x_t): data noised to some levels, and samples at the same levels.

    The figure of tutorials of the first diffusion paper, where points in the plane have 2 × 3
    plots; images have a row each. The command plot marginals draws the same of a checkpoint.

    Args:
        every_n_steps: Optimizer steps from one figure to the next; the end of training has one,
            too.
        n: Training samples, and samples.
        columns: Levels shown, evenly spread from 0 to T.
        name: Folder inside the run folder and tag in the loggers.
        **sampling: How to sample, see Request.

    Raises:
        InputError: A number is out of range, or the name no folder's.
    """

    def __init__(
        self,
        every_n_steps: int = 1000,
        n: int = 3000,
        columns: int = 3,
        name: str = "marginals",
        **sampling: Any,
    ) -> None:
        super().__init__(every_n_steps, name)
        at_least(1, self, n=n)
        at_least(2, self, columns=columns)
        self.n = n
        self.columns = columns
        self.request = Request(**sampling)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        assert isinstance(pl_module, DiffusionModule)
        spec = pl_module.data
        if spec.image_channels:
            raise InputError(
                "Marginals: no figure of models that are given an image; leave it out"
            )
        if not isinstance(getattr(trainer, "datamodule", None), DiffusionData):
            raise InputError("Marginals needs data of a DiffusionData; leave it out")
        self._pictures = pictures_of(spec.shape)
        self.request.check(pl_module)
        super().setup(trainer, pl_module, stage)

    @override
    def run(self, trainer: Trainer, module: LightningModule, step: int) -> None:
        assert isinstance(module, DiffusionModule)
        indices, progress = share(self.n, trainer), shows_progress(trainer)
        with trainer.precision_plugin.forward_context():
            samples = module.generate(indices, self.request, Condition(), self.columns, progress)
        assert samples.frames is not None
        by_sample = rearrange(samples.frames.x_t, "frame n ... -> n frame ...")
        x_t = rearrange(gather(by_sample, self.n, trainer), "n frame ... -> frame n ...")
        if not trainer.is_global_zero:
            return
        data: DiffusionData = getattr(trainer, "datamodule")  # noqa: B009 (Lightning's is untyped)
        frames = Frames(x_t, x_t, samples.frames.levels)
        batch = data.finished("train", self.n)
        data_x_t = noised(module, batch, frames.levels, self.request.seed)
        picture = marginals_picture(self._pictures, data_x_t, frames)
        file = self.folder(trainer) / f"step_{step:08d}.png"
        about = made_by(state_of(self.request, module, Condition()), {"step": step})
        write_png(file, picture, about)
        show(trainer, self.name, file, step)
