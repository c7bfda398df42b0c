"""How format1.ckpt and format1.npz were made, by the code of the commit that added them.

A record, not a tool: later code writes another format. Every kind of part with a path of its own
in the file is there, so that each alias is used: labels, a condition image, a learned variance, a
hybrid loss, timesteps with statistics, the EMA and an optimizer.
"""

from pathlib import Path

import numpy as np
import torch
from ddpm_lightning.diffusion.likelihood import DiscretizedGaussian
from ddpm_lightning.diffusion.objectives import MSE, Hybrid, MinSNR
from lightning.pytorch import Trainer

from ddpm_lightning import DiffusionModule
from ddpm_lightning.callbacks import RunCheckpoint
from ddpm_lightning.data import Conditioned, Digits
from ddpm_lightning.data.conditioned import SuperResolution
from ddpm_lightning.diffusion.parameterizations import V
from ddpm_lightning.diffusion.samplers import DDIM
from ddpm_lightning.diffusion.schedules import Cosine
from ddpm_lightning.diffusion.timesteps import LossSecondMoment, Stratified
from ddpm_lightning.diffusion.variances import LearnedRange
from ddpm_lightning.networks import UNet

FOLDER = Path(__file__).parent


def net(in_channels, out_channels, num_classes):
    return UNet(
        in_channels,
        out_channels,
        num_classes,
        channels=4,
        multipliers=[1],
        blocks=1,
        attention_levels=[],
        groups=2,
    )


def main(run: Path) -> None:
    torch.manual_seed(0)
    module = DiffusionModule(
        shape=[1, 8, 8],
        num_classes=10,
        condition_channels=1,
        net=net,
        schedule=Cosine(T=50),
        parameterization=V(),
        variance=LearnedRange(),
        objective=Hybrid(MSE(MinSNR(5.0)), decoder=DiscretizedGaussian(17)),
        timesteps=Stratified(LossSecondMoment(history=2)),
        conditional=True,
        ema_decay=0.9,
    )
    data = Conditioned(
        Digits(global_batch_size=32, subset=256, flip=True), SuperResolution(factor=2)
    )
    trainer = Trainer(
        default_root_dir=run,
        max_steps=20,
        accelerator="cpu",
        callbacks=[RunCheckpoint(every_n_steps=20)],
        limit_val_batches=0,
        logger=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, data)
    (run / "checkpoints" / "last.ckpt").rename(FOLDER / "format1.ckpt")
    loaded = DiffusionModule.load_from_checkpoint(FOLDER / "format1.ckpt")
    condition = data.conditions("val", 4)
    asked = {"labels": [3, -1], "guidance": 2.0, "seed": 7, "condition": condition}
    np.savez(
        FOLDER / "format1.npz",
        condition=condition.numpy(),
        ema=loaded.sample(4, DDIM(10), **asked).numpy(),
        raw=loaded.sample(4, DDIM(10), ema=False, **asked).numpy(),
    )


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
