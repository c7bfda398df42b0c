"""Sample grids and denoising animations while training."""

from __future__ import annotations

import re
from typing import Any

import torch
from einops import rearrange
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from ddpm_lightning.batch import NULL_LABEL, Batch, Condition
from ddpm_lightning.callbacks.drawing import Drawing
from ddpm_lightning.callbacks.sharing import gather, share, shows_progress
from ddpm_lightning.data.data_module import DiffusionData
from ddpm_lightning.errors import InputError, at_least
from ddpm_lightning.evaluation.sample_set import made_by, state_of
from ddpm_lightning.images import (
    Animation,
    check_animation,
    check_fps,
    to_uint8,
    write_animation,
    write_png,
)
from ddpm_lightning.memory import check_memory
from ddpm_lightning.module import DiffusionModule
from ddpm_lightning.plots.pictures import Scatter, pictures_of, strip_rows
from ddpm_lightning.plots.strips import captioned, grid_of_prompts
from ddpm_lightning.sampling import Request, check_frames
from ddpm_lightning.trackers import show, show_samples


class SampleGrid(Drawing):
    """Draws samples in a grid: into the loggers and as files in the run folder.

    The noise is the same every time, so that the same images take shape over a run. A caption says
    the step and how they were drawn; the class stands beside rows or above columns that have one,
    a prompt above its own grid. Points in the plane are drawn as a scatter plot, with the training
    data behind them in grey. A model that is given images gets the first of the validation split:
    they stand above the samples, and what they were made from stands below. Without labels of its
    own a grid of a conditional model has a class a row (of points: one class after the other), and
    without a prompt that of a model with text has a caption of the validation split a row.

    Args:
        every_n_steps: Optimizer steps from one grid to the next; the end of training has one, too.
        n: Number of samples.
        columns: Images a row; no matter for points.
        frames: Also draw the samples' trajectory in this many frames: as a strip (noise
            on the left; a row a sample, or a scatter plot a frame) and as an animation.
            0: neither; otherwise at least 2.
        fps: Frames a second of the animation, 0.002 to 50.
        animation: Its files: gif, mp4 (which TensorBoard does not show) or both.
        name: Folder inside the run folder and tag in the loggers; no two callbacks have one name.
        **sampling: How to sample, see Request.

    Raises:
        InputError: A number is out of range, or the name no folder's.
    """

    def __init__(
        self,
        every_n_steps: int = 1000,
        n: int = 64,
        columns: int = 8,
        frames: int = 0,
        fps: float = 10.0,
        animation: Animation = "gif",
        name: str = "samples",
        **sampling: Any,
    ) -> None:
        super().__init__(every_n_steps, name)
        at_least(1, self, n=n, columns=columns)
        check_memory(f"SampleGrid(n={n})", 8 * n)
        check_frames(frames)
        check_fps(fps)
        check_animation(animation)
        self.n = n
        self.columns = columns
        self.frames = frames
        self.fps = fps
        self.animation = animation
        self.request = Request(**sampling)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        assert isinstance(pl_module, DiffusionModule)
        data: Any = getattr(trainer, "datamodule", None)
        spec = pl_module.data
        try:
            self._pictures = pictures_of(spec.shape, data)
        except InputError as error:
            raise InputError(f"SampleGrid: {error}; leave the callback out") from error
        self.request.check(pl_module)
        super().setup(trainer, pl_module, stage)
        self._condition, self._request = Condition(), self.request
        self._bands: dict[str, Tensor] = {}
        if stage != "fit":
            return
        captions = _captions(data) if pl_module.text and self.request.prompts is None else []
        if spec.image_channels:
            self._look_at(data.finished("val", self.n), data)
            if captions:
                self._request = self.request.replace(prompt=captions[: self.n])
        elif captions:
            self._ask_for(captions, data if spec.num_classes is not None else None)
        elif spec.num_classes is not None and self.request.labels is None and len(spec.shape) > 1:
            rows = torch.arange(spec.num_classes).repeat_interleave(self.columns)
            self._request = self.request.replace(labels=rows.tolist())
        self._request.condition(pl_module, torch.arange(1), self._condition)  # or it is refused

    def _ask_for(self, captions: list[str], data: DiffusionData | None) -> None:
        """Ask for the first captions, one a row, and for the classes of the same samples."""
        chosen = [*dict.fromkeys(captions)][: -(-self.n // self.columns)]
        samples = [captions.index(one) for one in chosen for _ in range(self.columns)]
        self._request = self.request.replace(prompt=[captions[k] for k in samples])
        if data is not None and self.request.labels is None:
            labels = data.finished("val", 1 + max(samples)).condition.label
            assert labels is not None
            self._request = self._request.replace(labels=labels[samples].tolist())

    @property
    def example(self) -> Request:
        """A request that draws as the grid does, with one of its prompts."""
        prompts = self._request.prompts or []
        return self.request.replace(prompt=prompts[0]) if prompts else self.request

    def _look_at(self, batch: Batch, data: DiffusionData) -> None:
        """Sample from the condition images of a batch, and show these beside the samples."""
        self._condition = batch.condition
        repeated = torch.arange(self.n) % len(batch.x0)
        shown = data.shown(batch.condition)
        self._bands = {"below": batch.x0[repeated]}
        if shown is not None:
            self._bands["above"] = shown[repeated]

    @override
    def run(self, trainer: Trainer, module: LightningModule, step: int) -> None:
        assert isinstance(module, DiffusionModule)
        with trainer.precision_plugin.forward_context():
            samples = module.generate(
                share(self.n, trainer),
                self._request,
                self._condition,
                self.frames,
                shows_progress(trainer),
            )
        x = gather(samples.x, self.n, trainer)
        frames: dict[int, Tensor] = {}
        if samples.frames is not None:
            by_sample = rearrange(samples.frames.x_t, "frame n ... -> n frame ...")
            x_t = rearrange(gather(by_sample, self.n, trainer), "n frame ... -> frame n ...")
            frames = dict(zip(samples.frames.levels, x_t, strict=True))
        if trainer.is_global_zero:
            labels = self._request.label(module, torch.arange(self.n), self._condition)
            about = made_by(state_of(self._request, module, self._condition), {"step": step})
            self._show(trainer, self._request.tag(module), about, x, frames, labels)

    def _show(
        self,
        trainer: Trainer,
        tag: str,
        about: dict[str, Any],
        x: Tensor,
        frames: dict[int, Tensor],
        labels: Tensor | None,
    ) -> None:
        """Write and show samples [n, ...], their x_t by level, and their classes int64 [n]."""
        folder, step = self.folder(trainer), int(about["step"])
        how = re.sub("_(guidance|interval|rescale)", r" · \1 ", tag).replace("_", " · ")
        title = f"step {step} · {how}"
        columns, rows = self._class_captions(labels)
        prompts = self._request.prompts

        def grid(samples: Tensor) -> Tensor:
            if prompts is not None:
                return grid_of_prompts(
                    self._pictures, samples, prompts, self.columns, self._bands, title
                )
            picture = self._pictures.together(samples, self.columns, **self._bands)
            return captioned(picture, columns, rows, title)

        pictures = {tag: grid(x)}
        if frames:
            pictures[f"{tag}_denoising"] = self._strip(frames, labels, title)
            path = folder / f"{tag}_step_{step:08d}"
            drawn = [grid(x_t) for x_t in frames.values()]
            for file in write_animation(path, drawn, self.fps, self.animation):
                what = "animated" if file.suffix == ".gif" else "video"
                show(trainer, f"{self.name}/{tag}_{what}", file, step)
        for name, picture in pictures.items():
            file = folder / f"{name}_step_{step:08d}.png"
            write_png(file, picture, about)
            show(trainer, f"{self.name}/{name}", file, step)
        if labels is not None and not isinstance(self._pictures, Scatter):
            show_samples(trainer, f"{self.name}/{tag}_table", to_uint8(x), labels, step)

    def _strip(self, frames: dict[int, Tensor], labels: Tensor | None, title: str) -> Tensor:
        """Draw x_t by level, noise on the left, with t above and the classes beside the rows."""
        rows: list[str] = []
        if labels is not None and not isinstance(self._pictures, Scatter):
            rows = [_class_name(label) for label in labels[strip_rows(self.n)].tolist()]
        strip = self._pictures.strip(torch.stack(list(frames.values())))
        return captioned(strip, [f"t={t}" for t in frames], rows, title)

    def _class_captions(self, labels: Tensor | None) -> tuple[list[str], list[str]]:
        """Captions of the columns or of the rows that have a single class each."""
        if labels is None or isinstance(self._pictures, Scatter):
            return [], []
        shown = labels.tolist()
        rows = [shown[k : k + self.columns] for k in range(0, self.n, self.columns)]
        columns = [shown[k :: self.columns] for k in range(min(self.n, self.columns))]
        if all(len(set(row)) == 1 for row in rows):
            return [], [_class_name(row[0]) for row in rows]
        if all(len(set(column)) == 1 for column in columns):
            empty = self.columns - len(columns) if self._bands else 0  # which bands fill up
            return [_class_name(column[0]) for column in columns] + [""] * empty, []
        return [], []


def _class_name(label: int) -> str:
    return "none" if label == NULL_LABEL else str(label)


def _captions(data: Any) -> list[str]:
    """The captions of the validation split; none, if the data is of another library's kind."""
    return list(data.captions("val") or ()) if isinstance(data, DiffusionData) else []
