"""Figures of tutorials, against closed forms: p(z) → p(x), fixed noise, pictures, marginals."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import norm
from torchvision import transforms

from ddpm_lightning.callbacks import Marginals
from ddpm_lightning.cli import main
from ddpm_lightning.codecs import Haar
from ddpm_lightning.commands.shown_data import levels_of, picture_at
from ddpm_lightning.data import Digits, Toy2D
from ddpm_lightning.diffusion import SohlDickstein
from ddpm_lightning.errors import InputError
from ddpm_lightning.images import to_uint8
from ddpm_lightning.networks import PerStepMLP
from ddpm_lightning.plots.didactic import two_peaks
from ddpm_lightning.plots.fixed_noise import fixed_schedule, fixed_strips
from ddpm_lightning.plots.mapping import carried, gaussian_figure, ring
from ddpm_lightning.plots.strips import noised
from tests.small import TinyUNet, fail, fit, image_spec, tiny_module

# ------------------------------------------------------------------------ p(z) → p(x)


def test_a_normal_is_carried_to_the_data_by_their_distribution_functions():
    # On a line paths cannot cross, so a share of p(z) lands on the same share of p(x).
    z = torch.linspace(-2.5, 2.5, 41, dtype=torch.float64)
    x = carried(two_peaks(), z[:, None])[-1, :, 0].numpy()
    below = norm.cdf(x, -1, 0.15) / 3 + norm.cdf(x, 1, 0.15) * 2 / 3
    np.testing.assert_allclose(below, norm.cdf(z), atol=0.015)


def test_in_the_plane_each_eighth_of_the_noise_lands_on_one_gaussian():
    z = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    x = carried(ring(), z)[-1]
    angle = torch.atan2(x[:, 1], x[:, 0]) / (2 * torch.pi / 8)
    assert float((x.norm(dim=1) - 1).abs().max()) < 0.6  # of deviation 0.1
    shares = (angle.round().long() % 8).bincount() / 4000
    np.testing.assert_allclose(shares, 1 / 8, atol=4 * (7 / 64 / 4000) ** 0.5)


@pytest.mark.slow
def test_a_gaussian_is_learned_as_the_mean_and_deviation_of_its_data(tmp_path, capsys):
    figure, learned = gaussian_figure(-1.0, 0.25, n=4000)
    assert learned.mean == pytest.approx(-1.0, abs=4 * 0.25 / 4000**0.5)
    assert learned.deviation == pytest.approx(0.25, abs=4 * 0.25 / 8000**0.5)
    # The line of the last panel is the true density.
    x, density = figure.axes[2].lines[0].get_data()
    np.testing.assert_allclose(density, norm.pdf(x, -1.0, 0.25), rtol=1e-4, atol=1e-20)
    main(
        [
            "plot",
            "gaussian",
            "--n=4000",
            "--mean=-1",
            "--deviation=0.25",
            f"--out={tmp_path}/a.png",
        ]
    )
    assert f"mean {learned.mean:.4f}, deviation {learned.deviation:.4f}" in capsys.readouterr().out


# ------------------------------------------------------------------------ fixed noise


@pytest.mark.parametrize("scaled", [False, True])
def test_fixed_noise_has_the_levels_of_the_recursion(scaled):
    schedule, factor = fixed_schedule(0.04, 50, scaled), 0.96 if scaled else 1.0
    alpha2, sigma2 = [1.0], [0.0]
    for _ in range(50):
        alpha2.append(factor * alpha2[-1])
        sigma2.append(factor * sigma2[-1] + 0.04)
    np.testing.assert_allclose(schedule.alpha**2, alpha2, rtol=1e-12)
    np.testing.assert_allclose(schedule.sigma**2, sigma2, rtol=1e-12)


def test_without_scaling_the_variance_grows_by_that_of_a_step_and_with_it_stays():
    images = Digits().finished("train", 400).x0
    grows, kept = fixed_strips(images, [0.01], [0, 100, 1000])
    assert (grows.scaled, kept.scaled) == (False, True)
    assert grows.exact == pytest.approx([1, 2, 11])
    assert kept.exact == pytest.approx([1, 1, 1])
    # Of 25,600 pixels; those of an image are not independent, so wide.
    assert grows.measured == pytest.approx([1, 2, 11], rel=0.04)
    assert kept.measured == pytest.approx([1, 1, 1], rel=0.04)
    torch.testing.assert_close(grows.x_t[0], images[0])
    assert grows.x_t[2].abs().max() > 4 > 3 > kept.x_t[2].abs().max()


def test_the_command_prints_the_variances(tmp_path, capsys):
    flags = "--data=Digits", "--variance=[0.25]", "--levels=[0, 4]", "--T=4"
    main(["plot", "fixed_noise", *flags, f"--out={tmp_path / 'a.png'}"])
    first, numbers, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("σ² = 0.25, x + σε")
    assert numbers.startswith("  t=0: 1 (1), t=4: 2 (")
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (250, 350)


# --------------------------------------------------------------- levels and pictures


@pytest.fixture
def photo(tmp_path):
    """A smooth picture of 300×200 pixels as a PNG."""
    x, y = np.meshgrid(np.linspace(0, 3, 300), np.linspace(0, 2, 200))
    pixels = np.stack([np.sin(3 * x), np.cos(5 * y), np.sin(x * y)], axis=2)
    path = tmp_path / "photo.png"
    Image.fromarray((127.5 * (pixels + 1)).astype(np.uint8)).save(path)
    return path


def test_a_picture_is_resized_and_cut_as_torchvision_does(photo):
    expected = transforms.Compose([transforms.Resize(128), transforms.CenterCrop(128)])
    with Image.open(photo) as image:
        pixels = np.asarray(expected(image), dtype=np.int64)
    ours = to_uint8(picture_at(photo))[0].permute(1, 2, 0).long().numpy()
    # Half a pixel of the original apart, where the longer side is cut before or after.
    assert np.abs(ours - pixels).mean() < 2


def test_a_picture_is_noised_at_the_levels_asked_for(photo, tmp_path):
    levels = "--schedule=Linear", "--schedule.T=200", "--levels=[0, 50, 100, 150, 199]"
    main(["plot", "forward", f"--image={photo}", *levels, f"--out={tmp_path / 'strip.png'}"])
    strip = np.asarray(Image.open(tmp_path / "strip.png").convert("RGB"))
    assert strip.shape == (20 + 132, 5 * 130 + 2, 3)
    clean = to_uint8(picture_at(photo))[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(strip[22:150, 2:130], clean)


def test_levels_are_evenly_spread_or_those_of_a_list():
    assert levels_of(4, 1000) == [0, 250, 500, 750, 1000]
    assert levels_of([999, 50], 1000) == [999, 50]


# -------------------------------------------------------------------------- marginals


@pytest.mark.slow
def test_marginals_stand_data_above_samples_of_the_sample_command(lively_checkpoint, tmp_path):
    few = "--sampler=DDIM", "--sampler.steps=4", "--n=2"
    ckpt = f"--ckpt={lively_checkpoint}"
    main(["sample", ckpt, *few, f"--out={tmp_path / 'samples'}"])
    main(["plot", "marginals", ckpt, *few, f"--out={tmp_path / 'a.png'}"])
    picture = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    data = to_uint8(Digits(subset=64).finished("train", 2).x0).numpy()
    samples = [np.asarray(Image.open(tmp_path / f"samples/00000{k}.png")) for k in (0, 1)]
    for row, image in enumerate([data[0, 0], data[1, 0], *samples]):
        top = 22 + 50 * row
        shown = picture[top : top + 48 : 6, 36 : 36 + 48 : 6]
        np.testing.assert_array_equal(shown, np.repeat(image[..., None], 3, -1))


@pytest.mark.slow
def test_training_draws_the_marginals_that_the_command_draws(tmp_path):
    callback = Marginals(every_n_steps=10, n=30, weights="raw")
    data = Toy2D(n=64, global_batch_size=16, noise=0.0)
    net = {"net": lambda *args: PerStepMLP(*args, width=4), "schedule": SohlDickstein()}
    fit(tmp_path, 2, callback, data=data, **net)
    (drawn,) = (tmp_path / "marginals").iterdir()
    ckpt = f"--ckpt={tmp_path / 'checkpoints' / 'last.ckpt'}"
    main(["plot", "marginals", ckpt, "--n=30", "--weights=raw", f"--out={tmp_path / 'a.png'}"])
    assert drawn.name == "step_00000002.png"
    with Image.open(drawn) as ours, Image.open(tmp_path / "a.png") as theirs:
        assert ours.size == (75 + 3 * 360, 780)
        assert ours.tobytes() == theirs.tobytes()


def test_data_of_latents_is_noised_in_latents():
    net = partial(TinyUNet, multipliers=[1], attention_levels=[])
    module = tiny_module(data=image_spec(), codec=Haar(), net=net)
    module.codec.shift.copy_(torch.tensor([0.4, -0.2, 0.1, 0.0]))
    module.codec.scale.fill_(0.5)
    batch = Digits().finished("train", 200)
    clean, x_t = noised(module, batch, [0, 300])
    torch.testing.assert_close(clean, batch.x0)
    level = module.schedule.level(300)
    left = module.codec.encode(x_t) - level.alpha * module.codec.encode(batch.x0)
    # 12,800 independent numbers: a standard error below 1 %.
    assert float(left.mean()) == pytest.approx(0, abs=0.04 * level.sigma)
    assert float(left.std()) == pytest.approx(level.sigma, rel=0.04)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["forward", "--data=Digits", "--levels=[0, 1001]"], "level 1001: the levels are 0…1000"),
        (["forward", "--data=Digits", "--image=a.jpg"], "leave out --data or --image"),
        (["forward", "--image=a.jpg"], "no image at a.jpg"),
        (["forward", "--image=text.jpg"], "text.jpg: no PNG"),
        (["fixed_noise", "--data=Digits", "--variance=[1.5]"], "give numbers below 1"),
        (["fixed_noise", "--data=Toy2D"], "Toy2D has no images"),
        (["fixed_noise", "--data=Digits", "--levels=2000"], "a figure shows 50 at most"),
        (["fixed_noise", "--data=Digits", "--levels=20", "--T=5"], "give --levels 5 or fewer"),
        (["fixed_noise", "--data=Digits", "--T=1000000000"], "give 100000 steps or fewer"),
        (["gaussian", "--deviation=0"], "give a number above 0"),
        (["gaussian", "--deviation=1e-9"], "float32 does not resolve"),
        (["gaussian", "--mean=1e30"], "float32 does not resolve"),
    ],
)
def test_mistakes_are_one_line(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.jpg").write_text("no picture")
    assert message in fail(capsys, "plot", *words, "--out=a.png")
    assert not (tmp_path / "a.png").exists()


def test_fixed_noise_tells_of_no_checkpoint_because_it_takes_none(capsys, tmp_path):
    line = fail(capsys, "plot", "fixed_noise", f"--out={tmp_path / 'a.png'}")
    assert line.endswith("--data Digits, or --image FILE")


def test_marginals_have_two_columns_at_least():
    with pytest.raises(InputError, match="columns=1"):
        Marginals(columns=1)
