"""Editing given data with any denoiser: inpainting, variations, interpolation.

Each yields a State at every level, as a sampler's trajectory does; the last one holds the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ddpm_lightning.batch import Condition
from ddpm_lightning.diffusion.denoiser import Denoises, evaluation_mode
from ddpm_lightning.diffusion.posterior import transition_variance
from ddpm_lightning.diffusion.samplers import DDIM, DDPM, Sampler, SingleStep, State, encode
from ddpm_lightning.diffusion.samplers.sampler import Noise, bind_noise
from ddpm_lightning.diffusion.self_conditioning import followed
from ddpm_lightning.errors import InputError, at_least


@torch.no_grad()
def repaint(
    denoiser: Denoises,
    x0: Tensor,
    painted: Tensor,
    condition: Condition = Condition(),
    sampler: SingleStep = DDPM(250),
    resamplings: int = 10,
    jump: int = 10,
    noise: Noise | None = None,
) -> Iterator[State]:
    """Inpaint: paint a part of given data anew (RePaint, Lugmayr et al. 2022, alg. 1).

    At every level known pixels come from q(x_s | x_0) and the others from the reverse step. Taken
    once, that leaves the two ill-matched; so x_s is noised again by some levels, and the steps are
    repeated, which carries what is known into what is painted. The result equals x0 to the bit
    wherever it is not painted. On a way up a State's x0 is the last prediction before it.

    Args:
        denoiser: The model.
        x0: [B, ...] data; its values under the painted part do not matter.
        painted: bool, broadcast to x0: True where it is painted anew (1 − m in the paper).
        condition: What the denoiser is told beside x_t, B rows.
        sampler: Its reverse step and levels; the paper's are DDPM's, on 250 levels.
        resamplings: How often each step is taken (the paper's U or r); 1 never goes back.
        jump: Steps that one return goes back (sec. 4.2 of the paper).
        noise: Source of noise, as for samplers; x_T takes draw 0, move i draw i.
    """
    schedule, draw = denoiser.schedule, bind_noise(noise, like=x0)
    visits = revisited(sampler.levels(schedule), resamplings, jump)
    x = draw(0) * schedule.prior_std
    guess = x
    with evaluation_mode(denoiser.net):
        for i, (t, s) in enumerate(pairwise(visits), start=1):
            if s > t:
                yield State(t, x, guess)
                low, high = schedule.level(t), schedule.level(s)
                x = high.alpha / low.alpha * x + transition_variance(low, high) ** 0.5 * draw(i)
                continue
            prediction = denoiser(x, t, condition).clip(sampler.clip, sampler.threshold)
            condition = followed(denoiser, condition, prediction)
            guess = prediction.x0
            yield State(t, x, guess)
            # One draw serves both: each of its numbers ends in a pixel that is known or is not.
            z = draw(i)
            unknown = sampler.checked_step(prediction, s, lambda z=z: z)  # type: ignore[misc]
            x = torch.where(painted, unknown, schedule.add_noise(x0, s, z))
    yield State(0, x, x)


def revisited(levels: Sequence[int], resamplings: int, jump: int) -> list[int]:
    """Order in which RePaint visits levels, as in its released code (get_schedule_jump).

    After its first arrival at every jump-th level, counted from the last noisy one, it goes back
    up by ``jump`` steps and comes down again, ``resamplings − 1`` times.

    Raises InputError: The settings allow no return.
    """
    steps = len(levels) - 1
    at_least(1, resamplings=resamplings, jump=jump)
    if resamplings > 1 and jump >= steps:
        raise InputError(
            f"jump={jump} of {steps} steps: going back needs more steps than that; take a "
            f"smaller jump, more steps, or resamplings=1"
        )
    upwards = list(reversed(levels))  # its place in this list is a level's number of steps to 0
    visits = [levels[0]]
    for place in range(steps - 1, -1, -1):
        visits.append(upwards[place])
        if place >= 1 and place + jump <= steps and (place - 1) % jump == 0:
            back = [upwards[place + jump], *upwards[place : place + jump][::-1]]
            visits += back * (resamplings - 1)
    return visits


def sdedit(
    denoiser: Denoises,
    x0: Tensor,
    strength: float,
    sampler: Sampler,
    condition: Condition = Condition(),
    noise: Noise | None = None,
) -> Iterator[State]:
    """SDEdit: noise data x0 to level strength·T and sample from there (Meng et al. 2022).

    Strength 0 returns x0 itself, 1 samples from (almost) pure noise. Of its levels, the sampler
    visits those below strength·T. Draw 0 of the noise is that of the data.
    """
    schedule = denoiser.schedule
    start = start_level(strength, schedule.T)
    if start == 0:
        yield State(0, x0, x0)
        return
    x_t = schedule.add_noise(x0, start, bind_noise(noise, like=x0)(0))
    yield from sampler.from_level(start, schedule).trajectory(denoiser, x_t, condition, noise)


def start_level(strength: float, T: int) -> int:
    """Round strength·T to a level, which is 0 only for strength 0; refuse strength ∉ [0, 1]."""
    if not 0 <= strength <= 1:
        raise InputError(
            f"strength={strength:g}: it lies between 0 (the image as it is) and 1 (nothing of it)"
        )
    return max(1, round(strength * T)) if strength > 0 else 0


def interpolate(
    denoiser: Denoises,
    a: Tensor,
    b: Tensor,
    shares: Sequence[float],
    sampler: DDIM,
    condition: Condition = Condition(),
    iterations: int = 5,
) -> Iterator[State]:
    """Interpolate between two data in the latent space of DDIM (DDIM, app. D.5).

    Both are encoded by DDIM run backwards, what is between them is sampled by DDIM.

    Args:
        denoiser: The model; under guidance other than 1 the ends differ from the data.
        a: [...] one datum.
        b: [...] another.
        shares: How far to go from a (0) to b (1), of each of n results.
        sampler: DDIM with eta 0 and without clip, both ways.
        condition: Of all; n rows.
        iterations: Network evaluations a step of the encoding; with more, the ends are closer to
            the data.
    """
    both = condition.rows(slice(1)).repeated(torch.arange(2))
    ends = torch.stack([a, b])
    a_T, b_T = encode(denoiser, ends, both, sampler.steps, sampler.spacing, iterations)
    x_T = torch.stack([slerp(a_T, b_T, share) for share in shares])
    return sampler.trajectory(denoiser, x_T, condition)


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Spherical interpolation, which keeps the norm of noise (DDIM app. D.5).

    sin((1 − share)·angle)/sin(angle)·a + sin(share·angle)/sin(angle)·b; a straight line where
    they point the same way.
    """
    cosine = (a * b).sum() / (a.norm() * b.norm())
    angle = cosine.clamp(-1, 1).arccos()
    if not angle.sin() > 1e-6:  # also where one of them is 0
        return torch.lerp(a, b, share)
    return ((1 - share) * angle).sin() / angle.sin() * a + (share * angle).sin() / angle.sin() * b
