"""The analytic_variance command and what it measures; sampling with another variance."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm_lightning.batch import Condition
from ddpm_lightning.cli import main
from ddpm_lightning.commands.analytic_variance import x0_errors
from ddpm_lightning.diffusion import Hybrid, LearnedRange, SohlDickstein
from ddpm_lightning.diffusion.oracles import Gaussian
from ddpm_lightning.loaded import Loaded
from tests.small import tiny_data, tiny_module, trainer

FEW = "--sampler=DDPM", "--sampler.steps=3"


def draw(checkpoint, out, *flags: str) -> bytes:
    main(["sample", f"--ckpt={checkpoint}", f"--out={out}", "--n=1", *flags])
    return (out / "000000.png").read_bytes()


@pytest.mark.slow
def test_the_error_of_an_exact_denoiser_is_the_posterior_variance_whatever_the_batch_size():
    schedule = SohlDickstein()
    variances = torch.tensor([0.25, 4.0], dtype=torch.float64)
    oracle = Gaussian(schedule, torch.zeros(2, dtype=torch.float64), variances.diag())
    x0 = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0)).double()
    table = x0_errors(oracle, x0 * variances.sqrt(), n=4000)
    in_parts = x0_errors(oracle, x0 * variances.sqrt(), n=4000, batch_size=700)
    torch.testing.assert_close(in_parts, table)
    precision = 1 / variances + (schedule.alpha[1:, None] / schedule.sigma[1:, None]) ** 2
    expected = (1 / precision).mean(1)
    # The mean of 8,000 squares of normal numbers: a standard error of at most 2.2 %.
    np.testing.assert_allclose(table[1:], expected, rtol=0.1)
    assert table[0] == 0


def test_errors_are_those_of_clipped_predictions():
    oracle = Gaussian(SohlDickstein(), torch.full((2,), 5.0), torch.eye(2))
    table = x0_errors(oracle, torch.full((1, 2), 5.0), n=3, data_range=(-1.0, 1.0))
    torch.testing.assert_close(table[1:], torch.full((40,), 16.0, dtype=torch.float64))


# The command


@pytest.fixture
def checkpoint(lively_checkpoint, tmp_path):
    """A copy, beside which the table may lie."""
    return Path(shutil.copy(lively_checkpoint, tmp_path))


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_the_command_measures_the_network_on_its_training_data_and_labels(checkpoint, weights):
    main(
        ["analytic_variance", f"--ckpt={checkpoint}", "--n=3", "--seed=5", f"--weights={weights}"]
    )
    table = np.load(checkpoint.with_suffix(".x0_error.npz"))["x0_error"]
    images, labels = tiny_data().images("train")
    denoiser = Loaded.read(checkpoint).module.denoiser(weights)
    of_labels, of_none = (
        x0_errors(denoiser, images / 127.5 - 1, known, n=3, seed=5, data_range=(-1, 1)).numpy()
        for known in (Condition(labels), Condition())
    )
    np.testing.assert_allclose(table, of_labels, rtol=1e-6)
    assert not np.allclose(of_labels, of_none, rtol=1e-3)


@pytest.mark.slow
def test_the_table_changes_the_samples_of_its_weights_and_is_refused_for_others(
    checkpoint, tmp_path, capsys
):
    main(["analytic_variance", f"--ckpt={checkpoint}", "--n=2"])
    table = checkpoint.with_suffix(".x0_error.npz")
    assert np.load(table)["x0_error"].shape == (41,)
    analytic = *FEW, "--variance=AnalyticVariance", f"--variance.table={table}"
    plain = draw(checkpoint, tmp_path / "plain", *FEW)
    assert draw(checkpoint, tmp_path / "analytic", *analytic) != plain
    with pytest.raises(SystemExit):
        draw(checkpoint, tmp_path / "raw", *analytic, "--weights=raw")
    assert "measured with other weights than the raw ones" in capsys.readouterr().err
    assert not (tmp_path / "raw").exists()


@pytest.mark.parametrize(
    ("flag", "message"),
    [("--ckpt=gone.ckpt", "no checkpoint at gone.ckpt"), ("--wrong=1", "no flag --wrong")],
)
def test_a_mistake_is_one_line(lively_checkpoint, flag, message, capsys):
    with pytest.raises(SystemExit):
        main(["analytic_variance", f"--ckpt={lively_checkpoint}", "--n=1", flag])
    assert message in capsys.readouterr().err


# Another variance than the model's own


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    root = tmp_path_factory.mktemp("learned")
    module = tiny_module(schedule=SohlDickstein(), variance=LearnedRange(), objective=Hybrid())
    trainer(root, 1).fit(module, tiny_data())
    return root / "checkpoints" / "last.ckpt"


@pytest.mark.slow
@pytest.mark.parametrize("variance", ["FixedSmall", "FixedLarge"])
def test_a_learned_variance_can_be_left_out_of_sampling(learned, tmp_path, variance):
    own = draw(learned, tmp_path / "own", *FEW)
    assert draw(learned, tmp_path / "other", *FEW, f"--variance={variance}") != own


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--variance=LearnedDiagonal"], "trained with LearnedRange"),
        (
            ["--sampler=DDIM", "--sampler.steps=3", "--variance=FixedLarge"],
            "DDIM has no use for a variance",
        ),
    ],
)
def test_a_variance_that_does_not_suit_is_an_error(learned, tmp_path, flags, message, capsys):
    with pytest.raises(SystemExit):
        draw(learned, tmp_path / "out", *flags)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
