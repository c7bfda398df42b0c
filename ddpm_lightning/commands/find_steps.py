"""The find_steps command: the levels at which few steps of a sampler come closest to many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm_lightning.commands.given_images import given_images
from ddpm_lightning.diffusion.samplers import Sampler, UniformSpacing
from ddpm_lightning.diffusion.samplers.optimized import settings_of
from ddpm_lightning.diffusion.step_search import MANY, Found, check_places, find_levels
from ddpm_lightning.errors import at_least
from ddpm_lightning.files import check_folder, json_value, write_json
from ddpm_lightning.loaded import DataPlace, Loaded
from ddpm_lightning.sampling import Request


def find_steps(
    ckpt: Path,
    n: int = 128,
    data: DataPlace = DataPlace(),
    device: str = "auto",
    **sampling: Any,
) -> None:
    """Find the levels at which a sampler with few steps comes closest to many steps.

    Draws the same samples again and again with one level moved, from the best fixed spacing on,
    and stores the levels beside the checkpoint, as NAME.SAMPLER.json, for sampling with them:
    --sampler.spacing OptimizedSpacing --sampler.spacing.table FILE. The sampler must be
    deterministic: DDIM, DPMSolverPP, UniPC, LMS, Heun or Euler. The samples drawn grow with the
    steps, from about 50 n for 5 steps to 400 n for 20.

    Args:
        ckpt: The checkpoint; it describes its model itself. Of a model that comes with the package
            (mnist_quick) the levels go into the working directory.
        n: Number of samples that are compared.
        data: Where its data is now, if it has moved; read for condition images only.
        device: cpu, cuda, cuda:1, mps, or auto.
        **sampling: How to sample, see Request; the levels serve this guidance best.

    Raises:
        InputError: The checkpoint, its folder or a setting does not work.
    """
    at_least(1, n=n)
    request = Request(**sampling)
    check_folder(ckpt.parent)
    loaded = Loaded.read(ckpt, data, device)
    module, sampler = loaded.module, request.sampler.replace(spacing=UniformSpacing())
    request = request.replace(sampler=sampler)
    check_places(sampler, module.schedule)
    request.check(module)
    condition = given_images(loaded, None, n).condition

    def draw(one: Sampler) -> Tensor:
        return module.generate(torch.arange(n), request.replace(sampler=one), condition).x

    found = find_levels(sampler, module.schedule, draw, progress=True)
    path = ckpt.with_suffix(f".{request.tag(module)}.json")
    table = {
        "levels": found.levels,
        "sampler": settings_of(sampler),
        "schedule": json_value(module.schedule.describe()),
        "distance": found.error,
        "distance_of_fixed_spacings": found.fixed,
        "guidance": request.guidance.tag,
        "n": n,
        "seed": request.seed,
    }
    write_json(path, table)
    print(_summary(found, n))
    print(
        f"{path} holds the levels. Sample with them: python -m ddpm_lightning sample "
        f"--ckpt {ckpt} --out FOLDER {_flags(sampler)} --sampler.spacing OptimizedSpacing "
        f"--sampler.spacing.table {path}"
    )


def _summary(found: Found, n: int) -> str:
    fixed = ", ".join(
        f"{name.removesuffix('Spacing')} {error:.4g}" for name, error in found.fixed.items()
    )
    return (
        f"distance of {n} samples from those of {MANY} steps: {fixed}, found {found.error:.4g}\n"
        f"levels: {', '.join(map(str, found.levels))}"
    )


def _flags(sampler: Sampler) -> str:
    """Write the flags that build a sampler, but for its spacing."""
    settings = {"steps": sampler.steps, **sampler.changed()}
    settings.pop("spacing", None)
    words = [f"--sampler.{name} {value}" for name, value in settings.items()]
    return " ".join([f"--sampler {type(sampler).__name__}", *words])
