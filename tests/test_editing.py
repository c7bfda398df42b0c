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
    revisited,
    sdedit,
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
from ddpm_lightning.images import to_uint8, write_png
from ddpm_lightning.loaded import Loaded
from ddpm_lightning.networks import MLP
from ddpm_lightning.randomness import IndexedNoise
from ddpm_lightning.sampling import Request
from tests.core import named, normal
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


def result(states):
    """What an edit ends with."""
    return list(states)[-1].x_t


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


def repaint_moments(schedule, levels, *jumps):
    visits, sampler = revisited(levels, *jumps), DDPM(None, spacing=Levels(levels))

    def function(noise, rows):
        x0, painted = torch.tensor(X0_KNOWN).expand(rows, 4), torch.tensor(PAINTED)
        args = oracle(schedule), x0, painted, Condition(), sampler, *jumps, noise
        *states, end = repaint(*args)
        assert [state.t for state in [*states, end]] == visits
        return end.x_t

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


@pytest.mark.parametrize(
    ("steps", "resamplings", "jump"),
    [(1, 1, 1), (20, 1, 10), (2, 3, 1), (50, 10, 1), (7, 2, 3), (20, 2, 3), (20, 10, 10)],
)
def test_levels_are_revisited_as_in_the_published_code(steps, resamplings, jump):
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
        states = repaint(oracle(), x0[rows], painted, Condition(), DDPM(20), 3, 2, noise)
        return result(states)

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
    painted = result(repaint(mixture, *arguments, DDPM(20), 2, 1, noise))[:, 1]
    np.testing.assert_allclose(painted, [3.0, -3.0], atol=0.6)
    clipped = result(repaint(mixture, *arguments, DDPM(20, clip=(-1.0, 1.0)), 2, 1, noise))
    assert clipped.abs().max() <= 1


# SDEdit


@pytest.mark.parametrize(
    "sampler",
    [DDPM(20), Heun(20, spacing=KarrasSpacing()), DDIM(20, 0.5, LogSNRSpacing())],
    ids=named,
)
@pytest.mark.parametrize(("strength", "start"), [(0.0, 0), (0.0004, 1), (0.4, 400), (1.0, 1000)])
def test_variation_starts_at_its_level_and_goes_on_at_the_samplers(sampler, strength, start):
    x0, noise = normal(2, 4), IndexedNoise(0, torch.arange(2))
    states = list(sdedit(oracle(), x0, strength, sampler, noise=noise))
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
        return result(sdedit(oracle(), x0, strength, DDIM(None), noise=noise))

    mean, cov = moments_of_an_affine_function(function, 1)
    expected_mean, expected_cov = flow_moments(strength)
    # DDIM is Euler's method for the flow: one percent off with a thousand steps.
    np.testing.assert_allclose(mean, expected_mean, atol=0.02)
    np.testing.assert_allclose(cov, expected_cov, atol=0.02)


# Interpolation


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ends_of_an_interpolation_are_the_data_whatever_the_label(dtype):
    means, variances = torch.tensor([[1.0, 1.0], [-1.0, 1.0]]), torch.tensor([0.1, 0.1])
    mixture = Mixture(LINEAR, means, variances, labels=torch.tensor([0, 1]))
    a, b = means.to(dtype)
    middles = []
    for condition in (Condition(), labels(0), labels(1)):
        of_all = condition if condition.label is None else labels(*condition.label.tolist() * 3)
        shares = [0.0, 0.5, 1.0]
        states = interpolate(mixture, a, b, shares, DDIM(20), of_all, iterations=100)
        first, middle, last = result(states)
        torch.testing.assert_close(torch.stack([first, last]), means.to(dtype), atol=1e-4, rtol=0)
        middles.append(middle)
    assert not torch.allclose(middles[0], middles[1])
    assert not torch.allclose(middles[1], middles[2])


def test_the_way_between_is_spherical():
    # For standard normal data, DDIM only scales, so that the way is a slerp of the data itself.
    normal_data = Gaussian(LINEAR, torch.zeros(4), torch.eye(4))
    a, b = normal(2, 4).numpy()
    ends = torch.tensor(a), torch.tensor(b)
    between = result(interpolate(normal_data, *ends, [0.25, 0.5], DDIM(10), iterations=100))
    angle = np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    for x, share in zip(between, (0.25, 0.5), strict=True):
        expected = (np.sin((1 - share) * angle) * a + np.sin(share * angle) * b) / np.sin(angle)
        np.testing.assert_allclose(x, expected, atol=1e-6)


def test_points_in_one_direction_are_joined_by_a_line():
    a = normal(3)
    torch.testing.assert_close(slerp(a, 3 * a, 0.5), 2 * a)
    torch.testing.assert_close(slerp(a, 0 * a, 0.5), a / 2)


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
    assert names == {
        *(f"{k:06d}.png" for k in range(3)),
        "config.yaml",
        "grid.png",
        "samples.json",
        "trajectory.gif",
    }
    # The image, and what is left of it, in a row of 8 above the results; 8×8 pixels become 64.
    top = np.array(Image.open("out/grid.png").convert("L"))[2:66:8]
    image, left = top[:, 2:66:8], top[:, 68:132:8]
    assert (image == given).all()
    assert (left == np.where(np.arange(8)[:, None] < 4, given, 128)).all()


@pytest.mark.usefixtures("files")
def test_without_labels_an_edit_takes_no_class_and_strength_0_gives_the_file(lively_checkpoint):
    module = Loaded.read(lively_checkpoint).module
    same = edit_images(module, SDEdit(Path("a.png"), strength=0.0), 2, Request(DDIM(5))).x
    given = np.array(Image.open("a.png"))
    assert all((to_uint8(image[0]).numpy() == given).all() for image in same)
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
        ([*VARY, "--condition=a.png"], "leave out --condition"),
        (["RePaint", "--edit.image=a.png"], "missing: --edit.mask"),
        (["RePant"], "did you mean RePaint?"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(edit, flags, message, capsys):
    capsys.readouterr()
    with pytest.raises(SystemExit):
        edit(*flags)
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "error:" in line)
    assert message in line
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
        (RePaint, {}, {"sampler": UniPC(10)}, "use --sampler DDPM or DDIM"),
        (RePaint, {}, {"sampler": DDPM(5)}, "jump=10 of 5 steps"),
        (RePaint, {"resamplings": 0}, {}, "resamplings=0"),
        (RePaint, {"jump": 0}, {}, "jump=0"),
        (SDEdit, {}, {"guidance": 2.0}, "give labels"),
        (SDEdit, {"strength": -0.1}, {}, "between 0"),
        (SDEdit, {"strength": 1.1}, {}, "between 0"),
        (SDEdit, {"strength": float("nan")}, {}, "between 0"),
        (Interpolate, {}, {"sampler": DDPM()}, "use --sampler DDIM"),
        (Interpolate, {}, {"sampler": DDIM(9, eta=0.5)}, "with eta 0"),
        (Interpolate, {}, {"sampler": DDIM(9, clip=(-1, 1))}, "without clip"),
        (Interpolate, {}, {"variance": FixedLarge()}, "DDIM has no use for a variance"),
        (Interpolate, {}, {"labels": [1, 2]}, "one label for all"),
        (Interpolate, {}, {"labels": 1, "guidance": 2.0}, "inexact under guidance"),
        (Interpolate, {"iterations": 0}, {}, r"iterations=0"),
    ],
)
@pytest.mark.usefixtures("files")
def test_settings_and_requests_that_do_not_suit_are_refused(kind, edit, request_, message):
    module = tiny_module(schedule=SohlDickstein(), conditional=True)
    with pytest.raises(InputError, match=message):
        edit_images(module, kind(**FILES[kind] | edit), 3, Request(**request_))


@pytest.mark.parametrize(
    ("kind", "n", "parts", "message"),
    [
        (Interpolate, 1, {}, "at least its two ends"),
        (SDEdit, 3, {"data": image_spec(image_channels=1)}, "leave out --edit"),
        (SDEdit, 3, {"data": DataSpec((2,), None), "net": MLP}, "edits are of images"),
    ],
)
@pytest.mark.usefixtures("files")
def test_models_and_numbers_that_do_not_suit_are_refused(kind, n, parts, message):
    with pytest.raises(InputError, match=message):
        edit_images(tiny_module(**parts), kind(**FILES[kind]), n)
