"""Checkpoints of earlier versions."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm_lightning import DiffusionModule
from ddpm_lightning.batch import Condition
from ddpm_lightning.checkpoint import FORMAT, KEY, current_path, read_checkpoint
from ddpm_lightning.configurable import build, configurable_class
from ddpm_lightning.diffusion.samplers import DDIM
from tests.small import trainer

GOLDEN = Path(__file__).parent / "golden"
FORMAT1 = GOLDEN / "format1.ckpt"


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_a_checkpoint_of_format_1_gives_the_samples_it_gave_then(weights):
    then = np.load(GOLDEN / "format1.npz")
    condition = Condition(image=torch.from_numpy(then["condition"]))
    module = DiffusionModule.load_from_checkpoint(FORMAT1)
    now = module.sample(
        4, DDIM(10), labels=[3, -1], guidance=2.0, seed=7, weights=weights, condition=condition
    )
    np.testing.assert_allclose(now.numpy(), then[weights], atol=1e-5)


def test_a_run_of_format_1_goes_on_and_is_saved_in_todays_format(tmp_path):
    checkpoint = read_checkpoint(FORMAT1)
    module = DiffusionModule.load_from_checkpoint(FORMAT1)
    data = build(checkpoint[KEY]["data"])
    before = module.net.state_dict()["out.bias"].clone()
    trainer(tmp_path, max_steps=24).fit(module, data, ckpt_path=FORMAT1)
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert (saved["global_step"], saved[KEY]["format"]) == (24, FORMAT)
    # The optimizer goes on with the moments of 20 steps, the timesteps with their statistics.
    assert saved["optimizer_states"][0]["state"][0]["step"] == 24
    counts = checkpoint[KEY]["timesteps"]["counts"]
    assert int((saved[KEY]["timesteps"]["counts"] - counts).sum()) == 4 * 32
    assert not torch.equal(module.net.state_dict()["out.bias"], before)


def test_every_class_that_format_1_could_name_is_found():
    paths = (GOLDEN / "format1_classes.txt").read_text().split()
    assert len(paths) == 72
    for path in paths:
        name = path.rpartition(".")[2]
        assert configurable_class(current_path(path)).__name__.removesuffix("Spacing") == name
