"""The sample command."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm_lightning.checkpoint import weights_digest
from ddpm_lightning.commands.edits import Edit, edit_images
from ddpm_lightning.commands.given_images import GivenImages, given_images
from ddpm_lightning.commands.sample_folder import (
    check_drawn,
    check_place,
    digest_of,
    filled,
    folder_of,
    pack,
)
from ddpm_lightning.errors import InputError
from ddpm_lightning.evaluation.sample_set import made_by, state_of
from ddpm_lightning.images import (
    Animation,
    check_animation,
    check_fps,
    write_animation,
    write_png,
)
from ddpm_lightning.loaded import DataPlace, Loaded
from ddpm_lightning.memory import check_memory
from ddpm_lightning.plots.pictures import pictures_of
from ddpm_lightning.plots.strips import grid_of_prompts
from ddpm_lightning.processes import Processes
from ddpm_lightning.sampling import Request, Samples, check_frames


@dataclass(frozen=True)
class Overview:
    """The picture of all samples, and how they came about.

    Args:
        columns: Images a row, no matter for points; default: one for each class of a model of 4
            to 16 classes, else 8.
        frames: Also write the way from noise to sample as trajectory.gif with this many frames;
            0: no, otherwise at least 2.
        fps: Frames a second of the animation, 0.002 to 50.
        animation: Its files: gif, mp4 or both.
    """

    columns: int | None = None
    frames: int = 0
    fps: float = 10.0
    animation: Animation = "gif"

    def __post_init__(self) -> None:
        if self.columns is not None and self.columns < 1:
            raise InputError(f"columns={self.columns}: at least 1")
        check_frames(self.frames)
        check_fps(self.fps)
        check_animation(self.animation)


def sample(
    ckpt: Path,
    out: Path,
    n: int = 64,
    edit: Edit | None = None,
    condition: list[Path] | Path | None = None,
    data: DataPlace = DataPlace(),
    grid: Overview = Overview(),
    device: str = "auto",
    **sampling: Any,
) -> None:
    """Draw samples from a checkpoint: a PNG an image at native size, and grid.png.

    A model of points in the plane gives samples.npy (float32 [n, 2]) and scatter.png instead.
    Sample k depends on the seed and k alone, whatever n and the batch size.

    Args:
        ckpt: The checkpoint, which describes its model itself, or mnist_quick, a model of
            handwritten digits that comes with the package.
        out: Folder for the files, new or empty; or x.npz, a file of arr_0, uint8 [n, H, W, C],
            and for a conditional model arr_1, its labels. After a stop the same command goes on.
        n: Number of samples.
        edit: Start from given images: RePaint, SDEdit or Interpolate, e.g. --edit RePaint
            --edit.image a.png --edit.mask m.png; --edit.help RePaint tells more. Without labels,
            a conditional model then takes no class. The grid shows the given images first.
        condition: What a model that is given images makes the samples from, repeated up to n: an
            image file, a folder of them, or a list "[a.png, b.png]"; default: the first images of
            the test split, made by the checkpoint's own task. The grid shows them above the
            samples, and below the samples what they were made from.
        data: Where that data is now, if it has moved.
        grid: The picture of all samples.
        device: cpu, cuda, cuda:1, mps, or auto.
        **sampling: How to sample, see Request.

    Raises:
        InputError: The checkpoint, the folder or a setting does not work.
    """
    if n < 1:
        raise InputError(f"n={n}: at least 1")
    check_memory(f"n={n}", 8 * n)
    request, processes = Request(**sampling), Processes.current()
    folder = folder_of(out, grid.frames)
    if processes.first:
        check_place(out, folder)
    loaded = Loaded.read(ckpt, data, device)
    module, given = loaded.module, GivenImages()
    columns = grid.columns or _columns(module.data.num_classes)
    pictures = pictures_of(module.data.shape, loaded.background)
    check_drawn(out, pictures)
    if edit is None:
        files = [condition] if isinstance(condition, Path) else condition
        given = given_images(loaded, files, n)
        request.check(module)
    elif condition is not None:
        raise InputError("--edit starts from its own images; leave out --condition")

    spent: list[float] = []

    def draw(indices: Tensor, frames: int) -> Samples:
        if edit is None:
            drawn = module.generate(indices, request, given.condition, frames, processes.first)
            spent.append(drawn.evaluations or 0.0)
            return drawn
        return edit_images(module, edit, n, request, frames, processes.first, indices)

    stated = {
        "network": weights_digest(module.denoiser(request.weights).net),
        "n": n,
        "edit": edit and edit.describe(),
        "images": digest_of(edit, given.condition.image),
        "grid": {**asdict(grid), "columns": columns},
        **state_of(request, module, given.condition),
    }
    shown = pictures if folder == out else None
    samples = filled(folder, stated, request.batch_size, draw, shown, loaded.origin)
    if not processes.first:
        return
    if folder != out:
        drawn = request.condition(module, torch.arange(n), given.condition)
        pack(folder, out, n, drawn.label if edit is None else None)
        print(f"{n} samples in {out}{_cost(spent)}")
        return
    bands, prompts = given.bands(n), request.prompts

    def overview(x: Tensor) -> Tensor:
        if prompts is None or edit is not None:
            return pictures.together(x, columns, samples.inputs, **bands)
        return grid_of_prompts(pictures, x, prompts, columns, bands)

    about = made_by(stated, loaded.origin)
    write_png(out / pictures.overview, overview(samples.x), about)
    if samples.frames is not None:
        frames = [overview(x) for x in samples.frames.x_t]
        write_animation(out / "trajectory", frames, grid.fps, grid.animation)
    print(f"{n} samples in {out}, all of them in {out / pictures.overview}{_cost(spent)}")
    if agreement := given.agreement(samples.x):
        print(agreement)


def _columns(classes: int | None) -> int:
    return classes if classes is not None and 4 <= classes <= 16 else 8


def _cost(spent: list[float]) -> str:
    """Say what a sample cost: the mean of the batches drawn now."""
    return f", NFE {sum(spent) / len(spent):.4g} each" if spent else ""
