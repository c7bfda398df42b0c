"""The analytic_variance command and what it measures."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from ddpm_lightning.diffusion.objectives import Hybrid
from ddpm_lightning.trained import DataPlace, data_of

from ddpm_lightning.cli import main
from ddpm_lightning.commands.analytic_variance import x0_errors
from ddpm_lightning.data import MNIST
from ddpm_lightning.diffusion.oracles import Gaussian
from ddpm_lightning.diffusion.schedules import SohlDickstein
from ddpm_lightning.diffusion.variances import LearnedRange
from ddpm_lightning.errors import InputError
from ddpm_lightning.module import DiffusionModule
from tests.make_data import write_mnist
from tests.small import tiny_data, tiny_module, trainer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A two-step run of 40 levels."""
    root = tmp_path_factory.mktemp("run")
    trainer(root, 2).fit(tiny_module(schedule=SohlDickstein()), tiny_data())
    return root / "checkpoints" / "last.ckpt"


def draw(checkpoint, out, *flags: str) -> bytes:
    main(["sample", f"--ckpt={checkpoint}", f"--out={out}", "--n=1", *flags])
    return (out / "000000.png").read_bytes()


def test_the_error_of_an_exact_denoiser_is_the_posterior_variance():
    schedule = SohlDickstein()
    variances = torch.tensor([0.25, 4.0], dtype=torch.float64)
    oracle = Gaussian(schedule, torch.zeros(2, dtype=torch.float64), variances.diag())
    x0 = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0)).double()
    table = x0_errors(oracle, x0 * variances.sqrt(), n=4000)
    precision = 1 / variances + (schedule.alpha[1:, None] / schedule.sigma[1:, None]) ** 2
    expected = (1 / precision).mean(1)
    # The mean of 8,000 squares of normal numbers: a standard error of at most 2.2 %.
    np.testing.assert_allclose(table[1:], expected, rtol=0.1)
    assert table[0] == 0


def test_errors_do_not_depend_on_the_batch_size():
    oracle = Gaussian(SohlDickstein(), torch.zeros(3), torch.eye(3))
    x0 = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    one, other = (x0_errors(oracle, x0, n=5, batch_size=size) for size in (7, 200))
    torch.testing.assert_close(one, other)


def test_errors_are_those_of_clipped_predictions():
    oracle = Gaussian(SohlDickstein(), torch.full((2,), 5.0), torch.eye(2))
    table = x0_errors(oracle, torch.full((1, 2), 5.0), n=3, data_range=(-1.0, 1.0))
    torch.testing.assert_close(table[1:], torch.full((40,), 16.0, dtype=torch.float64))


def test_the_table_lies_beside_the_checkpoint_and_changes_the_samples(checkpoint, tmp_path):
    main(["analytic_variance", f"--ckpt={checkpoint}", "--n=2"])
    table = checkpoint.with_suffix(".x0_error.npz")
    assert np.load(table)["x0_error"].shape == (41,)
    steps = "--sampler=DDPM", "--sampler.steps=3"
    plain = draw(checkpoint, tmp_path / "plain", *steps)
    analytic = "--variance=AnalyticVariance", f"--variance.table={table}"
    assert draw(checkpoint, tmp_path / "analytic", *steps, *analytic) != plain


def test_a_table_of_other_weights_is_refused(checkpoint, tmp_path, capsys):
    main(["analytic_variance", f"--ckpt={checkpoint}", "--n=2"])
    table = checkpoint.with_suffix(".x0_error.npz")
    analytic = "--sampler=DDPM", "--variance=AnalyticVariance", f"--variance.table={table}"
    with pytest.raises(SystemExit):
        draw(checkpoint, tmp_path / "raw", *analytic, "--weights=raw")
    assert "measured with other weights than the raw ones" in capsys.readouterr().err
    assert not (tmp_path / "raw").exists()


def test_the_command_measures_the_checkpoints_network_on_its_training_data(checkpoint):
    main(["analytic_variance", f"--ckpt={checkpoint}", "--n=3", "--seed=5", "--weights=raw"])
    table = np.load(checkpoint.with_suffix(".x0_error.npz"))["x0_error"]
    module = DiffusionModule.load_from_checkpoint(checkpoint).eval()
    x0 = tiny_data().images("train")[0].float() / 127.5 - 1
    expected = x0_errors(module.denoiser(ema=False), x0, n=3, seed=5, data_range=(-1, 1))
    np.testing.assert_allclose(table, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ckpt=gone.ckpt"], "no checkpoint at gone.ckpt"),
        (["--n=0"], "at least 1"),
        (["--wrong=1"], "no flag --wrong"),
    ],
)
def test_a_mistake_is_one_line(checkpoint, flags, message, capsys):
    args = ["analytic_variance", f"--ckpt={checkpoint}", "--n=1", *flags]
    with pytest.raises(SystemExit):
        main(args)
    assert message in capsys.readouterr().err


def test_labels_of_the_data_reach_a_conditional_model(tmp_path):
    module = tiny_module(schedule=SohlDickstein(), conditional=True)
    for parameter in [*module.net.parameters(), *module.ema.net.parameters()]:
        parameter.data.normal_(std=0.2)
    module.optimizer = partial(torch.optim.SGD, lr=0.0)
    trainer(tmp_path, 2).fit(module, tiny_data())
    path = tmp_path / "checkpoints" / "last.ckpt"
    main(["analytic_variance", f"--ckpt={path}", "--n=3"])
    table = np.load(path.with_suffix(".x0_error.npz"))["x0_error"]
    images, labels = tiny_data().images("train")
    denoiser = DiffusionModule.load_from_checkpoint(path).eval().denoiser()
    x0 = images.float() / 127.5 - 1
    with_labels, without = (
        x0_errors(denoiser, x0, y, n=3, data_range=(-1, 1)).numpy() for y in (labels, None)
    )
    np.testing.assert_allclose(table, with_labels, rtol=1e-6)
    assert not np.allclose(with_labels, without, rtol=1e-3)


def test_the_data_may_have_moved(tmp_path):
    write_mnist(tmp_path / "here", "MNIST")
    data = MNIST(root=str(tmp_path / "here"), download=False, held_out=20, global_batch_size=8)
    module = tiny_module(shape=[1, 28, 28], schedule=SohlDickstein())
    trainer(tmp_path, 1).fit(module, data)
    (tmp_path / "here").rename(tmp_path / "there")
    path = tmp_path / "checkpoints" / "last.ckpt"
    with pytest.raises(InputError, match="MNIST"):
        data_of(path, DataPlace()).samples("train")
    moved = data_of(path, DataPlace(root=str(tmp_path / "there"))).samples("train")
    assert torch.equal(moved[0], data.samples("train")[0])


@pytest.mark.parametrize("variance", ["FixedSmall", "FixedLarge"])
def test_a_learned_variance_can_be_left_out_of_sampling(tmp_path, variance):
    module = tiny_module(schedule=SohlDickstein(), variance=LearnedRange(), objective=Hybrid())
    trainer(tmp_path, 1).fit(module, tiny_data())
    path = tmp_path / "checkpoints" / "last.ckpt"
    few = "--sampler=DDPM", "--sampler.steps=3"
    learned = draw(path, tmp_path / "learned", *few)
    assert draw(path, tmp_path / variance, *few, f"--variance={variance}") != learned


def test_another_learned_variance_than_the_trained_one_is_an_error(tmp_path, capsys):
    module = tiny_module(schedule=SohlDickstein(), variance=LearnedRange(), objective=Hybrid())
    trainer(tmp_path, 1).fit(module, tiny_data())
    path = tmp_path / "checkpoints" / "last.ckpt"
    with pytest.raises(SystemExit):
        draw(path, tmp_path / "out", "--variance=LearnedDiagonal")
    assert "trained with LearnedRange" in capsys.readouterr().err


def test_a_variance_for_a_sampler_without_one_is_an_error(checkpoint, tmp_path, capsys):
    with pytest.raises(SystemExit):
        draw(checkpoint, tmp_path / "out", "--sampler=DDIM", "--variance=FixedLarge")
    assert "DDIM has no use for a variance" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
