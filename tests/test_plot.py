"""The didactic figures against closed forms, and the plot commands."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from ddpm_lightning.batch import Batch, Condition
from ddpm_lightning.cli import main
from ddpm_lightning.data import MNIST, Digits
from ddpm_lightning.diffusion import Cosine, EpsMSE, FixedSmall, Linear, MinSNR, Plain, V
from ddpm_lightning.diffusion.oracles import Gaussian
from ddpm_lightning.images import to_uint8
from ddpm_lightning.plots.didactic import (
    forward_walks,
    reverse_walks,
    schedule_curves,
    schedule_figure,
    walk_variance,
)
from ddpm_lightning.plots.pictures import Images
from ddpm_lightning.plots.strips import forward_strip
from ddpm_lightning.randomness import IndexedNoise
from tests.make_data import write_mnist
from tests.small import fail, frames_in, image_spec, tiny_module, trainer

FEW = "--sampler=DDIM", "--sampler.steps=8"

# -------------------------------------------------------------------------- figures


def linear_betas(T: int) -> np.ndarray:
    return np.linspace(1e-4, 0.02, 1000) if T == 1000 else np.linspace(0.1 / T, 20 / T, T)


def closed_forms(betas: np.ndarray) -> dict[str, np.ndarray]:
    """The curves in numpy float64, from the betas as DDPM writes them."""
    alpha_bar = np.cumprod(1 - betas)
    before = np.append(1.0, alpha_bar[:-1])
    return {
        "beta": betas,
        "alpha_bar": alpha_bar,
        "snr": alpha_bar / (1 - alpha_bar),
        "posterior_std": np.sqrt((1 - before) / (1 - alpha_bar) * betas),
    }


def test_schedule_curves_are_the_papers():
    expected = closed_forms(linear_betas(1000))
    curves = schedule_curves(Linear(), MinSNR(gamma=5.0), V())
    for name, values in expected.items():
        np.testing.assert_allclose(curves[name], values, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(curves["weight"], np.minimum(expected["snr"], 5), rtol=1e-9)


def test_the_weight_of_a_plain_loss_follows_from_what_the_network_predicts():
    snr = closed_forms(linear_betas(1000))["snr"]
    # v: ‖v − v_hat‖² = (1 + SNR)·‖x_0 − x0_hat‖² (Salimans & Ho 2022, sec. 4).
    np.testing.assert_allclose(schedule_curves(Linear(), Plain(), V())["weight"], 1 + snr, 1e-9)
    np.testing.assert_allclose(schedule_curves(Linear(), EpsMSE(), V())["weight"], snr, 1e-9)


def test_schedule_figure_draws_these_numbers():
    figure = schedule_figure({"Linear": Linear(T=100), "Cosine": Cosine(T=50)})
    expected = closed_forms(linear_betas(100))
    expected["posterior_std"][0] = np.nan  # 0 has no place on a log scale
    for axes, values in zip(figure.axes, expected.values(), strict=False):
        assert len(axes.lines) == 2
        t, y = axes.lines[0].get_data()
        np.testing.assert_allclose(t, np.arange(1, 101) / 100, rtol=1e-6)
        np.testing.assert_allclose(y, values, rtol=1e-9)
    legend = figure.axes[-1].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["Linear", "Cosine"]


@pytest.mark.parametrize("scaled", [False, True])
def test_noised_numbers_have_the_variance_of_the_recursion(scaled):
    variance = [4.0]
    for beta in linear_betas(50):
        variance.append((1 - beta if scaled else 1) * variance[-1] + beta)
    np.testing.assert_allclose(walk_variance(4.0, Linear(T=50), scaled), variance, rtol=1e-9)
    x0 = 2 - 4.0 * (torch.arange(20_000) % 2)
    walks = forward_walks(x0, Linear(T=50), scaled)
    # The variance of 20,000 numbers has a standard error of at most 1 %.
    np.testing.assert_allclose(walks.square().mean(1), variance, rtol=0.04)


@pytest.mark.slow
@pytest.mark.parametrize("factor", [0.25, 1.0, 4.0])
def test_samples_with_a_wrong_variance_have_the_variance_of_the_recursion(factor):
    data, betas = 0.09, linear_betas(50)
    oracle = Gaussian(Linear(T=50), torch.zeros(1), torch.tensor([[data]]))
    alpha_bar = np.append(1.0, np.cumprod(1 - betas))
    variance = 1.0
    for t in range(50, 0, -1):
        now, before, beta = alpha_bar[t], alpha_bar[t - 1], betas[t - 1]
        gain = np.sqrt(now) * data / (now * data + 1 - now)  # E[x_0 | x_t] = gain·x_t
        of_x0 = np.sqrt(before) * beta / (1 - now)  # DDPM eq. 7
        of_x_t = np.sqrt(1 - beta) * (1 - before) / (1 - now)
        variance = (of_x0 * gain + of_x_t) ** 2 * variance + (t > 1) * factor * beta
    samples = reverse_walks(oracle, factor, n=6000)[-1]  # a standard error of 2 %
    np.testing.assert_allclose(samples.square().mean(), variance, rtol=0.07)
    assert isinstance(oracle.variance, FixedSmall)  # as before


@pytest.mark.parametrize("channels", [1, 4])
def test_a_forward_strip_begins_with_the_data_and_keeps_its_pixels(channels):
    x0 = Digits().finished("train", 2 * channels).x0.view(2, channels, 8, 8)
    strip = forward_strip(Images(), x0, Cosine(), range(0, 1001, 250))
    colours = max(3, channels)
    assert strip.shape == (colours, 20 + 2 * 50 + 2, 5 * 50 + 2)
    first = strip[:, 22:70, 2:50]  # below the caption and the border, 48 pixels each way
    enlarged = to_uint8(x0[0]).repeat_interleave(6, 1).repeat_interleave(6, 2)
    assert torch.equal(first, enlarged.expand(colours, -1, -1))
    assert channels < 4 or bool((strip[3, :20] == 255).all())  # the caption is opaque


# -------------------------------------------------------------------------- commands


def plot(*args: str, out) -> Image.Image:
    main(["plot", *args, f"--out={out}"])
    return Image.open(out)


@pytest.mark.parametrize(
    ("args", "size"),
    [
        (["schedule", "--schedule=[Linear, Cosine]", "--weighting=MinSNR"], (1000, 560)),
        (["forward", "--data=Digits", "--n=3", "--levels=4"], (5 * 50 + 2, 20 + 3 * 50 + 2)),
        (["forward", "--data=Toy2D", "--n=200", "--levels=3"], (4 * 160, 20 + 160)),
        (["scaling", "--n=50"], (1000, 340)),
        (["variance", "--n=50", "--factors=[1, 9]"], (660, 520)),
        (["reverse", "CKPT", *FEW, "--n=2", "--frames=5"], (34 + 5 * 50 + 2, 20 + 4 * 50 + 2)),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_plot_commands_write_pictures(args, size, lively_checkpoint, tmp_path):
    args = [arg.replace("CKPT", f"--ckpt={lively_checkpoint}") for arg in args]
    with plot(*args, out=tmp_path / "new" / "picture.png") as image:
        assert (image.format, image.size) == ("PNG", size)
        assert image.convert("L").getextrema() != (255, 255)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "stated"),
    [
        (["schedule"], ["--weighting=MinSNR", "--parameterization=V"]),
        (["forward", "--n=2", "--levels=3"], ["--data=Digits", "--data.subset=64"]),
    ],
)
def test_a_checkpoint_gives_the_parts_that_are_not_stated(
    command, stated, lively_checkpoint, tmp_path
):
    ckpt = f"--ckpt={lively_checkpoint}"
    own, same, other, mixed = (
        plot(*command, *flags, out=tmp_path / f"{k}.png").tobytes()
        for k, flags in enumerate(
            ([ckpt], [*stated, "--schedule=SohlDickstein"], stated, [ckpt, "--schedule=Linear"])
        )
    )
    assert own == same != other == mixed


def test_plot_reverse_goes_from_noise_to_the_samples_of_the_sample_command(
    lively_checkpoint, tmp_path
):
    flags = f"--ckpt={lively_checkpoint}", *FEW, "--labels=[3,4]", "--guidance=2", "--n=2"
    main(["sample", *flags, f"--out={tmp_path / 'samples'}"])
    strip = np.array(plot("reverse", *flags, "--frames=3", out=tmp_path / "strip.png"))
    noise = to_uint8(IndexedNoise(0, torch.arange(2))(0, (8, 8))).numpy()
    for k in range(2):  # x_t above x0_hat, which at the end is the sample, too
        sample = np.array(Image.open(tmp_path / "samples" / f"00000{k}.png"))
        places = ((2 * k, 0, noise[k]), (2 * k, 2, sample), (2 * k + 1, 2, sample))
        for row, column, image in places:
            top, left = 20 + 50 * row + 2, 34 + 50 * column + 2
            shown = strip[top : top + 48 : 6, left : left + 48 : 6]
            assert (shown == image[..., None]).all()


def fit_zeros(folder, spec, condition=Condition()) -> str:
    """Train on four zeros; gives the flag that names the checkpoint."""
    batch = Batch(torch.zeros(4, *spec.shape), condition, torch.arange(4), torch.arange(4))
    trainer(folder, 1).fit(tiny_module(data=spec), DataLoader([batch], batch_size=None))
    return f"--ckpt={folder / 'checkpoints' / 'last.ckpt'}"


@pytest.mark.slow
def test_a_model_that_is_given_images_is_left_to_sample(tmp_path, capsys):
    given = Condition(image=torch.zeros(4, 1, 8, 8))
    ckpt = fit_zeros(tmp_path, image_spec(image_channels=1), given)
    assert "sample --grid.frames" in fail(
        capsys, "plot", "reverse", ckpt, f"--out={tmp_path / 'a.png'}"
    )


@pytest.mark.slow
def test_images_of_four_channels_are_shown_as_grids_are(tmp_path):
    flags = fit_zeros(tmp_path, image_spec(4)), *FEW, "--n=2", "--frames=3"
    with plot("reverse", *flags, out=tmp_path / "reverse.png") as image:
        assert image.mode == "RGBA"
    out = tmp_path / "reverse.gif"
    with plot("reverse", *flags, out=out) as image:
        assert (frames_in(out), image.size) == (3, (34 + 2 * 50 + 2, 20 + 2 * 50 + 2))


@pytest.mark.slow
def test_the_data_of_a_checkpoint_may_have_moved(tmp_path, capsys):
    before, now = tmp_path / "before", tmp_path / "now"
    write_mnist(before, "MNIST")
    data = MNIST(root=str(before), global_batch_size=8, held_out=20)
    trainer(tmp_path / "run", 1).fit(tiny_module(data=image_spec(size=28)), data)
    before.rename(now)
    ckpt = f"--ckpt={tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}"
    out = tmp_path / "forward.png"
    assert "train-images-idx3-ubyte" in fail(
        capsys, "plot", "forward", ckpt, "--n=1", f"--out={out}"
    )
    plot("forward", ckpt, "--n=1", f"--data.root={now}", out=out)
    few = *FEW, "--frames=2", "--n=1", f"--data.root={now}"
    plot("reverse", ckpt, *few, out=tmp_path / "reverse.png")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "which command? One of loss, schedule, forward, reverse, marginals, scaling,"),
        (["schedule", "--out=a.jpg"], "a.jpg: name a file that ends in .png"),
        (["scaling", f"--seed={2**64}", "--out=a.png"], "below 2**64"),
        (["forward", "--data.root=x", "--out=a.png"], "which data?"),
    ],
)
def test_mistakes_are_one_line(args, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in fail(capsys, "plot", *args)
    assert not list(tmp_path.iterdir())


def test_a_picture_is_never_written_over(capsys, tmp_path):
    out = tmp_path / "a.png"
    out.write_text("precious")
    assert "exists already" in fail(capsys, "plot", "schedule", f"--out={out}")
    message = "a.png is a file; choose another folder"
    assert message in fail(capsys, "plot", "schedule", f"--out={out}/b.png")
    assert out.read_text() == "precious"


def test_a_cloud_of_points_is_drawn_with_many_unless_told_otherwise(tmp_path, capsys):
    flags = ["--data", "Toy2D", "--data.kind", "moons", "--levels", "2"]
    main(["plot", "forward", *flags, "--out", str(tmp_path / "a.png")])
    assert "3000 samples of Toy2D" in capsys.readouterr().out


def test_a_hint_does_not_end_at_the_authors_of_a_paper(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--config", "configs/digits.yaml", "--model.net.block", "resnet"])
    assert "(Liu et al. 2022)" in " ".join(capsys.readouterr().err.split())
