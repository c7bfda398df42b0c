"""What `test` says about the likelihood: the numbers, their errors, the files."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from torch.utils.data import DataLoader

from ddpm_lightning import DiffusionModule
from ddpm_lightning.batch import Batch, Condition
from ddpm_lightning.callbacks import Likelihood
from ddpm_lightning.callbacks.likelihood import Moments
from ddpm_lightning.cli import main
from ddpm_lightning.diffusion import AnalyticVariance, Linear, ZeroTerminalSNR
from ddpm_lightning.diffusion.oracles import Gaussian
from ddpm_lightning.diffusion.samplers import DDIMQuadratic
from ddpm_lightning.errors import InputError
from tests.small import TinyUNet, image_spec, lively, tiny_data, tiny_module

SPREAD = 0.25
SCHEDULE = ZeroTerminalSNR(Linear(100))


def results(folder: Path) -> list[dict]:
    return json.loads((folder / "metrics.json").read_text())


def measure(folder: Path, likelihood: Likelihood, module: DiffusionModule, data) -> dict:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    run = Trainer(default_root_dir=folder, accelerator="cpu", callbacks=[likelihood], **quiet)
    (logged,) = run.test(module, data, verbose=False)
    return dict(logged)


class Knows(DiffusionModule):
    """A module whose denoiser is that of N(0, SPREAD), with the variance that is best for it."""

    def denoiser(self, weights="ema"):
        total = SCHEDULE.alpha**2 * SPREAD + SCHEDULE.sigma**2
        variance = AnalyticVariance((SPREAD * SCHEDULE.sigma**2 / total).tolist())
        return Gaussian(SCHEDULE, torch.zeros(1, 2, 2), torch.eye(4) * SPREAD, variance)

    def test_step(self, batch, batch_idx):
        """The network stands aside."""


def measure_known(folder: Path, likelihood: Likelihood, n: int) -> tuple[torch.Tensor, dict]:
    """n samples of N(0, SPREAD), and what is measured of them with the exact denoiser."""
    module = Knows(image_spec(size=2, data_range=None), TinyUNet, SCHEDULE)
    x0 = SPREAD**0.5 * torch.randn(n, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    batches = [Batch(x0[k], Condition(), k) for k in torch.arange(n).split(400)]
    return x0, measure(folder, likelihood, module, DataLoader(batches, batch_size=None))


def test_moments_of_batches_are_numpys():
    rows = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)).double()
    moments = Moments(3)
    for part in rows.split(4):
        moments.update(part)
    n, mean, error, columns = moments.compute()
    sums = rows.numpy().sum(1)
    np.testing.assert_allclose([n, mean, error], [7, sums.mean(), sums.std(ddof=1) / 7**0.5])
    np.testing.assert_allclose(columns, rows.numpy().mean(0))


@pytest.mark.slow
@pytest.mark.parametrize("evaluations", [None, 10])
def test_continuous_data_of_known_entropy_has_it_in_nats_within_the_standard_error(
    tmp_path, evaluations
):
    _, logged = measure_known(tmp_path, Likelihood(evaluations), n=1500)
    entropy = 0.5 * math.log(2 * math.pi * math.e * SPREAD)
    error = logged["test/npd_stderr"]
    assert 0 < error < 0.1
    assert abs(logged["test/npd"] - entropy) < 3 * error
    parts = sum(logged[f"test/npd_{part}"] for part in ("L0", "L1_to_LT-1", "LT"))
    assert parts == pytest.approx(logged["test/npd"], rel=1e-5)


def test_the_probability_flow_gives_the_exact_density_of_known_data(tmp_path):
    flow = Likelihood(0, flow_n=450, flow_steps=None, flow_probes=None)
    x0, logged = measure_known(tmp_path, flow, n=500)
    squares = x0[:450].square().flatten(1).sum(1).double() / SPREAD
    exact = 0.5 * (math.log(2 * math.pi * SPREAD) + squares / 4)
    assert logged["test/npd_flow"] == pytest.approx(float(exact.mean()), rel=2e-3)
    expected = float(exact.std()) / 450**0.5
    assert logged["test/npd_flow_stderr"] == pytest.approx(expected, rel=2e-2)
    (result,) = results(tmp_path)
    assert (result["metric"], result["settings"]["count"]) == ("npd_flow", 450)


@pytest.mark.slow
def test_the_number_does_not_depend_on_the_batches(tmp_path):
    module = lively(tiny_module(schedule=Linear(100)))
    flow = {"flow_n": 150, "flow_steps": 2}
    one, other = (
        measure(tmp_path, Likelihood(6, **flow), module, tiny_data(global_batch_size=size))
        for size in (100, 297)
    )
    assert one.keys() == other.keys()
    for key in ("test/bpd", "test/bpd_stderr", "test/bpd_L0", "test/bpd_flow"):
        assert one[key] == pytest.approx(other[key], rel=1e-4)


def test_a_negative_seed_is_refused():
    with pytest.raises(InputError, match="give 0 or more"):
        Likelihood(seed=-1)


def test_a_spacing_without_the_last_levels_is_refused_before_the_test(tmp_path):
    likelihood = Likelihood(5, spacing=DDIMQuadratic())
    with pytest.raises(InputError, match="leaves out the levels above"):
        measure(tmp_path, likelihood, tiny_module(), tiny_data())


# The command line


def words_for(folder: Path, checkpoint: Path, *flags: str) -> list[str]:
    """The words that measure a checkpoint on the digits."""
    return [
        *("test", "--data=Digits", f"--ckpt_path={checkpoint}", "--data.global_batch_size=50"),
        *("--trainer.accelerator=cpu", "--trainer.logger=false"),
        *("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
        *(f"--trainer.default_root_dir={folder}", "--likelihood.evaluations=4"),
        *("--likelihood.flow_steps=2", *flags),
    ]


@pytest.mark.slow
def test_the_test_command_prints_both_numbers_and_keeps_them_with_a_curve(
    lively_checkpoint, tmp_path, capsys
):
    flags = "--likelihood.flow_n=3", "--trainer.limit_test_batches=2"
    for _ in range(2):  # the second results take the first ones' place
        main(words_for(tmp_path, lively_checkpoint, *flags))
    bound, flow = results(tmp_path)
    printed = capsys.readouterr().out
    assert "test/bpd" in printed
    assert "bits a dimension ≤" in printed
    assert f"probability flow: {flow['value']:.4f}" in printed
    assert (bound["metric"], bound["step"], bound["samples"]["weights"]) == ("bpd", 2, "ema")
    settings = {"split": "test", "count": 100, "evaluations": 4, "T": 40}
    assert bound["settings"] == bound["settings"] | settings
    assert 0 < bound["standard_error"] < bound["value"] < math.inf
    parts = sum(bound["parts"][name] for name in ("L0", "L1_to_LT-1", "LT"))
    assert parts == pytest.approx(bound["value"])
    assert (flow["metric"], flow["settings"]["count"]) == ("bpd_flow", 3)
    assert Image.open(tmp_path / "bound_test.png").width > 400


def test_zero_evaluations_leave_it_out(lively_checkpoint, tmp_path, capsys):
    main(words_for(tmp_path, lively_checkpoint, "--likelihood.evaluations=0"))
    assert "bpd" not in capsys.readouterr().out
    assert not (tmp_path / "metrics.json").exists()


@pytest.mark.slow
def test_two_processes_measure_the_bits_of_one(lively_checkpoint, tmp_path):
    for processes in (1, 2):
        flags = [f"--trainer.devices={processes}", "--likelihood.flow_n=3"]
        flags += ["--trainer.strategy=ddp"] if processes == 2 else []
        words = words_for(tmp_path / str(processes), lively_checkpoint, *flags)
        command = [sys.executable, "-m", "ddpm_lightning", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
    for one, two in zip(results(tmp_path / "1"), results(tmp_path / "2"), strict=True):
        assert two["value"] == pytest.approx(one["value"], rel=1e-4)
        assert two["standard_error"] == pytest.approx(one["standard_error"], rel=1e-3)
    counts = [result["settings"]["count"] for result in results(tmp_path / "2")]
    assert counts == [297, 3]  # uneven shares of the bound: 149 and 148
