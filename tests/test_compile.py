"""torch.compile with inductor: a compiled run is the plain one, and is compiled once."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial

import pytest
import torch
import torch._dynamo
from torch._dynamo.utils import counters

from ddpm_lightning import EMA, DiffusionModule
from ddpm_lightning.callbacks import RunCheckpoint, SampleGrid
from ddpm_lightning.diffusion.samplers import DDIM
from ddpm_lightning.networks import DiT, UNet
from ddpm_lightning.run_folder import last_checkpoint
from tests.small import tiny_data, trainer

NETWORKS = {
    "UNet": partial(
        UNet, channels=8, multipliers=[1, 2], blocks=1, attention_levels=[1], groups=4, dropout=0
    ),
    "DiT": partial(DiT, patch=4, width=16, depth=1, heads=2),
}


@pytest.fixture(autouse=True)
def fresh_compiler():
    """Forget what other tests have compiled; a second compilation of anything is an error."""
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield


def train(folder, name: str, compile: bool, steps: int = 3, resume=None) -> DiffusionModule:
    """Train with labels, accumulation, a validation before the first step and after the last.

    The validation's last batch is smaller, as is the grid's.
    """
    torch.manual_seed(0)
    data = tiny_data(subset=44)  # digits for validation, in batches of 4 at most
    module = DiffusionModule(
        data.spec, net=NETWORKS[name], conditional=True, ema=EMA(0.9), compile=compile
    )
    grid = SampleGrid(every_n_steps=2, n=5, sampler=DDIM(2), batch_size=3, guidance=2.0)
    run = trainer(
        folder,
        steps,
        callbacks=[RunCheckpoint(every_n_steps=3), grid],
        limit_val_batches=1.0,
        val_check_interval=2,
        num_sanity_val_steps=1,
        accumulate_grad_batches=2,
    )
    run.fit(module, data, ckpt_path=resume, weights_only=True)
    return module


@pytest.mark.parametrize(
    "name",
    [pytest.param("UNet", marks=pytest.mark.long), pytest.param("DiT", marks=pytest.mark.slow)],
)
def test_a_compiled_run_trains_validates_draws_and_resumes_as_the_plain_one(tmp_path, name):
    plain = train(tmp_path / "plain", name, compile=False, steps=5)
    train(tmp_path / "compiled", name, compile=True, steps=3)
    graphs = counters["stats"]["unique_graphs"]
    torch._dynamo.reset()  # as a new process would
    path = last_checkpoint(tmp_path / "compiled")
    stored = torch.load(path, weights_only=True)["state_dict"]
    resumed = train(tmp_path / "compiled", name, compile=True, steps=5, resume=path)
    assert graphs == 1
    assert list(stored) == list(plain.state_dict())
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[key], value, rtol=1e-3, atol=1e-5)
    loaded = DiffusionModule.load_from_checkpoint(path)
    x, y = (one.sample(3, DDIM(2), labels=[1]) for one in (plain, loaded))
    torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_without_a_compiler_there_is_one_line_and_exit_code_2(tmp_path):
    words = ["fit", "--config", "configs/digits.yaml", "--model.compile", "true"]
    words += ["--model.net", "SmallUNet", "--model.net.channels", "8", "--grid", "null"]
    words += ["--metrics", "null", "--trainer.callbacks", "[]", "--trainer.accelerator", "cpu"]
    words += ["--trainer.max_steps", "2", "--trainer.num_sanity_val_steps", "0"]
    words += ["--trainer.default_root_dir", str(tmp_path / "run")]
    nothing = {"PATH": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    environment = {k: v for k, v in os.environ.items() if k != "CXX"} | nothing
    command = [sys.executable, "-m", "ddpm_lightning", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: torch.compile finds no C++")
    assert "Traceback" not in done.stderr
