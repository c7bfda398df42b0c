"""The sample command."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ddpm_lightning.checks import check_fps, check_frames, check_new_folder, check_seed
from ddpm_lightning.commands.conditions import conditions_for
from ddpm_lightning.commands.edits import Edit, edit_images
from ddpm_lightning.diffusion.denoiser import Guidance
from ddpm_lightning.diffusion.samplers import Sampler
from ddpm_lightning.diffusion.variances import Variance
from ddpm_lightning.errors import InputError
from ddpm_lightning.module import DiffusionModule
from ddpm_lightning.pictures.images import write_gif, write_png
from ddpm_lightning.pictures.samples import pictures_of
from ddpm_lightning.trained import DataPlace, device_named, points_behind, set_variance


def sample(
    ckpt: Path,
    out: Path,
    n: int = 64,
    sampler: Sampler | None = None,
    labels: list[int] | int | None = None,
    guidance: float = 1.0,
    guidance_interval: tuple[float, float] | None = None,
    guidance_rescale: float = 0.0,
    seed: int = 0,
    batch_size: int = 256,
    variance: Variance | None = None,
    edit: Edit | None = None,
    condition: list[Path] | Path | None = None,
    data: DataPlace = DataPlace(),
    weights: Literal["ema", "raw"] = "ema",
    columns: int = 8,
    frames: int = 0,
    fps: float = 10.0,
    device: str = "auto",
) -> None:
    """Draw samples from a checkpoint: a PNG an image at native size, and grid.png.

    A model of points in the plane gives samples.npy (float32 [n, 2]) and scatter.png instead.
    Sample k depends on the seed and k alone, whatever n and the batch size.

    Args:
        ckpt: The checkpoint; it describes its model itself.
        out: Folder for the files, new or empty.
        n: Number of samples.
        sampler: How to sample, e.g. --sampler DDIM --sampler.steps 50 --sampler.eta 0.5; default:
            DDPM over all levels. Clips to the data's range.
        labels: Class labels for a conditional model: one for all samples, or a list that is
            repeated; default: one class after the other.
        guidance: Strength of classifier-free guidance; 1 is none, 0 ignores the label.
        guidance_interval: Guide only at levels low < t/T ≤ high, e.g. [0.2, 0.8]; null: at all.
        guidance_rescale: Share, 0 to 1, by which guided predictions are brought back to the spread
            of unguided ones, against over-exposure; Lin et al. (2023) use 0.7.
        seed: Seed of the noise, 0 to 2**64 − 1.
        batch_size: Samples at a time; changes memory and speed, not the samples.
        variance: Variance of the reverse steps of DDPM, in place of the checkpoint's, e.g.
            --variance FixedLarge.
        edit: Start from given images: RePaint, SDEdit or Interpolate, e.g. --edit RePaint
            --edit.image a.png --edit.mask m.png; --edit.help RePaint tells more. Without labels,
            a conditional model then takes no class. The grid shows the given images first.
        condition: What a model that is given images makes the samples from, repeated up to n: a
            PNG or JPEG, a folder of them, or a list "[a.png, b.png]"; default: the first images of
            the test split, made by the checkpoint's own task. The grid shows them above the
            samples, and below the samples what they were made from.
        data: Where that data is now, if it has moved.
        weights: ema (averaged) or raw (as the optimizer left them).
        columns: Images a row of the grid; no matter for points.
        frames: Also write the way from noise to sample as trajectory.gif with this many frames;
            0: no, otherwise at least 2.
        fps: Frames a second of the GIF, 0.002 to 50.
        device: cpu, cuda, cuda:1, mps, or auto.

    Raises:
        InputError: The checkpoint, the folder or a setting does not work.
    """
    if min(n, batch_size, columns) < 1:
        raise InputError(f"n={n}, batch_size={batch_size}, columns={columns}: each is at least 1")
    check_seed(seed)
    check_frames(frames)
    check_fps(fps)
    check_new_folder(out)
    module = DiffusionModule.load_from_checkpoint(ckpt).to(device_named(device))
    if edit is not None and len(module.shape) != 3:
        raise InputError(f"{ckpt} models data of shape {list(module.shape)}; edits are of images")
    pictures = pictures_of(module.shape, points_behind(ckpt, data, module.shape))
    if edit is not None and sampler is None:
        sampler = edit.default_sampler(module.schedule)
    if variance is not None:
        set_variance(module, variance, sampler, ckpt, weights == "ema")
    files = [condition] if isinstance(condition, Path) else condition
    conditions = None
    if edit is None or condition is not None:
        conditions = conditions_for(module, ckpt, data, files, n)
    draw = partial(module.generate, torch.arange(n))
    if conditions is not None:
        draw = partial(draw, condition=conditions.images)
        if labels is None and conditions.labels is not None and module.num_classes is not None:
            labels = conditions.labels.tolist()
    if edit is not None:
        draw = partial(edit_images, module, edit, n)
    samples = draw(
        sampler,
        [labels] if isinstance(labels, int) else labels,
        Guidance(guidance, guidance_interval, guidance_rescale),
        seed,
        ema=weights == "ema",
        batch_size=batch_size,
        frames=frames,
        progress=True,
    )
    pictures.write(out, samples.x)
    overview = out / pictures.overview
    bands = {} if conditions is None else conditions.bands(n)

    def together(x: Tensor) -> Tensor:
        return pictures.together(x, columns, samples.inputs, **bands)

    write_png(overview, together(samples.x))
    if samples.frames is not None:
        frames_drawn = [together(x) for x in samples.frames]
        write_gif(out / "trajectory.gif", frames_drawn, fps)
    print(f"{n} samples in {out}, all of them in {overview}")
    if conditions is not None and (said := conditions.agreement(samples.x)):
        print(said)
