"""What `test` says about the likelihood: the number, its error, the files."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from ddpm_lightning import DiffusionModule
from ddpm_lightning.callbacks import FlowLikelihood, Likelihood
from ddpm_lightning.cli import main
from ddpm_lightning.diffusion.oracles import Gaussian
from ddpm_lightning.diffusion.samplers import DDIMQuadratic
from ddpm_lightning.diffusion.schedules import Linear, ZeroTerminalSNR
from ddpm_lightning.diffusion.variances import AnalyticVariance
from ddpm_lightning.errors import InputError
from tests.small import TinyUNet, tiny_data, tiny_module
from tests.test_cli import tiny_run

SPREAD = 0.25
SCHEDULE = ZeroTerminalSNR(Linear(100))


def quiet_trainer(folder, *callbacks, **arguments):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        callbacks=list(callbacks),
        **quiet | {"limit_test_batches": None} | arguments,
    )


class Knows(DiffusionModule):
    """A module whose denoiser is that of N(0, SPREAD), with the variance that is best for it."""

    def denoiser(self, ema=True):
        shape = self.shape
        total = SCHEDULE.alpha**2 * SPREAD + SCHEDULE.sigma**2
        variance = AnalyticVariance((SPREAD * SCHEDULE.sigma**2 / total).tolist())
        d = math.prod(shape)
        return Gaussian(SCHEDULE, torch.zeros(shape), torch.eye(d) * SPREAD, variance)


@pytest.mark.parametrize("evaluations", [None, 10])
def test_continuous_data_of_known_entropy_has_it_in_nats_within_the_standard_error(
    tmp_path, evaluations
):
    module = Knows([1, 2, 2], data_range=None, net=TinyUNet, schedule=Linear(100))
    module.schedule = SCHEDULE
    module._evaluation_step = lambda batch, split: {}  # of the network, which stands aside
    x0 = SPREAD**0.5 * torch.randn(1500, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(TensorDataset(x0, torch.zeros(1500).long()), batch_size=400)
    run = quiet_trainer(tmp_path, Likelihood(evaluations))
    (logged,) = run.test(module, loader, verbose=False)
    entropy = 0.5 * math.log(2 * math.pi * math.e * SPREAD)
    error = logged["test/npd_stderr"]
    assert 0 < error < 0.1
    assert abs(logged["test/npd"] - entropy) < 3 * error
    parts = sum(logged[f"test/npd_{part}"] for part in ("L0", "L1_to_LT-1", "LT"))
    assert parts == pytest.approx(logged["test/npd"], rel=1e-5)


def test_the_number_does_not_depend_on_the_batches(tmp_path):
    torch.manual_seed(0)
    module = tiny_module(schedule=Linear(100))
    for parameter in module.ema.net.parameters():
        parameter.data.normal_(std=0.05)
    values = [
        quiet_trainer(tmp_path / str(size), Likelihood(6)).test(
            module, tiny_data(global_batch_size=size), verbose=False
        )[0]
        for size in (100, 297)
    ]
    assert values[0].keys() == values[1].keys()
    for key in ("test/bpd", "test/bpd_stderr", "test/bpd_L0"):
        assert values[0][key] == pytest.approx(values[1][key], rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"evaluations": 1}, "at least 2"),
        ({"evaluations": -3}, "at least 2"),
        ({"seed": -1}, "not negative"),
    ],
)
def test_impossible_settings_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        Likelihood(**arguments)


def test_a_spacing_without_the_last_levels_is_refused_before_the_test(tmp_path):
    run = quiet_trainer(tmp_path, Likelihood(5, spacing=DDIMQuadratic()))
    with pytest.raises(InputError, match="leaves out the levels above"):
        run.test(tiny_module(), tiny_data(), verbose=False)


# The command line


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    main(["fit", *tiny_run(root)])
    return root


def test_the_test_command_prints_bits_and_keeps_them_with_their_curve(run, capsys):
    flags = ("--ckpt_path=last", "--trainer.limit_test_batches=3", "--likelihood.evaluations=4")
    for _ in range(2):  # the second result takes the first one's place
        main(["test", *tiny_run(run, *flags)])
    printed = capsys.readouterr().out
    assert "test/bpd" in printed
    assert "bits a dimension ≤" in printed
    (result,) = json.loads((run / "metrics.json").read_text())
    assert (result["metric"], result["step"], result["n"]) == ("bpd", 2, 24)
    assert (result["evaluations"], result["T"], result["weights"]) == (4, 1000, "ema")
    assert math.isfinite(result["value"])
    assert 0 < result["standard_error"] < result["value"]
    assert sum(result["parts"].values()) == pytest.approx(result["value"])
    assert Image.open(run / "bound_test.png").width > 400


def test_zero_evaluations_leave_it_out(run, capsys):
    flags = ("--ckpt_path=last", "--trainer.limit_test_batches=1", "--likelihood.evaluations=0")
    main(["test", *tiny_run(run, *flags)])
    assert "test/bpd" not in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_measure_the_bits_of_one(run, tmp_path):
    values = []
    for processes in (1, 2):
        command = [
            *(sys.executable, "-m", "ddpm_lightning", "test"),
            *tiny_run(run, "--ckpt_path", str(run / "checkpoints" / "last.ckpt")),
            "--likelihood.evaluations=4",
            "--data.global_batch_size=100",
            f"--trainer.devices={processes}",
            f"--trainer.default_root_dir={tmp_path / str(processes)}",
            *(["--trainer.strategy=ddp"] if processes == 2 else []),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        (result,) = json.loads((tmp_path / str(processes) / "metrics.json").read_text())
        values.append(result)
    one, two = values
    assert one["n"] == two["n"] == 297  # uneven shares: 149 and 148
    assert two["value"] == pytest.approx(one["value"], rel=1e-4)
    assert two["standard_error"] == pytest.approx(one["standard_error"], rel=1e-3)


def test_the_probability_flow_gives_the_exact_density_of_known_data(tmp_path):
    module = Knows([1, 2, 2], data_range=None, net=TinyUNet, schedule=Linear(100))
    module.schedule = SCHEDULE
    module._evaluation_step = lambda batch, split: {}
    x0 = SPREAD**0.5 * torch.randn(60, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(TensorDataset(x0, torch.zeros(60).long()), batch_size=25)
    run = quiet_trainer(tmp_path, FlowLikelihood(n=40, steps=None, probes=None))
    (logged,) = run.test(module, loader, verbose=False)
    squares = x0[:40].square().flatten(1).sum(1).double() / SPREAD
    exact = 0.5 * (math.log(2 * math.pi * SPREAD) + squares / 4)
    assert logged["test/npd_flow"] == pytest.approx(float(exact.mean()), rel=2e-3)
    expected = float(exact.std()) / 40**0.5
    assert logged["test/npd_flow_stderr"] == pytest.approx(expected, rel=2e-2)
    (result,) = json.loads((tmp_path / "metrics.json").read_text())
    assert (result["metric"], result["n"]) == ("npd_flow", 40)


def test_the_flow_is_measured_by_the_test_command(tmp_path, capsys):
    main(["fit", *tiny_run(tmp_path)])
    flags = ["--ckpt_path=last", "--flow.n=3", "--flow.steps=2", "--likelihood.evaluations=2"]
    main(["test", *tiny_run(tmp_path), *flags])
    bound, flow = json.loads((tmp_path / "metrics.json").read_text())
    assert (bound["metric"], flow["metric"], flow["n"]) == ("bpd", "bpd_flow", 3)
    assert f"probability flow: {flow['value']:.4f}" in capsys.readouterr().out
