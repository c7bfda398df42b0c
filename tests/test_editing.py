"""Painting, varying and interpolating given data, against closed forms in float64 numpy."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lightning.batch import Condition, DataSpec
from ddpm_lightning.cli import main
from ddpm_lightning.commands.edits import Interpolate, RePaint, SDEdit, edit_images
from ddpm_lightning.diffusion import FixedLarge, Linear, SohlDickstein
from ddpm_lightning.diffusion.editing import (
    interpolate,
    repaint,
    repaint_trajectory,
    revisited,
    sdedit,
    sdedit_trajectory,
    slerp,
)
from ddpm_lightning.diffusion.oracles import Gaussian, Mixture
from ddpm_lightning.diffusion.samplers import (
    DDIM,
    DDPM,
    Heun,
    KarrasSpacing,
    Levels,
    LogSNRSpacing,
    UniPC,
)
from ddpm_lightning.errors import InputError
from ddpm_lightning.images import write_png
from ddpm_lightning.loaded import Loaded
from ddpm_lightning.networks import MLP
from ddpm_lightning.randomness import IndexedNoise
from ddpm_lightning.sampling import Request
from tests.small import image_spec, labels, tiny_data, tiny_module

LINEAR = Linear()
MEAN = np.array([0.5, -0.3, 0.2, 0.0])
COV = np.array(
    [[1.0, 0.6, 0.3, 0.2], [0.6, 0.8, 0.4, 0.1], [0.3, 0.4, 0.6, 0.3], [0.2, 0.1, 0.3, 0.5]]
)
X0_KNOWN = np.array([1.5, -1.0, 9.0, 9.0])  # the last two are painted, whatever stands there
PAINTED = np.array([False, False, True, True])


def oracle(schedule=LINEAR):
    return Gaussian(schedule, torch.tensor(MEAN), torch.tensor(COV))


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def moments_of_an_affine_function(function, draws):
    """Exact mean and covariance of function(noise) if it is affine in 4-dimensional noises.

    Row 0 sees no noise at all; each other row sees one unit vector in one draw, 0 elsewhere.
    """
    rows = 1 + 4 * draws

    def unit(draw, shape):
        noise = torch.zeros(rows, *shape, dtype=torch.float64)
        noise[1 + 4 * draw : 5 + 4 * draw] = torch.eye(4, dtype=torch.float64)
        return noise

    out = function(unit, rows).numpy()
    columns = out[1:] - out[0]
    return out[0], columns.T @ columns


def repaint_moments(schedule, levels, resamplings, jump, x0=X0_KNOWN, painted=PAINTED):
    visits = revisited(levels, resamplings, jump)

    def function(noise, rows):
        return repaint(
            oracle(schedule),
            torch.tensor(x0).expand(rows, 4),
            torch.tensor(painted),
            sampler=DDPM(None, spacing=Levels(levels)),
            resamplings=resamplings,
            jump=jump,
            noise=noise,
        )

    return moments_of_an_affine_function(function, len(visits))


def published_visits(steps, resamplings, jump):
    """get_schedule_jump of the paper's code, whose index i is our level i + 1."""
    jumps = {j: resamplings - 1 for j in range(0, steps - jump, jump)}
    t, visited = steps, []
    while t >= 1:
        t -= 1
        visited.append(t)
        if jumps.get(t, 0) > 0:
            jumps[t] -= 1
            for _ in range(jump):
                t += 1
                visited.append(t)
    return [i + 1 for i in [*visited, -1]]


def recursion(schedule, levels, resamplings, jump):
    """Mean and covariance through the whole chain of RePaint's algorithm 1, by numpy alone.

    The way up goes level by level, as in the paper, by x_t ~ N(sqrt(1 − beta)·x_s, beta·I).
    """
    places = published_visits(len(levels) - 1, resamplings, jump)
    abar = schedule.alpha.numpy() ** 2
    level = dict(enumerate(reversed(levels)))
    keep = np.diag((~PAINTED).astype(float))
    free = np.eye(4) - keep
    m, C = np.zeros(4), np.eye(4)
    for a, b in pairwise(places):
        t, s = level[a], level[b]
        if b > a:
            beta = 1 - abar[s] / abar[t]
            m, C = np.sqrt(1 - beta) * m, (1 - beta) * C + beta * np.eye(4)
            continue
        beta = 1 - abar[t] / abar[s]
        gain = np.sqrt(abar[t]) * COV @ np.linalg.inv(abar[t] * COV + (1 - abar[t]) * np.eye(4))
        # DDPM eq. 7 for the pair (s, t), with x0_hat = MEAN + gain·(x_t − sqrt(abar_t)·MEAN).
        of_x0 = np.sqrt(abar[s]) * beta / (1 - abar[t])
        of_x_t = np.sqrt(1 - beta) * (1 - abar[s]) / (1 - abar[t])
        A = of_x0 * gain + of_x_t * np.eye(4)
        offset = of_x0 * (MEAN - np.sqrt(abar[t]) * gain @ MEAN)
        beta_tilde = (1 - abar[s]) / (1 - abar[t]) * beta
        m = free @ (A @ m + offset) + keep @ (np.sqrt(abar[s]) * X0_KNOWN)
        C = free @ (A @ C @ A.T + beta_tilde * np.eye(4)) @ free + (1 - abar[s]) * keep
    return m, C


# RePaint


@pytest.mark.parametrize("steps", [1, 2, 7, 20, 50])
@pytest.mark.parametrize(("resamplings", "jump"), [(1, 1), (3, 1), (10, 1), (2, 3), (10, 10)])
def test_levels_are_revisited_as_in_the_published_code(steps, resamplings, jump):
    if resamplings > 1 and jump >= steps:
        for settings, message in (
            ((resamplings, jump), f"jump={jump} of {steps} steps"),
            ((0, jump), "both are at least 1"),
            ((resamplings, 0), "both are at least 1"),
        ):
            with pytest.raises(InputError, match=message):
                revisited(range(steps, -1, -1), *settings)
        return
    ours = [steps]
    for place in revisited(range(steps, -1, -1), resamplings, jump)[1:]:
        # We jump up at once, that code level by level.
        ours += range(ours[-1] + 1, place + 1) if place > ours[-1] else [place]
    assert ours == published_visits(steps, resamplings, jump)


@pytest.mark.parametrize(("resamplings", "jump"), [(1, 1), (4, 1), (3, 2), (2, 5)])
@pytest.mark.parametrize(
    ("schedule", "levels"),
    [
        (Linear(25), list(range(25, -1, -1))),
        (LINEAR, [1000, 800, 650, 400, 200, 90, 30, 8, 2, 1, 0]),
    ],
    ids=["all", "some"],
)
def test_repaint_has_the_moments_of_its_algorithm(schedule, levels, resamplings, jump):
    mean, cov = repaint_moments(schedule, levels, resamplings, jump)
    expected_mean, expected_cov = recursion(schedule, levels, resamplings, jump)
    np.testing.assert_allclose(mean, expected_mean, atol=1e-9)
    np.testing.assert_allclose(cov, expected_cov, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_known_values_are_kept_to_the_bit_and_rows_depend_on_their_index_alone(dtype):
    x0, painted = normal(3, 4).to(dtype), torch.tensor(PAINTED)

    def run(rows):
        noise = IndexedNoise(0, torch.tensor(rows))
        return repaint(oracle(), x0[rows], painted, Condition(), DDPM(20), 3, 2, noise)

    together = run([0, 1, 2])
    assert together.dtype == dtype
    assert torch.equal(together[:, ~painted], x0[:, ~painted])
    assert (together[:, painted] != x0[:, painted]).all()
    torch.testing.assert_close(run([2])[0], together[2])


def test_a_painted_part_follows_its_label_and_the_clip():
    means = torch.tensor([[0.0, 3.0], [0.0, -3.0]])
    mixture = Mixture(LINEAR, means, torch.tensor([0.01, 0.01]), labels=torch.tensor([0, 1]))
    arguments = torch.zeros(2, 2), torch.tensor([False, True]), labels(0, 1)
    noise = IndexedNoise(0, torch.arange(2))
    painted = repaint(mixture, *arguments, DDPM(20), 2, 1, noise)[:, 1]
    np.testing.assert_allclose(painted, [3.0, -3.0], atol=0.6)
    clipped = repaint(mixture, *arguments, DDPM(20, clip=(-1.0, 1.0)), 2, 1, noise)
    assert clipped.abs().max() <= 1


def test_every_state_of_a_painting_is_at_the_level_it_states():
    x0, visits = normal(1, 4), revisited([1000, 500, 100, 10, 0], 2, 2)
    sampler = DDPM(None, spacing=Levels([1000, 500, 100, 10, 0]))
    noise = IndexedNoise(0, torch.arange(1))
    states = list(
        repaint_trajectory(oracle(), x0, torch.tensor(PAINTED), Condition(), sampler, 2, 2, noise)
    )
    assert [state.t for state in states] == visits == [1000, 500, 100, 10, 500, 100, 10, 0]


# SDEdit

SAMPLERS = [
    DDPM(20),
    DDIM(20),
    Heun(20, spacing=KarrasSpacing()),
    UniPC(20),
    DDIM(20, 0.5, LogSNRSpacing()),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(("strength", "start"), [(0.0, 0), (0.0004, 1), (0.4, 400), (1.0, 1000)])
def test_variation_starts_at_its_level_and_goes_on_at_the_samplers(sampler, strength, start):
    x0, noise = normal(2, 4), IndexedNoise(0, torch.arange(2))
    states = list(sdedit_trajectory(oracle(), x0, strength, sampler, noise=noise))
    own = sampler.spacing(LINEAR, 20)
    assert [state.t for state in states] == [start, *(t for t in own if t < start)]
    assert states[-1].x_t.isfinite().all()
    assert torch.equal(states[-1].x_t, x0) == (strength == 0)


def flow_moments(strength):
    """Of the probability flow from q(x_t | x0) down to the data, in closed form."""
    t = round(strength * LINEAR.T)
    alpha, sigma = LINEAR.alpha[t].item(), LINEAR.sigma[t].item()
    spread, basis = np.linalg.eigh(COV)
    gain = basis * np.sqrt(spread / (alpha**2 * spread + sigma**2)) @ basis.T
    return MEAN + alpha * gain @ (X0_KNOWN - MEAN), sigma**2 * gain @ gain


@pytest.mark.parametrize("strength", [0.2, 0.4, 1.0])
def test_variations_have_the_moments_of_the_probability_flow(strength):
    def function(noise, rows):
        x0 = torch.tensor(X0_KNOWN).expand(rows, 4)
        return sdedit(oracle(), x0, strength, DDIM(None), noise=noise)

    mean, cov = moments_of_an_affine_function(function, 1)
    expected_mean, expected_cov = flow_moments(strength)
    # DDIM is Euler's method for the flow: one percent off with a thousand steps.
    np.testing.assert_allclose(mean, expected_mean, atol=0.02)
    np.testing.assert_allclose(cov, expected_cov, atol=0.02)


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_a_strength_that_is_no_share_is_refused(strength):
    with pytest.raises(InputError, match="between 0"):
        sdedit(oracle(), normal(1, 4), strength, DDPM(5))


# Interpolation


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ends_of_an_interpolation_are_the_data(dtype):
    a, b = (torch.tensor(x, dtype=dtype) for x in (MEAN + 0.4, -MEAN))
    ends = interpolate(oracle(), a, b, [0.0, 1.0], steps=20, iterations=100)
    assert ends.dtype == dtype
    torch.testing.assert_close(ends, torch.stack([a, b]), atol=1e-5, rtol=0)


def test_the_way_between_is_spherical():
    # For standard normal data, DDIM only scales, so that the way is a slerp of the data itself.
    normal_data = Gaussian(LINEAR, torch.zeros(4), torch.eye(4))
    a, b = normal(2, 4).numpy()
    between = interpolate(
        normal_data, torch.tensor(a), torch.tensor(b), [0.25, 0.5], steps=10, iterations=100
    )
    angle = np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    for x, share in zip(between, (0.25, 0.5), strict=True):
        expected = (np.sin((1 - share) * angle) * a + np.sin(share * angle) * b) / np.sin(angle)
        np.testing.assert_allclose(x, expected, atol=1e-6)


def test_points_in_one_direction_are_joined_by_a_line():
    a = normal(3)
    torch.testing.assert_close(slerp(a, 3 * a, 0.5), 2 * a)
    torch.testing.assert_close(slerp(a, 0 * a, 0.5), a / 2)


def test_an_interpolation_takes_a_label():
    means = torch.tensor([[1.0, 1.0], [-1.0, 1.0]])
    mixture = Mixture(LINEAR, means, torch.tensor([0.1, 0.1]), labels=torch.tensor([0, 1]))
    middles = [
        interpolate(mixture, means[0], means[1], [0.5], condition, steps=10)
        for condition in (Condition(), labels(0), labels(1))
    ]
    assert not torch.allclose(middles[0], middles[1])
    assert not torch.allclose(middles[1], middles[2])


# The command


@pytest.fixture
def files(tmp_path, monkeypatch):
    """In the current folder two digits, and a mask of the lower half."""
    monkeypatch.chdir(tmp_path)
    images, _ = tiny_data().images("train")
    mask = torch.arange(2, dtype=torch.uint8).repeat_interleave(32).view(1, 8, 8) * 255
    for name, image in (("a", images[0]), ("b", images[1]), ("mask", mask)):
        write_png(Path(f"{name}.png"), image)


@pytest.fixture
def edit(files, lively_checkpoint):
    """Runs sample --edit for three images, and gives them as numpy arrays."""

    def run(*flags: str) -> list[np.ndarray]:
        main(["sample", f"--ckpt={lively_checkpoint}", "--out=out", "--n=3", "--edit", *flags])
        return [np.array(Image.open(f"out/{k:06d}.png")).astype(int) for k in range(3)]

    return run


PAINT = ("RePaint", "--edit.image=a.png", "--edit.mask=mask.png")
VARY = ("SDEdit", "--edit.image=a.png")
BETWEEN = ("Interpolate", "--edit.first=a.png", "--edit.second=b.png")


def test_painted_files_keep_every_black_pixel_of_the_mask(edit):
    steps = "--sampler=DDPM", "--sampler.steps=15"
    images = edit(*PAINT, "--edit.resamplings=2", "--grid.frames=3", *steps)
    given = np.array(Image.open("a.png"))
    assert all((image[:4] == given[:4]).all() for image in images)
    assert not (images[0][4:] == images[1][4:]).all()
    names = {path.name for path in Path("out").iterdir()}
    assert names == {*(f"{k:06d}.png" for k in range(3)), "grid.png", "trajectory.gif"}
    # The image, and what is left of it, in a row of 8 above the results; 8×8 pixels become 64.
    top = np.array(Image.open("out/grid.png").convert("L"))[2:66:8]
    image, left = top[:, 2:66:8], top[:, 68:132:8]
    assert (image == given).all()
    assert (left == np.where(np.arange(8)[:, None] < 4, given, 128)).all()


def test_varied_files_are_the_file_itself_at_strength_zero(edit):
    given = np.array(Image.open("a.png"))
    assert all((image == given).all() for image in edit(*VARY, "--edit.strength=0"))


def test_without_labels_an_edit_takes_no_class(lively_checkpoint, files):
    module = Loaded.read(lively_checkpoint).module
    own, none, zero = (
        edit_images(module, SDEdit(Path("a.png")), 2, Request(DDIM(5), labels=labels)).x
        for labels in (None, [-1], [0])
    )
    assert torch.equal(own, none)
    assert not torch.equal(own, zero)


def test_varied_files_differ_by_their_noise_and_follow_a_guided_label(edit):
    vary = *VARY, "--labels=[1,2]", "--sampler=DDIM", "--sampler.steps=10"
    plain = edit(*vary)
    assert len({image.tobytes() for image in plain}) == 3
    Path("out").rename("plain")
    guided = edit(*vary, "--guidance.scale=3", "--guidance.interval=[0.1, 1]")
    assert all((one != other).any() for one, other in zip(plain, guided, strict=True))


def test_interpolated_files_begin_and_end_with_the_given_ones(edit):
    first, middle, last = edit(*BETWEEN, "--sampler=DDIM", "--sampler.steps=10")
    a, b = (np.array(Image.open(f"{name}.png")).astype(int) for name in "ab")
    assert abs(first - a).max() <= 1
    assert abs(last - b).max() <= 1
    assert min(abs(middle - a).max(), abs(middle - b).max()) > 9


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([*VARY, "--edit.image=gone.png"], "no image at gone.png"),
        ([*VARY, "--edit.strength=2"], "strength=2: it lies between 0"),
        ([*VARY, "--condition=a.png"], "leave out --condition"),
        (["RePaint", "--edit.image=a.png"], "missing: --edit.mask"),
        (["RePant"], "did you mean RePaint?"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(edit, flags, message, capsys):
    capsys.readouterr()
    with pytest.raises(SystemExit):
        edit(*flags)
    errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(errors) == 1
    assert message in errors[0]
    assert not Path("out").exists()


# What an edit refuses

FILES = {
    RePaint: {"image": Path("a.png"), "mask": Path("mask.png")},
    SDEdit: {"image": Path("a.png")},
    Interpolate: {"first": Path("a.png"), "second": Path("b.png")},
}


@pytest.mark.parametrize(
    ("kind", "edit", "request_", "message"),
    [
        (RePaint, {"mask": Path("gone.png")}, {}, "no image at gone.png"),
        (SDEdit, {}, {"guidance": 2.0}, "give labels"),
        (RePaint, {}, {"sampler": UniPC(10)}, "use --sampler DDPM or DDIM"),
        (RePaint, {}, {"sampler": DDPM(5)}, "jump=10 of 5 steps"),
        (Interpolate, {}, {"sampler": DDPM()}, "use --sampler DDIM"),
        (Interpolate, {}, {"sampler": DDIM(9, eta=0.5)}, "with eta 0"),
        (Interpolate, {}, {"sampler": DDIM(9, clip=(-1, 1))}, "without clip"),
        (Interpolate, {}, {"variance": FixedLarge()}, "DDIM has no use for a variance"),
        (Interpolate, {}, {"labels": [1, 2]}, "one label for all"),
        (Interpolate, {}, {"labels": 1, "guidance": 2.0}, "inexact under guidance"),
        (Interpolate, {"iterations": 0}, {}, "at least one evaluation"),
    ],
)
@pytest.mark.usefixtures("files")
def test_settings_and_requests_that_do_not_suit_are_refused(kind, edit, request_, message):
    module = tiny_module(schedule=SohlDickstein(), conditional=True)
    with pytest.raises(InputError, match=message):
        edit_images(module, kind(**FILES[kind] | edit), 3, Request(**request_))


@pytest.mark.usefixtures("files")
def test_models_and_numbers_that_do_not_suit_are_refused():
    variation, between = (kind(**FILES[kind]) for kind in (SDEdit, Interpolate))
    for edit, n, message, parts in (
        (between, 1, "at least its two ends", {}),
        (variation, 3, "leave out --edit", {"data": image_spec(image_channels=1)}),
        (variation, 3, "edits are of images", {"data": DataSpec((2,), None), "net": MLP}),
    ):
        with pytest.raises(InputError, match=message):
            edit_images(tiny_module(**parts), edit, n)
