"""The plot commands: didactic figures, and strips of data and samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ddpm_lightning.batch import Condition
from ddpm_lightning.commands.didactic import (
    plot_fixed_noise,
    plot_gaussian,
    plot_mapping,
    plot_scaling,
    plot_variance,
)
from ddpm_lightning.commands.shown_data import levels_of, shown_data
from ddpm_lightning.data.data_module import DiffusionData
from ddpm_lightning.diffusion.losses import Hybrid, Regression
from ddpm_lightning.diffusion.parameterizations import Eps, Parameterization
from ddpm_lightning.diffusion.schedules import Linear, Schedule
from ddpm_lightning.diffusion.weightings import Plain, Weighting
from ddpm_lightning.errors import InputError, at_least
from ddpm_lightning.evaluation.sample_set import made_by, state_of
from ddpm_lightning.files import check_new_file
from ddpm_lightning.images import check_animation, check_fps, write_gif, write_mp4
from ddpm_lightning.loaded import DataPlace, Loaded
from ddpm_lightning.module import DiffusionModule
from ddpm_lightning.plots.didactic import schedule_figure
from ddpm_lightning.plots.figure import FIGURES, write_figure, write_picture
from ddpm_lightning.plots.loss import loss_figure
from ddpm_lightning.plots.pictures import pictures_of
from ddpm_lightning.plots.strips import (
    forward_strip,
    marginals_picture,
    noised,
    reverse_frames,
    reverse_strip,
)
from ddpm_lightning.randomness import check_seed
from ddpm_lightning.sampling import Request
from ddpm_lightning.trackers.scalars import logged

POINTS = 3000
"""Points in the plane that a figure shows unless told otherwise."""


def plot_schedule(
    out: Path,
    schedule: Schedule | list[Schedule] | None = None,
    weighting: Weighting | None = None,
    parameterization: Parameterization | None = None,
    ckpt: Path | None = None,
) -> None:
    """Draw beta, alpha_bar, SNR, posterior deviation and loss weight over t/T.

    Args:
        out: The PNG, PDF or SVG to write; must be new.
        schedule: One, e.g. --schedule Cosine --schedule.T 50, or several: --schedule
            "[Linear, Cosine]". Default: the checkpoint's, or Linear.
        weighting: The loss's weight over levels. Default: the checkpoint's, or Plain.
        parameterization: What the network predicts. Default: the checkpoint's, or Eps.
        ckpt: A checkpoint whose parts are taken where none is given.

    Raises:
        InputError: The file or the checkpoint does not work.
    """
    check_new_file(out, FIGURES)
    if ckpt is not None:
        module = Loaded.read(ckpt).module
        schedule = schedule or module.schedule
        weighting = weighting or _weighting(ckpt, module)
        parameterization = parameterization or module.parameterization
    schedule = Linear() if schedule is None else schedule
    chosen = named(schedule if isinstance(schedule, list) else [schedule])
    at_least(1, schedules=len(chosen))
    write_figure(out, schedule_figure(chosen, weighting or Plain(), parameterization or Eps()))
    print(f"{out} shows {', '.join(chosen)}")


def plot_forward(
    out: Path,
    data: DiffusionData | DataPlace | None = None,
    image: Path | None = None,
    schedule: Schedule | None = None,
    ckpt: Path | None = None,
    n: int | None = None,
    levels: int | list[int] = 10,
    seed: int = 0,
) -> None:
    """Draw real data, or a picture, becoming noise: x_t at some levels.

    Args:
        out: The PNG, PDF or SVG to write; must be new.
        data: The data, e.g. --data Digits or --data MNIST --data.root FOLDER. Default: the
            checkpoint's, for which --data.root alone says where it is now, if it has moved.
        image: A picture file in place of data, scaled to cover 128×128 pixels and cut.
        schedule: The forward process. Default: the checkpoint's, or Linear.
        ckpt: A checkpoint whose data and schedule are taken where none is given.
        n: Training samples; default: 6 images, a row each, or 3000 points, all in one plot.
        levels: Columns after the first, evenly spread; or the levels: --levels "[0, 50, 100]".
        seed: Seed of the noise.

    Raises:
        InputError: The file, the data, the checkpoint or a setting does not work.
    """
    check_new_file(out, FIGURES)
    check_seed(seed)
    at_least(1, n=n)
    shown = shown_data(data, image, ckpt)
    schedule = schedule or (shown.loaded.module.schedule if shown.loaded else Linear())
    chosen = levels_of(levels, schedule.T)
    x0 = shown.first(_shown(n, shown.shape, images=6))
    pictures = pictures_of(shown.shape, shown.data)
    write_picture(out, forward_strip(pictures, x0, schedule, chosen, seed))
    what = shown.name if image else f"{len(x0)} samples of {shown.name}"
    print(f"{out} shows {what}, noise growing to the right")


def plot_reverse(
    ckpt: Path,
    out: Path,
    n: int | None = None,
    frames: int = 10,
    fps: float = 5.0,
    data: DataPlace = DataPlace(),
    device: str = "auto",
    **sampling: Any,
) -> None:
    """Draw noise becoming samples: x_t above, the prediction x0_hat below.

    Args:
        ckpt: The checkpoint; it describes its model itself.
        out: The file to write, which must be new: a PNG, PDF or SVG for a strip, a GIF or MP4
            for an animation.
        n: Number of samples, those of the sample command; default: 4 images, or 3000 points.
        frames: Levels shown, at most one a step.
        fps: Frames a second of an animation, 0.002 to 50.
        data: Where the data is now, if it has moved; points are drawn in front of it.
        device: cpu, cuda, cuda:1, mps, or auto.
        **sampling: How to sample, see Request.

    Raises:
        InputError: The file, the checkpoint or a setting does not work.
    """
    check_new_file(out, (*FIGURES, ".gif", ".mp4"))
    check_animation("mp4" if out.suffix.lower() == ".mp4" else "gif")
    request = Request(**sampling)
    check_fps(fps)
    at_least(1, n=n)
    at_least(2, frames=frames)
    loaded = Loaded.read(ckpt, data, device)
    spec = loaded.module.data
    if spec.image_channels:
        raise InputError(
            f"{ckpt} models data given an image beside x_t, which plot reverse does not draw; use "
            "sample --grid.frames 10"
        )
    pictures = pictures_of(spec.shape, loaded.background)
    request.check(loaded.module)
    n = _shown(n, spec.shape, images=4)
    shown = loaded.module.generate(torch.arange(n), request, frames=frames).frames
    assert shown is not None
    if out.suffix.lower() not in FIGURES:
        write = write_gif if out.suffix.lower() == ".gif" else write_mp4
        write(out, reverse_frames(pictures, shown), fps)
    else:
        about = made_by(state_of(request, loaded.module, Condition()), loaded.origin)
        write_picture(out, reverse_strip(pictures, shown), about)
    print(f"{out} shows {n} samples at {len(shown.levels)} levels, x0_hat below x_t")


def plot_marginals(
    ckpt: Path,
    out: Path,
    n: int | None = None,
    columns: int = 3,
    data: DataPlace = DataPlace(),
    device: str = "auto",
    **sampling: Any,
) -> None:
    """Draw data noised to some levels above samples on their way at the same levels.

    Args:
        ckpt: The checkpoint; it describes its model itself.
        out: The PNG, PDF or SVG to write; must be new.
        n: Training samples and samples; default: 4 images, or 3000 points.
        columns: Levels shown, evenly spread from 0 to T.
        data: Where the data is now, if it has moved.
        device: cpu, cuda, cuda:1, mps, or auto.
        **sampling: How to sample, see Request.

    Raises:
        InputError: The file, the checkpoint, the data or a setting does not work.
    """
    check_new_file(out, FIGURES)
    at_least(1, n=n)
    at_least(2, columns=columns)
    request = Request(**sampling)
    loaded = Loaded.read(ckpt, data, device)
    spec = loaded.module.data
    if spec.image_channels:
        raise InputError(
            f"{ckpt} models data given an image beside x_t, which plot marginals does not draw; "
            "use sample --grid.frames 10"
        )
    n = _shown(n, spec.shape, images=4)
    request.check(loaded.module)
    batch = loaded.data.finished("train", n)
    frames = loaded.module.generate(torch.arange(n), request, frames=columns).frames
    assert frames is not None
    pictures = pictures_of(spec.shape)
    data_x_t = noised(loaded.module, batch, frames.levels, request.seed)
    picture = marginals_picture(pictures, data_x_t, frames)
    about = made_by(state_of(request, loaded.module, Condition()), loaded.origin)
    write_picture(out, picture, about)
    print(f"{out} shows data above samples, at the levels {sorted(frames.levels)}")


def plot_loss(run: Path, out: Path, tag: str = "train/loss", last: int = 1000) -> None:
    """Draw the training loss of a run: the whole curve, and its last steps from near.

    Args:
        run: The run folder; its metrics.csv is read, else TensorBoard's events.
        out: The PNG, PDF or SVG to write; must be new.
        tag: Another logged number, e.g. val/loss.
        last: Steps in the second picture.

    Raises:
        InputError: The file, the run or a setting does not work.
    """
    check_new_file(out, FIGURES)
    at_least(1, last=last)
    values = logged(run, tag)
    write_figure(out, loss_figure(values, tag, last))
    print(f"{out} shows {tag} of {run} at {len(values)} steps up to {max(values)}")


PLOTS: dict[str, Callable[..., None]] = {
    "loss": plot_loss,
    "schedule": plot_schedule,
    "forward": plot_forward,
    "reverse": plot_reverse,
    "marginals": plot_marginals,
    "scaling": plot_scaling,
    "fixed_noise": plot_fixed_noise,
    "mapping": plot_mapping,
    "gaussian": plot_gaussian,
    "variance": plot_variance,
}
"""The subcommands of plot."""


def named(schedules: list[Schedule]) -> dict[str, Schedule]:
    """Name schedules by their class; those of a kind by their arguments, too."""
    kinds = [type(schedule).__name__ for schedule in schedules]
    names = kinds.copy()
    for i, schedule in enumerate(schedules):
        if kinds.count(kinds[i]) > 1:
            stated = schedule.plain_arguments().items()
            names[i] += f"({', '.join(f'{key}={value}' for key, value in stated)})"
    return dict(zip(names, schedules, strict=True))


def _shown(n: int | None, shape: tuple[int, ...], images: int) -> int:
    """The number that is asked for, or one that shows what the data is: a cloud needs many."""
    return n or (POINTS if len(shape) == 1 else images)


def _weighting(ckpt: Path, module: DiffusionModule) -> Weighting:
    objective = module.objective
    if isinstance(objective, Hybrid):
        objective = objective.simple
    if isinstance(objective, Regression):
        return objective.weighting
    raise InputError(
        f"{ckpt} was trained with {type(objective).__name__}, which has no weighting; choose one, "
        "e.g. --weighting VLB"
    )
