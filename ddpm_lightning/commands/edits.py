"""Edits of image files by a checkpoint: what sample --edit does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, get_args, get_type_hints

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from ddpm_lightning.batch import NULL_LABEL, Condition
from ddpm_lightning.codecs import Codec, Identity
from ddpm_lightning.configurable import Configurable
from ddpm_lightning.diffusion.denoiser import Denoiser, Denoises
from ddpm_lightning.diffusion.editing import (
    interpolate,
    repaint,
    revisited,
    sdedit,
    start_level,
)
from ddpm_lightning.diffusion.guidance import guide
from ddpm_lightning.diffusion.levels import Schedule
from ddpm_lightning.diffusion.samplers import DDIM, DDPM, Sampler, SingleStep, State
from ddpm_lightning.errors import InputError, at_least
from ddpm_lightning.images import read_image, read_mask
from ddpm_lightning.module import DiffusionModule
from ddpm_lightning.randomness import IndexedNoise
from ddpm_lightning.sampling import Procedure, Request, Samples, levels_from_noise, run


@dataclass(frozen=True, eq=False)
class Job:
    """Arguments of an edit beside its own settings; shape is [C, H, W], with n labels or none."""

    denoiser: Denoises
    sampler: Sampler
    shape: tuple[int, ...]
    n: int
    condition: Condition
    device: torch.device
    codec: Codec

    def read(self, path: Path) -> tuple[Tensor, Tensor]:
        """Read an image file: x [C, H, W], and the latents of it, which the denoiser knows."""
        x = read_image(path, self.shape).to(self.device)
        return x, self.codec.encode(x[None])[0]


class Edit(Configurable, ABC):
    """An edit: sampling that starts from images instead of noise alone."""

    clips: ClassVar[bool] = True
    """Whether predictions are clipped to the data's range, as in sampling."""

    def default_sampler(self, schedule: Schedule) -> Sampler:
        """The sampler of a request without one: DDPM over all levels."""
        return DDPM()

    @property
    def files(self) -> list[Path]:
        """The files that it reads: its arguments of type Path, and those in lists of such."""
        hints = get_type_hints(type(self).__init__)
        found: list[Path] = []
        for name, value in self._arguments.items():
            for one in value if isinstance(value, list | tuple) else [value]:
                if isinstance(one, Path) or (isinstance(one, str) and _has_path(hints.get(name))):
                    found.append(Path(one))
        return found

    @abstractmethod
    def procedure(self, job: Job) -> Procedure:
        """Read the files and build the sampling procedure."""


def _has_path(hint: Any) -> bool:
    """Whether a type hint is Path, or has it: Path | None, list[Path]."""
    return hint is Path or any(map(_has_path, get_args(hint)))


class RePaint(Edit):
    """Paint a part of an image anew, to suit the rest, which is kept exactly (RePaint, 2022).

    Args:
        image: PNG, JPEG, WebP, BMP, TIFF or (in colour) GIF of the model's size.
        mask: The like of the same size: white is painted anew, black is kept.
        resamplings: How often each step is taken; 1 is fastest and suits the rest least.
        jump: Steps that one return goes back. The paper's are 10 and 10, by DDPM with 250 steps,
            which is the default sampler here.
    """

    def __init__(self, image: Path, mask: Path, resamplings: int = 10, jump: int = 10) -> None:
        self.image = image
        self.mask = mask
        self.resamplings = resamplings
        self.jump = jump

    @override
    def default_sampler(self, schedule: Schedule) -> Sampler:
        return DDPM(min(250, schedule.T))

    @override
    def procedure(self, job: Job) -> Procedure:
        sampler = job.sampler
        if not isinstance(sampler, SingleStep):
            raise InputError(
                f"RePaint goes back and repeats single steps, which {type(sampler).__name__} does "
                "not take; use --sampler DDPM or DDIM"
            )
        visits = revisited(levels_from_noise(sampler, job.denoiser), self.resamplings, self.jump)
        x, x0 = job.read(self.image)
        painted = read_mask(self.mask, job.shape).to(job.device)
        # A latent that sees a painted pixel is painted; with no codec these are the pixels.
        latents_painted = F.adaptive_max_pool2d(painted.float(), x0.shape[1:]).bool()

        def trajectory(noise: IndexedNoise, condition: Condition) -> Iterator[State]:
            return repaint(
                job.denoiser,
                x0.expand(len(noise.indices), *x0.shape),
                latents_painted,
                condition,
                sampler,
                self.resamplings,
                self.jump,
                noise,
            )

        def decode(z: Tensor) -> Tensor:
            return torch.where(painted, job.codec.decode(z), x)

        inputs = torch.stack([x, x.masked_fill(painted, 0.0)])
        pasted = None if isinstance(job.codec, Identity) else decode
        return Procedure(len(visits) - 1, trajectory, inputs, pasted)


class SDEdit(Edit):
    """Vary an image: noise it up to a level and sample from there (SDEdit, 2022).

    Args:
        image: PNG, JPEG, WebP, BMP, TIFF or (in colour) GIF of the model's size.
        strength: How far up, as a share of the levels: 0 gives the image itself, 1 a new one. Of
            the sampler's steps, those below that level are taken.
    """

    def __init__(self, image: Path, strength: float = 0.5) -> None:
        start_level(strength, 1)  # refuses what is no share
        self.image = image
        self.strength = strength

    @override
    def procedure(self, job: Job) -> Procedure:
        schedule, (x, x0) = job.denoiser.schedule, job.read(self.image)
        start = start_level(self.strength, schedule.T)
        steps = len(job.sampler.from_level(start, schedule).levels(schedule)) - 1 if start else 0

        def trajectory(noise: IndexedNoise, condition: Condition) -> Iterator[State]:
            batch = x0.expand(len(noise.indices), *x0.shape)
            return sdedit(job.denoiser, batch, self.strength, job.sampler, condition, noise)

        return Procedure(steps, trajectory, x[None])


class Interpolate(Edit):
    """Go from one image to another in n images, both ends included, by DDIM there and back.

    Args:
        first: PNG, JPEG, WebP, BMP, TIFF or (in colour) GIF of the model's size.
        second: The other.
        iterations: Network evaluations a step of the encoding; with more, the ends are closer to
            the files.
    """

    clips = False  # encoding cannot undo it

    def __init__(self, first: Path, second: Path, iterations: int = 5) -> None:
        at_least(1, self, iterations=iterations)
        self.first = first
        self.second = second
        self.iterations = iterations

    @override
    def default_sampler(self, schedule: Schedule) -> Sampler:
        return DDIM(min(50, schedule.T))

    @override
    def procedure(self, job: Job) -> Procedure:
        sampler = job.sampler
        if type(sampler) is not DDIM or sampler.eta or sampler.clip:
            raise InputError(
                "Interpolate needs a sampler that can be run backwards: use --sampler DDIM, with "
                "eta 0 and without clip"
            )
        if not isinstance(job.denoiser, Denoiser):
            raise InputError("Interpolate is inexact under guidance; leave out --guidance")
        if job.denoiser.net.self_conditioning:
            raise InputError(
                "Interpolate is inexact with self-conditioning, where a step depends on those "
                "before it; use --edit SDEdit or RePaint"
            )
        if job.n < 2:
            raise InputError(f"n={job.n}: an interpolation has at least its two ends")
        for what, asked in (("label", job.condition.label), ("prompt", job.condition.tokens)):
            if asked is not None and bool((asked != asked[:1]).any()):
                raise InputError(f"Interpolate takes one {what} for all images, or none")
        levels_from_noise(sampler, job.denoiser)
        (x, first), (y, second) = job.read(self.first), job.read(self.second)

        def trajectory(noise: IndexedNoise, condition: Condition) -> Iterator[State]:
            shares = [index / (job.n - 1) for index in noise.indices]
            return interpolate(
                job.denoiser, first, second, shares, sampler, condition, self.iterations
            )

        steps = len(sampler.levels(job.denoiser.schedule)) - 1
        return Procedure(steps, trajectory, torch.stack([x, y]))


def edit_images(
    module: DiffusionModule,
    edit: Edit,
    n: int,
    request: Request = Request(),
    frames: int = 0,
    progress: bool = False,
    indices: Tensor | None = None,
) -> Samples:
    """Make n images by an edit; the k-th depends on the seed and k alone.

    A request without a sampler takes what suits the edit, one without labels no class; x_t is kept
    at so many levels as frames, 0 for none. ``indices`` int64 [m] are the images to make of the n;
    default: all.

    Raises InputError: A file, the sampler or a setting does not suit.
    """
    spec = module.data
    if len(spec.shape) != 3:
        raise InputError(f"the model's data has shape {list(spec.shape)}; edits are of images")
    if spec.image_channels:
        raise InputError(
            "the model makes images out of given ones, and an edit gives none beside x_t; leave "
            "out --edit"
        )
    if request.labels is None and request.prompts is None:
        if request.guidance.scale != 1:
            raise InputError(
                "guidance of an edit needs something to pull towards: give labels (or for a model "
                "with text a prompt), too"
            )
        if spec.num_classes is not None:
            request = request.replace(labels=[NULL_LABEL])
    if "sampler" not in request.changed():
        request = request.replace(sampler=edit.default_sampler(module.schedule))
    request.check_labels(module)
    request.check_prompts(module)
    request.check_variance(module)
    data_range = module.latent.data_range
    sampler = request.sampler.clipped(data_range) if edit.clips else request.sampler
    condition = request.condition(module, torch.arange(n), Condition())
    denoiser = guide(request.denoiser(module), request.guidance, request.negative(module))
    job = Job(denoiser, sampler, spec.shape, n, condition, module.device, module.codec)
    procedure = edit.procedure(job)
    procedure = replace(procedure, decode=procedure.decode or module.codec.decode)
    indices = torch.arange(n) if indices is None else indices
    own = condition.rows(indices)
    return run(procedure, indices, request, own, module.device, frames, progress)
