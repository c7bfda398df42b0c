"""Search for the levels at which few steps of a sampler err least.

The samples of a deterministic sampler are a function of their noise x_T. So an error of few steps
is the distance to what the probability-flow ODE makes of the same noise, and levels are better or
worse without any judge of images (Xue et al. 2024, "Accelerating diffusion sampling with optimized
time steps", and Tong et al. 2024, "Learning to discretize denoising diffusion ODEs", LD3, minimise
such distances by gradients; here levels are whole numbers, and are moved one by one). The distance
is averaged, not its square, because a few samples that end in another mode would outweigh all
others. Any other function of the sampler serves as error, too, if it does not change from call to
call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ddpm_lightning.diffusion.levels import Schedule
from ddpm_lightning.diffusion.oracles import Gaussian
from ddpm_lightning.diffusion.samplers import (
    DPMSolverPP,
    KarrasSpacing,
    Levels,
    LogSNRSpacing,
    PowerSpacing,
    QuadraticSpacing,
    Sampler,
    Spacing,
    UniformSpacing,
)
from ddpm_lightning.errors import InputError
from ddpm_lightning.progress import show_progress

FIXED: tuple[Spacing, ...] = (
    UniformSpacing(),
    QuadraticSpacing(),
    LogSNRSpacing(),
    KarrasSpacing(),
    PowerSpacing(),
)
"""The search starts from the best of these spacings."""

SHARES = (1 / 2, 1 / 4, 1 / 8)
"""How far a level moves towards its neighbour, as a share of the distance, pass by pass."""

GAIN = 1e-3
"""Least relative gain for which a level is moved, unless said."""

MANY = 100
"""Steps of the reference, where the schedule has as many."""

Draw = Callable[[Sampler], Tensor]
"""draw(sampler) → its samples [n, ...], always from the same noise x_T."""

Error = Callable[[Sampler], float]
"""error(sampler) → how bad its samples are, always from the same noise x_T."""


@dataclass(frozen=True)
class Found:
    """Levels found for a sampler.

    Args:
        levels: The levels, from T down to 0.
        error: The error there.
        fixed: That of each fixed spacing, by its name.
    """

    levels: list[int]
    error: float
    fixed: dict[str, float]


def find_levels(
    sampler: Sampler,
    schedule: Schedule,
    error: Error,
    gain: float = GAIN,
    progress: bool = False,
) -> Found:
    """Find the levels at which the error of a sampler is least.

    It starts from the best fixed spacing and moves one level at a time, towards either neighbour,
    by ever smaller shares of the distance, for as long as that lessens the error. Of all levels
    tried the best are found.

    Args:
        sampler: The sampler, with its number of steps.
        schedule: The schedule that it walks.
        error: The error of a sampler, e.g. its :func:`distance_from_many`.
        gain: The least relative gain for which a level is moved.
        progress: Show at how many sets of levels the error was taken, and the least of them.

    Raises:
        InputError: The sampler's steps cannot be placed: they are random, or fewer than 2.
    """
    check_places(sampler, schedule)
    known: dict[tuple[int, ...], float] = {}
    with show_progress(desc="levels tried", unit="try", leave=False, disable=not progress) as bar:

        def error_at(levels: list[int]) -> float:
            if tuple(levels) not in known:
                known[tuple(levels)] = error(sampler.replace(spacing=Levels(levels)))
                bar.set_postfix(least=min(known.values()), refresh=False)
                bar.update()
            return known[tuple(levels)]

        starts = {type(one).__name__: one(schedule, sampler.steps) for one in FIXED}
        fixed = {name: error_at(levels) for name, levels in starts.items()}
        descend(starts[min(fixed, key=lambda name: fixed[name])], error_at, gain)
        best = min(known, key=lambda levels: known[levels])
        return Found(list(best), known[best], fixed)


def distance_from_many(sampler: Sampler, schedule: Schedule, draw: Draw) -> Error:
    """The distance of a sampler's samples from those of many steps, from the same noise.

    Args:
        sampler: The sampler; many steps clip as it does.
        schedule: The schedule that it walks.
        draw: Draws the samples of a sampler; those of many steps once, at the first use.
    """
    many = DPMSolverPP(many_steps(schedule), clip=sampler.clip, threshold=sampler.threshold)
    wanted = cache(lambda: draw(many))
    return lambda one: distance(draw(one), wanted())


def many_steps(schedule: Schedule) -> int:
    """Number of steps of the reference."""
    return min(schedule.T, MANY)


def distance(x: Tensor, y: Tensor) -> float:
    """Root mean square distance of x_i from y_i, both [n, ...], averaged over the samples."""
    return float((x - y).double().flatten(1).square().mean(1).sqrt().mean())


def descend(
    levels: list[int], error: Callable[[list[int]], float], gain: float = GAIN
) -> list[int]:
    """Move the levels between the first and the last, one by one, to where the error is least."""
    best = error(levels)
    for share in SHARES:
        moved = True
        while moved:
            moved = False
            for i in range(1, len(levels) - 1):
                for candidate in _moves(levels, i, share):
                    found = error(candidate)
                    if found < (1 - gain) * best:
                        levels, best, moved = candidate, found, True
                        break
    return levels


def check_places(sampler: Sampler, schedule: Schedule) -> None:
    """Raise InputError unless a sampler's samples follow from x_T and the levels alone."""
    name = type(sampler).__name__
    if sampler.chooses_steps:
        raise InputError(
            f"{name} chooses its own levels; give --sampler DPMSolverPP --sampler.steps 8"
        )
    drawn: list[int] = []

    def noise(draw: int, shape: tuple[int, ...]) -> Tensor:
        drawn.append(draw)
        return torch.zeros(1, *shape)

    oracle, x_T = Gaussian(schedule, torch.zeros(64), torch.eye(64)), torch.ones(1, 64)
    sampler.replace(steps=min(3, schedule.T))(oracle, x_T, noise=noise)
    if drawn:
        raise InputError(
            f"{name} adds noise at its steps, so samples do not follow from their levels alone; "
            "give --sampler DDIM --sampler.steps 8 (eta 0), or DPMSolverPP, UniPC, LMS, Heun"
        )
    if sampler.steps is None or sampler.steps < 2:
        raise InputError(
            f"{name}(steps={sampler.steps}) has no level to place; give --sampler.steps 8"
        )


def _moves(levels: list[int], i: int, share: float) -> list[list[int]]:
    """Level i moved by a share of the way to its upper and to its lower neighbour."""
    above, here, below = levels[i - 1 : i + 2]
    towards = [here + round(share * (other - here)) for other in (below, above)]
    return [
        [*levels[:i], level, *levels[i + 1 :]]
        for level in towards
        if below < level < above and level != here
    ]
