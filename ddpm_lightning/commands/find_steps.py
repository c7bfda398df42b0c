"""The find_steps command: the levels at which few steps of a sampler do best."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ddpm_lightning.commands.given_images import given_images
from ddpm_lightning.commands.sample_folder import digest_of
from ddpm_lightning.commands.tried_levels import TriedLevels
from ddpm_lightning.diffusion.samplers import Sampler, UniformSpacing
from ddpm_lightning.diffusion.samplers.optimized import settings_of
from ddpm_lightning.diffusion.step_search import (
    GAIN,
    Error,
    Found,
    check_places,
    distance_from_many,
    find_levels,
    many_steps,
)
from ddpm_lightning.errors import InputError, at_least
from ddpm_lightning.evaluation.evaluation import Evaluation
from ddpm_lightning.evaluation.real_images import RealImages
from ddpm_lightning.evaluation.sample_set import SampleSet, digests_of, state_of
from ddpm_lightning.files import check_folder, json_value, write_json
from ddpm_lightning.loaded import DataPlace, Loaded
from ddpm_lightning.metrics import FeatureExtractor
from ddpm_lightning.sampling import Request

Goal = Literal["ode", "data"]
"""What few steps shall come close to."""

SAMPLES: dict[Goal, int] = {"ode": 128, "data": 1000}
"""How many samples are compared unless said, by goal."""

GAINS: dict[Goal, float] = {"ode": GAIN, "data": 1e-2}
"""Least relative gain for which a level is moved, unless said, by goal; larger for the data,
because each try there draws many samples."""

Stated = dict[str, Any]
"""All that decides about an error but the levels, as plain data."""


def find_steps(
    ckpt: Path,
    n: int | None = None,
    goal: Goal = "ode",
    gain: float | None = None,
    extractor: FeatureExtractor | Literal["auto"] = "auto",
    data: DataPlace = DataPlace(),
    device: str = "auto",
    **sampling: Any,
) -> None:
    """Find the levels at which a sampler with few steps does best.

    Draws the same samples again and again with one level moved, from the best fixed spacing on,
    and stores the levels beside the checkpoint, as NAME.SAMPLER.json or NAME.SAMPLER_data.json,
    for sampling with them: --sampler.spacing OptimizedSpacing --sampler.spacing.table FILE. The
    sampler must be deterministic: DDIM, DPMSolverPP, UniPC, LMS, Heun or Euler. The samples drawn
    grow with the steps, from about 50 n for 5 steps to 400 n for 20. After a stop the same command
    goes on.

    Args:
        ckpt: The checkpoint; it describes its model itself. Of a model that comes with the package
            (mnist_quick) the levels go into the working directory.
        n: Number of samples that are compared; default: 128, and 1000 for --goal data.
        goal: ode brings each sample close to what 100 steps make of the same noise, data all
            samples close to the training images, by the Fréchet distance (fd). The latter takes
            longer, and may come closer to the images than 100 steps do.
        gain: By what share the distance has to fall for a level to move; default: 0.001, and 0.01
            for --goal data. With a smaller one the search takes longer and may find better levels.
        extractor: Whose features --goal data compares. auto is LeNet for grey images; for colour
            it is Inception if its weights are in torch hub's cache, else ColourNet.
        data: Where its data is now, if it has moved; read for --goal data and condition images.
        device: cpu, cuda, cuda:1, mps, or auto.
        **sampling: How to sample, see Request; the levels serve this guidance best.

    Raises:
        InputError: The checkpoint, its folder or a setting does not work.
    """
    n = SAMPLES[goal] if n is None else n
    at_least(1, n=n)
    gain = GAINS[goal] if gain is None else gain
    at_least(0, gain=gain)
    if goal == "ode" and extractor != "auto":
        raise InputError(
            "--extractor is for --goal data; give that, too, or leave --extractor out"
        )
    request = Request(**sampling)
    check_folder(ckpt.parent)
    loaded = Loaded.read(ckpt, data, device)
    module, sampler = loaded.module, request.sampler.replace(spacing=UniformSpacing())
    request = request.replace(sampler=sampler)
    check_places(sampler, module.schedule)
    path = levels_file(ckpt, request.tag(module), goal)
    if path.exists():
        raise InputError(f"{path} holds levels that were found before; move it away")
    if goal == "ode":
        request.check(module)
        what, error, stated = _from_many(loaded, request, n)
    else:
        # Of the request's seed, because a SampleSet has another default.
        samples = SampleSet(n, **{**sampling, "sampler": sampler, "seed": request.seed})
        what, error, stated = _from_data(loaded, extractor, samples)
    stated = {"error": what, "n": n, **stated}
    tried = TriedLevels(error, module.schedule, path.with_suffix(".tried.json"), stated)
    found = find_levels(sampler, module.schedule, tried, gain, progress=True)
    table = {
        "levels": found.levels,
        "sampler": settings_of(sampler),
        "schedule": json_value(module.schedule.describe()),
        "distance": found.error,
        "distance_of_fixed_spacings": found.fixed,
        "distance_is": what,
        "goal": goal,
        "guidance": request.guidance.tag,
        "n": n,
        "seed": request.seed,
    }
    write_json(path, table)
    tried.forget()
    print(f"{what}, {n} samples: {_summary(found)}")
    print(
        f"{path} holds the levels. Sample with them: python -m ddpm_lightning sample "
        f"--ckpt {ckpt} --out FOLDER {_flags(sampler)} --sampler.spacing OptimizedSpacing "
        f"--sampler.spacing.table {path}"
    )


def levels_file(ckpt: Path, tag: str, goal: Goal) -> Path:
    """Where the levels found are, beside the checkpoint; the tag is the request's."""
    return ckpt.with_suffix(f".{tag}.json" if goal == "ode" else f".{tag}_{goal}.json")


def _from_many(loaded: Loaded, request: Request, n: int) -> tuple[str, Error, Stated]:
    """The distance of n samples from what many steps make of the same noise, with its name."""
    module, condition = loaded.module, given_images(loaded, None, n).condition

    def draw(one: Sampler) -> Tensor:
        return module.generate(torch.arange(n), request.replace(sampler=one), condition).x

    what = f"distance from the samples of {many_steps(module.schedule)} steps"
    error = distance_from_many(request.sampler, module.schedule, draw)
    stated = {**digests_of(module, request.weights), **state_of(request, module, condition)}
    return what, error, {**stated, "images": digest_of(None, condition.image)}


def _from_data(
    loaded: Loaded, extractor: FeatureExtractor | Literal["auto"], samples: SampleSet
) -> tuple[str, Error, Stated]:
    """The Fréchet distance of the samples from the training images, with its name."""
    evaluation = Evaluation(loaded, "fd", RealImages(), extractor, samples)
    evaluation.check(samples)
    assert evaluation.judge is not None
    _ = evaluation.judge.reference  # before the first samples, because it may fail

    def error(one: Sampler) -> float:
        (score,) = evaluation.scores(samples.replace(sampler=one)).values()
        return score.value

    stated = {**evaluation.stated(samples), "images": digest_of(None, evaluation.known.image)}
    return f"{evaluation.judge.extractor.name} to the training images", error, stated


def _summary(found: Found) -> str:
    fixed = ", ".join(
        f"{name.removesuffix('Spacing')} {error:.4g}" for name, error in found.fixed.items()
    )
    return f"{fixed}, found {found.error:.4g}\nlevels: {', '.join(map(str, found.levels))}"


def _flags(sampler: Sampler) -> str:
    """Write the flags that build a sampler, but for its spacing."""
    settings = {"steps": sampler.steps, **sampler.changed()}
    settings.pop("spacing", None)
    words = [f"--sampler.{name} {value}" for name, value in settings.items()]
    return " ".join([f"--sampler {type(sampler).__name__}", *words])
