"""Checkpoints of earlier versions."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm_lightning import DiffusionModule
from ddpm_lightning.diffusion.samplers import DDIM

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_a_checkpoint_of_format_1_gives_the_samples_it_gave_then(weights):
    then = np.load(GOLDEN / "format1.npz")
    module = DiffusionModule.load_from_checkpoint(GOLDEN / "format1.ckpt")
    now = module.sample(
        4,
        DDIM(10),
        labels=[3, -1],
        guidance=2.0,
        seed=7,
        ema=weights == "ema",
        condition=torch.from_numpy(then["condition"]),
    )
    np.testing.assert_allclose(now.numpy(), then[weights], atol=1e-5)
