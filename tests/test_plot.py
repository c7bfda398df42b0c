"""The didactic figures against closed forms, and the plot commands."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ddpm_lightning.diffusion.objectives import EpsMSE, MinSNR, Plain
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from ddpm_lightning.cli import main
from ddpm_lightning.data import MNIST, Digits
from ddpm_lightning.diffusion.oracles import Gaussian
from ddpm_lightning.diffusion.parameterizations import V
from ddpm_lightning.diffusion.samplers import DDIM
from ddpm_lightning.diffusion.schedules import Cosine, Linear
from ddpm_lightning.images import to_uint8
from ddpm_lightning.plots.didactic import (
    forward_walks,
    reverse_walks,
    schedule_curves,
    schedule_figure,
    walk_variance,
)
from ddpm_lightning.plots.pictures import Images
from ddpm_lightning.plots.strips import forward_strip, reverse_states
from tests.make_data import write_mnist
from tests.small import tiny_data, tiny_module, trainer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    trainer(root, 2).fit(tiny_module(schedule=Cosine(T=50)), tiny_data())
    return root / "checkpoints" / "last.ckpt"


def fail(capsys, *args: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(["plot", *args])
    assert caught.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


# -------------------------------------------------------------------------- figures


def linear_betas(T: int) -> np.ndarray:
    return np.linspace(1e-4, 0.02, 1000) if T == 1000 else np.linspace(0.1 / T, 20 / T, T)


def closed_forms(betas: np.ndarray) -> dict[str, np.ndarray]:
    """The curves in numpy float64, from the betas as DDPM writes them."""
    alpha_bar = np.cumprod(1 - betas)
    before = np.append(1.0, alpha_bar[:-1])
    snr = alpha_bar / (1 - alpha_bar)
    beta_tilde = (1 - before) / (1 - alpha_bar) * betas
    return {
        "beta": betas,
        "alpha_bar": alpha_bar,
        "snr": snr,
        "posterior_std": np.sqrt(beta_tilde),
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
    betas = linear_betas(50)
    variance = [4.0]
    for beta in betas:
        variance.append((1 - beta if scaled else 1) * variance[-1] + beta)
    np.testing.assert_allclose(walk_variance(4.0, Linear(T=50), scaled), variance, rtol=1e-9)
    x0 = 2 - 4.0 * (torch.arange(20_000) % 2)
    walks = forward_walks(x0, Linear(T=50), scaled)
    # The variance of 20,000 numbers has a standard error of at most 1 %.
    np.testing.assert_allclose(walks.square().mean(1), variance, rtol=0.04)


@pytest.mark.parametrize("factor", [0.25, 1.0, 4.0])
def test_samples_with_a_wrong_variance_have_the_variance_of_the_recursion(factor):
    schedule, data = Linear(T=50), 0.09
    oracle = Gaussian(schedule, torch.zeros(1), torch.tensor([[data]]))
    betas = linear_betas(50)
    alpha_bar = np.append(1.0, np.cumprod(1 - betas))
    variance = 1.0
    for t in range(50, 0, -1):
        now, before, beta = alpha_bar[t], alpha_bar[t - 1], betas[t - 1]
        gain = np.sqrt(now) * data / (now * data + 1 - now)  # E[x_0 | x_t] = gain·x_t
        of_x0 = np.sqrt(before) * beta / (1 - now)  # DDPM eq. 7
        of_x_t = np.sqrt(1 - beta) * (1 - before) / (1 - now)
        variance = (of_x0 * gain + of_x_t) ** 2 * variance + (t > 1) * factor * beta
    samples = reverse_walks(oracle, factor, n=20_000)[-1]
    np.testing.assert_allclose(samples.square().mean(), variance, rtol=0.04)
    assert type(oracle.variance).__name__ == "FixedSmall"  # as before


def test_a_forward_strip_begins_with_the_data_and_keeps_its_pixels():
    x0 = Digits().finished("train", 2)[0]
    strip = forward_strip(Images(), x0, Cosine(), steps=4)
    assert strip.shape == (3, 20 + 2 * 50 + 2, 5 * 50 + 2)
    first = strip[:, 22:70, 2:50]  # below the caption and the border, 48 pixels each way
    enlarged = to_uint8(x0[0]).repeat_interleave(6, 1).repeat_interleave(6, 2)
    assert torch.equal(first, enlarged.expand(3, -1, -1))


def test_the_way_back_ends_in_the_samples_of_the_module():
    module = tiny_module(schedule=Cosine(T=50))
    sampler = DDIM(6, clip=(-1.0, 1.0))
    x_t, x0, levels = reverse_states(module.denoiser(), sampler, (1, 8, 8), 3, frames=4)
    assert levels[0] == 50
    assert levels[-1] == 0
    assert x_t.shape == x0.shape == (4, 3, 1, 8, 8)
    torch.testing.assert_close(x_t[-1], module.sample(3, DDIM(6)))


# -------------------------------------------------------------------------- commands


def test_plot_commands_write_pictures(checkpoint, tmp_path):
    two = "--schedule=[Linear, Cosine]", "--weighting=MinSNR", "--parameterization=V"
    ckpt = f"--ckpt={checkpoint}"
    runs = {
        "schedule.png": (["schedule", *two], (1000, 560)),
        "own.png": (["schedule", ckpt], (1000, 560)),
        "forward.png": (["forward", "--data=Digits", "--n=3", "--steps=4"], (252, 172)),
        "from_ckpt.png": (["forward", ckpt, "--n=2", "--steps=3"], (202, 122)),
        "scaling.png": (["scaling", "--n=50"], (1000, 340)),
        "variance.png": (["variance", "--n=50", "--factors=[1, 9]"], (660, 520)),
        "new/reverse.png": (
            ["reverse", ckpt, "--sampler=DDIM", "--sampler.steps=8", "--n=2", "--frames=5"],
            (34 + 252, 20 + 202),
        ),
    }
    for name, (args, size) in runs.items():
        main(["plot", *args, f"--out={tmp_path / name}"])
        with Image.open(tmp_path / name) as image:
            assert image.format == "PNG"
            assert image.size == size, name
            assert image.convert("L").getextrema() != (255, 255)


def test_plot_reverse_writes_an_animation(checkpoint, tmp_path):
    out = tmp_path / "reverse.gif"
    flags = "--sampler=DDIM", "--sampler.steps=8", "--n=3", "--frames=5"
    main(["plot", "reverse", f"--ckpt={checkpoint}", f"--out={out}", *flags])
    with Image.open(out) as image:
        assert image.n_frames == 5
        assert image.size == (34 + 3 * 50 + 2, 20 + 2 * 50 + 2)


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    """A checkpoint of MNIST and the folder where the data is now."""
    root = tmp_path_factory.mktemp("moved")
    write_mnist(root / "before", "MNIST")
    data = MNIST(root=str(root / "before"), global_batch_size=8, held_out=20)
    trainer(root / "run", 1).fit(tiny_module(shape=[1, 28, 28]), data)
    (root / "before").rename(root / "now")
    return root / "run" / "checkpoints" / "last.ckpt", root / "now"


def test_the_data_of_a_checkpoint_may_have_moved(moved, tmp_path, capsys):
    ckpt, now = moved
    forward = ["forward", f"--ckpt={ckpt}", "--n=1", f"--out={tmp_path / 'forward.png'}"]
    assert "train-images-idx3-ubyte" in fail(capsys, *forward)
    main(["plot", *forward, f"--data.root={now}"])
    assert (tmp_path / "forward.png").exists()
    reverse = ["--sampler=DDIM", "--sampler.steps=2", "--frames=2", "--n=1"]
    out = f"--out={tmp_path / 'reverse.png'}"
    main(["plot", "reverse", f"--ckpt={ckpt}", out, f"--data.root={now}", *reverse])
    assert (tmp_path / "reverse.png").exists()


@pytest.mark.parametrize("suffix", [".png", ".gif"])
def test_strips_of_four_channels_are_shown_as_grids_are(suffix, tmp_path):
    module = tiny_module(shape=[4, 8, 8], schedule=Cosine(T=50))
    x0 = torch.rand(2, 4, 8, 8) * 2 - 1
    strip = forward_strip(Images(), x0, module.schedule, steps=2)
    assert strip.shape[0] == 4
    enlarged = to_uint8(x0[0]).repeat_interleave(6, 1).repeat_interleave(6, 2)
    assert torch.equal(strip[:, 22:70, 2:50], enlarged)
    trainer(tmp_path, 1).fit(module, DataLoader(FourChannels(), batch_size=2))
    ckpt = tmp_path / "checkpoints" / "last.ckpt"
    out = tmp_path / f"reverse{suffix}"
    flags = ["--sampler=DDIM", "--sampler.steps=3", "--n=2", "--frames=3"]
    main(["plot", "reverse", f"--ckpt={ckpt}", f"--out={out}", *flags])
    with Image.open(out) as image:
        assert image.n_frames == 3 if suffix == ".gif" else image.mode == "RGBA"


class FourChannels(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, k):
        return torch.zeros(4, 8, 8), 0


def test_points_are_plotted_too(tmp_path):
    out = tmp_path / "moons.png"
    data = "--data=Toy2D", "--data.kind=moons", "--n=200", "--steps=3"
    main(["plot", "forward", f"--out={out}", *data])
    with Image.open(out) as image:
        assert image.size == (4 * 160, 20 + 160)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["schedul"], "no command 'schedul'; did you mean schedule?"),
        ([], "which command? One of schedule, forward, reverse, scaling, variance"),
        (["schedule", "--schedul=Cosine", "--out=a.png"], "did you mean --schedule?"),
        (["schedule", "--schedule=Cosin", "--out=a.png"], "did you mean Cosine?"),
        (["schedule"], "missing: --out"),
        (["schedule", "--out=a.jpg"], "a.jpg: name a file that ends in .png"),
        (["forward", "--out=a.png"], "which data?"),
        (["forward", "--data=Digits", "--steps=0", "--out=a.png"], "steps=0"),
        (["variance", "--factors=[-1]", "--out=a.png"], "give some of 0 or more"),
        (["reverse", "--ckpt=x", "--fps=0.001", "--out=a.gif"], "0.002 to 50"),
        (["scaling", f"--seed={2**64}", "--out=a.png"], "below 2**64"),
        (["forward", "--data.root=x", "--out=a.png"], "which data?"),
        (["forward", "--data.rot=x", "--out=a.png"], "did you mean root?"),
        (["forward", "--data=Digit", "--out=a.png"], "did you mean Digits?"),
    ],
)
def test_mistakes_are_one_line(args, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said in fail(capsys, *args)
    assert not list(tmp_path.iterdir())


def test_a_picture_is_never_written_over(capsys, tmp_path):
    out = tmp_path / "a.png"
    out.write_text("precious")
    assert "exists already" in fail(capsys, "schedule", f"--out={out}")
    assert "a.png is a file; choose another folder" in fail(
        capsys, "schedule", f"--out={out}/b.png"
    )
    assert out.read_text() == "precious"


def test_help_tells_subcommands_and_flags(capsys):
    for args, said in (
        (["--help"], "Draw real data becoming noise"),
        (["schedule", "--help"], ""),
    ):
        with pytest.raises(SystemExit) as caught:
            main(["plot", *args])
        assert caught.value.code == 0
        out = capsys.readouterr().out
        assert said in out
    assert "--weighting" in out
