"""Points in the plane, end to end: data, network, distances, pictures, and the commands."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import kstest, wasserstein_distance

from ddpm_lightning import DiffusionModule
from ddpm_lightning.batch import DataSpec
from ddpm_lightning.callbacks import SampleGrid
from ddpm_lightning.cli import main
from ddpm_lightning.configurable import build
from ddpm_lightning.data import Toy2D
from ddpm_lightning.diffusion import Cosine, V
from ddpm_lightning.diffusion.samplers import DDIM
from ddpm_lightning.errors import InputError
from ddpm_lightning.metrics import mmd, sliced_wasserstein
from ddpm_lightning.networks import MLP
from ddpm_lightning.plots.pictures import Scatter, pictures_of
from tests.small import events, frames_in, labels, lively, logging_trainer, trainer

KINDS = {"swiss_roll": None, "moons": 2, "mixture": 8, "checkerboard": None}


def points(kind: str, split: str = "train", **arguments) -> tuple[np.ndarray, np.ndarray]:
    x, y = Toy2D(kind, **arguments).samples(split)
    return x.double().numpy(), y.numpy()


# ------------------------------------------------------------------------------ data


@pytest.mark.parametrize(("kind", "classes"), KINDS.items())
def test_a_split_is_n_labelled_points_of_its_seed_and_rebuilt_from_a_description(kind, classes):
    data = Toy2D(kind, n=200, seed=4)
    x, y = data.samples("val")
    assert (x.dtype, x.shape, data.shape) == (torch.float32, (200, 2), (2,))
    assert (y.dtype, y.shape, data.num_classes) == (torch.int64, (200,), classes)
    draws = [x, data.samples("train")[0], data.samples("test")[0]]
    draws.append(Toy2D(kind, n=200, seed=5).samples("train")[0])
    assert len(torch.cat(draws).unique(dim=0)) == 800
    torch.manual_seed(1)
    np.random.seed(1)
    assert torch.equal(build(data.describe()).samples("test")[0], draws[2])


def test_the_swiss_roll_lies_on_its_spiral_but_for_noise_in_the_units_of_the_points():
    x, _ = points("swiss_roll", n=500, noise=0.0)
    turn = 10 * np.hypot(x[:, 0], x[:, 1])  # scikit-learn's parameter, which is the radius
    assert turn.min() >= 1.5 * np.pi - 1e-5
    assert turn.max() <= 4.5 * np.pi + 1e-5
    spiral = turn[:, None] * np.stack([np.cos(turn), np.sin(turn)], axis=1) / 10
    assert np.abs(x - spiral).max() < 1e-5
    assert (points("swiss_roll", n=500)[0] - x).std() == pytest.approx(0.05, rel=0.1)


def test_moons_are_half_circles_told_apart_by_their_labels():
    x, y = points("moons", n=500, noise=0.0)
    centres = np.array([[-0.5, -0.25], [0.5, 0.25]])[y]
    assert np.abs(np.hypot(*(x - centres).T) - 1).max() < 1e-6
    assert ((x - centres)[:, 1] * np.where(y == 0, 1, -1)).min() > -1e-6
    assert np.bincount(y).tolist() == [250, 250]


def test_the_mixture_is_normal_around_the_centre_of_each_class():
    x, y = points("mixture", n=4000, noise=0.1)
    angle = y * math.pi / 4
    residual = (x - np.stack([np.cos(angle), np.sin(angle)], axis=1)) / 0.1
    assert kstest(residual.ravel(), "norm").pvalue > 1e-3
    assert np.bincount(y).min() > 400


def test_the_checkerboard_is_uniform_on_every_other_square():
    x, _ = points("checkerboard", n=8000)
    assert np.abs(x).max() <= 1
    column, row = np.floor((x + 1) * 2).astype(int).T
    assert np.all((column + row) % 2 == 0)
    counts = np.bincount(4 * column + row, minlength=16)
    assert counts[counts > 0].min() > 850
    assert (counts > 0).sum() == 8
    assert kstest(((x + 1) * 2 % 1).ravel(), "uniform").pvalue > 1e-3


# --------------------------------------------------------------------------- network

POINTS = DataSpec((2,), None)


def random_mlp(**arguments) -> MLP:
    torch.manual_seed(0)
    spec = replace(POINTS, num_classes=3)
    net = MLP(**{"data": spec, "out_channels": 4, "width": 16, "depth": 2} | arguments)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return net


def test_the_mlp_starts_from_zero_and_its_every_parameter_gets_a_gradient():
    c_noise = torch.tensor([0.0, 1.0, 20.0, 39.0])
    net = MLP(POINTS, 4)
    assert torch.equal(net(torch.randn(4, 2), c_noise), torch.zeros(4, 4))
    net = random_mlp()
    net(torch.randn(4, 2), c_noise, labels(0, 1, 2, -1)).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad.view(len(parameter), -1).any(dim=1).all(), name  # every row


def test_the_mlp_hears_point_level_and_label():
    net = random_mlp().eval()
    x, c = torch.tensor([[0.3, -0.2]]), torch.tensor([5.0])
    reference = net(x, c, labels(1))
    others = net(x + 0.1, c, labels(1)), net(x, c + 1, labels(1)), net(x, c, labels(2)), net(x, c)
    assert not any(torch.allclose(reference, other) for other in others)


def test_rows_of_the_mlp_do_not_mix_and_dropout_acts_in_training_alone():
    net, x, c = random_mlp(dropout=0.5), torch.randn(5, 2), torch.arange(5.0)
    assert not torch.equal(net(x, c), net(x, c))
    net.eval()
    assert torch.equal(net(x, c), net(x, c))
    assert torch.allclose(net(x, c)[2:3], net(x[2:3], c[2:3]), atol=1e-6)


# ------------------------------------------------------------------------- distances


def two_clouds(n: int = 60, d: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(2, n, d, generator=generator, dtype=torch.float64)
    return x, 1.5 * y + 0.3


def test_sliced_wasserstein_is_scipys_distance_averaged_over_all_directions():
    x, y = two_clouds()
    angles = np.linspace(0, np.pi, 2000, endpoint=False)
    directions = ([np.cos(angle), np.sin(angle)] for angle in angles)
    distances = [wasserstein_distance(x.numpy() @ way, y.numpy() @ way) for way in directions]
    ours = sliced_wasserstein(x, y, projections=20_000)
    assert ours == pytest.approx(np.mean(distances), rel=0.01)
    x = two_clouds(d=3)[0]  # a shift by (3, 4, 0) is 5 long, and a cosine 1/2 on average
    shifted = x + torch.tensor([3.0, 4.0, 0.0])
    assert sliced_wasserstein(x, shifted, projections=20_000) == pytest.approx(2.5, rel=0.01)


def test_sliced_wasserstein_depends_on_its_seed_alone():
    x, y = two_clouds()
    torch.manual_seed(0)
    first = sliced_wasserstein(x, y, projections=8)
    torch.manual_seed(1)
    assert sliced_wasserstein(x.flip(0), y, projections=8) == pytest.approx(first, rel=1e-12)
    assert sliced_wasserstein(x, y, projections=8, seed=1) != pytest.approx(first, rel=1e-6)


def test_mmd_is_the_sum_over_pairs():
    x, y = (cloud.numpy() for cloud in two_clouds(n=12))
    y = y[:9]

    def kernel(a, b):
        return np.mean([np.exp(-((a - b) ** 2).sum() / (2 * h**2)) for h in (0.2, 1.0)])

    within_x = np.mean([kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
    within_y = np.mean([kernel(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
    between = np.mean([kernel(a, b) for a in x for b in y])
    measured = mmd(torch.from_numpy(x), torch.from_numpy(y), bandwidths=[0.2, 1.0])
    assert measured == pytest.approx(within_x + within_y - 2 * between, abs=1e-12)


# -------------------------------------------------------------------------- pictures


def blue(picture: torch.Tensor) -> torch.Tensor:
    """Where a picture [3, H, W] is blue, as samples are: bool [H, W]."""
    red, _, blue = picture.int()
    return blue - red > 60


def shows_samples_and_data(file: Path) -> bool:
    """Whether a file has blue points, and grey ones behind."""
    picture = torch.tensor(np.asarray(Image.open(file))).permute(2, 0, 1)
    grey = (picture == picture[0]).all(0) & (picture[0] > 150) & (picture[0] < 230)
    return bool(blue(picture).any() and grey.any())


def test_a_scatter_plot_shows_a_point_where_it_is():
    square = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [1.0, -1.0], [-1.0, 1.0]])
    scatter = Scatter(square)
    drawn = blue(scatter.together(torch.tensor([[0.9, 0.9]])))
    row, column = (where.float().mean() for where in drawn.nonzero(as_tuple=True))
    assert drawn.any()
    assert row < drawn.shape[0] / 4  # up
    assert column > 3 * drawn.shape[1] / 4  # right


def test_axes_stay_where_the_data_put_them():
    scatter = Scatter(torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))
    inside = torch.tensor([[0.0, 0.0]])
    far = torch.tensor([[0.0, 0.0], [50.0, 50.0]])
    assert torch.equal(scatter.together(inside), scatter.together(far))
    in_one_place = torch.ones(5, 2)
    assert blue(Scatter(in_one_place).together(in_one_place)).any()


# -------------------------------------------------------------------------- sampling


def toy_module(data: Toy2D, **arguments) -> DiffusionModule:
    net = partial(MLP, width=16, depth=1)
    return DiffusionModule(data.spec, net, Cosine(), V(), **arguments)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """Of a two-step conditional run."""
    root, data = tmp_path_factory.mktemp("toy"), Toy2D("moons", n=100, global_batch_size=8)
    trainer(root, 2).fit(lively(toy_module(data, conditional=True)), data)
    return root / "checkpoints" / "last.ckpt"


def test_sample_grid_draws_points_of_classes_in_turns_as_scatter_plots(tmp_path, requests):
    data, grid = Toy2D("mixture", n=200), SampleGrid(n=30, sampler=DDIM(4), frames=3)
    logging_trainer(tmp_path, 2, [grid]).fit(toy_module(data, conditional=True), data)
    assert [request.labels for request, _ in requests] == [None]
    name = "ddim4_ema_step_00000002"
    assert shows_samples_and_data(tmp_path / "samples" / f"{name}.png")
    assert frames_in(tmp_path / "samples" / f"{name}.gif") == 3
    strip = Image.open(tmp_path / "samples" / "ddim4_ema_denoising_step_00000002.png")
    assert strip.size == (3 * 160, 20 + 18 + 160)  # a caption, and t over the columns
    tags = events(tmp_path).Tags()["images"]
    assert set(tags) == {f"samples/ddim4_ema{what}" for what in ("", "_denoising", "_animated")}


def test_sample_writes_points_and_a_scatter_plot(checkpoint, tmp_path):
    out = tmp_path / "out"
    args = "--sampler=DDIM", "--sampler.steps=3", "--n=7", "--grid.frames=3", "--guidance=2"
    main(["sample", "--ckpt", str(checkpoint), "--out", str(out), *args])
    names = {"config.yaml", "samples.json", "samples.npy", "scatter.png", "trajectory.gif"}
    assert {p.name for p in out.iterdir()} == names
    assert shows_samples_and_data(out / "scatter.png")
    x = np.load(out / "samples.npy")
    assert (x.dtype, x.shape) == (np.float32, (7, 2))
    module = DiffusionModule.load_from_checkpoint(checkpoint)
    in_turns = module.sample(7, DDIM(3), labels=[0, 1], guidance=2.0)
    assert np.array_equal(x, in_turns.numpy())
    assert frames_in(out / "trajectory.gif") == 3


def test_points_are_trained_from_the_command_line_and_the_network_for_images_refused(
    tmp_path, capsys
):
    flags = {
        "data": "Toy2D",
        "data.n": 100,
        "trainer.default_root_dir": tmp_path,
        "trainer.max_steps": 2,
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
        "trainer.enable_model_summary": "false",
    }
    words = [f"--{name}={value}" for name, value in flags.items()]
    with pytest.raises(SystemExit):
        main(["fit", *words])
    assert "--model.net MLP" in capsys.readouterr().err
    main(["fit", *words, "--model.net=MLP", "--model.parameterization=V"])
    assert (tmp_path / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Toy2D(seed=-1), "give 0 or more"),
        (lambda: random_mlp()(torch.zeros(1, 1, 8, 8), torch.zeros(1)), "--model.net UNet"),
        (lambda: random_mlp()(torch.zeros(1, 3), torch.zeros(1)), "built for 2 channels, not 3"),
        (lambda: MLP(POINTS, 2, width=5), "MLP"),
        (lambda: pictures_of((3,)), "cannot be drawn"),
        (lambda: pictures_of((2, 8, 8)), "cannot be drawn"),
        (lambda: pictures_of((2, 2)), "cannot be drawn"),
    ],
)
def test_data_networks_distances_and_pictures_that_do_not_fit_are_refused(call, words):
    with pytest.raises(InputError, match=words):
        call()
