"""When the scale of a codec's latents is measured."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch.distributed as dist
from lightning.pytorch import Callback
from lightning.pytorch.strategies import ModelParallelStrategy

from ddpm_lightning.callbacks import RunCheckpoint
from ddpm_lightning.codecs import Haar
from tests.small import TinyUNet, tiny_data, tiny_module, trainer

LatentUNet = partial(TinyUNet, multipliers=[1], attention_levels=[])


class Counted(Haar):
    """Haar's latents, which counts its measurements."""

    count = 0

    def measure(self, latents):
        Counted.count += 1
        super().measure(latents)


class Sanity(Callback):
    """Keeps whether the codec was measured before the validation that precedes training."""

    measured = None

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if trainer.sanity_checking:
            self.measured = bool(pl_module.codec.measured)


def sharded(folder: Path, steps: int, *callbacks: Callback, resume: bool = False) -> None:
    """Train under FSDP2, which restores a checkpoint later than others."""
    strategy = ModelParallelStrategy(1, 1, save_distributed_checkpoint=False)
    every = [*callbacks, RunCheckpoint(every_n_steps=3)]
    run = trainer(
        folder, steps, devices=1, strategy=strategy, callbacks=every, limit_val_batches=1
    )
    module, data = tiny_module(codec=Counted(), net=LatentUNet), tiny_data()
    path = folder / "checkpoints" / "last.ckpt" if resume else None
    run.fit(module, data, ckpt_path=path, weights_only=True)


@pytest.fixture(autouse=True)
def left_processes():
    Counted.count = 0
    yield
    if dist.is_initialized():  # because Lightning leaves gloo's group to the tests that follow
        dist.destroy_process_group()


@pytest.mark.slow
def test_a_resumed_run_under_fsdp2_keeps_the_scale_and_measures_none(tmp_path):
    sharded(tmp_path, 1)
    assert Counted.count == 1
    sharded(tmp_path, 2, resume=True)
    assert Counted.count == 1


@pytest.mark.slow
def test_a_new_run_under_fsdp2_has_the_scale_before_it_validates(tmp_path):
    sanity = Sanity()
    sharded(tmp_path, 1, sanity)
    assert sanity.measured is True
