"""Memory format and float32 matrix products: faster kernels for the same weights."""

from __future__ import annotations

from typing import Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from typing_extensions import override

from ddpm_lightning.errors import InputError
from ddpm_lightning.trained import TrainedModule


class FastKernels(Callback):
    """Stores the weights of convolutions channels-last and may let float32 products use TF32.

    Tensor cores and oneDNN convolve in that format, so that other layouts are converted at each
    layer. Only strides change; numbers change by rounding, and dropout, which draws in the
    order of memory, zeroes other features. A run may go on with it or without.
    ``--trainer.callbacks+ FastKernels`` adds it to a config's callbacks.

    Args:
        channels_last: Store [O, I, H, W] weights of the network and of its average so.
        float32_matmul_precision: highest: float32 throughout; high: TF32 (10 bits of mantissa) on
            GPUs that have it; medium: bfloat16. For the rest of the process; it says nothing
            about mixed precision.

    Raises:
        InputError: In setup: the strategy shards the network, which needs contiguous weights.
    """

    def __init__(
        self,
        channels_last: bool = True,
        float32_matmul_precision: Literal["highest", "high", "medium"] = "high",
    ) -> None:
        self.channels_last = channels_last
        self.float32_matmul_precision = float32_matmul_precision

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        assert isinstance(pl_module, TrainedModule)
        torch.set_float32_matmul_precision(self.float32_matmul_precision)
        if self.channels_last:
            if isinstance(trainer.strategy, ModelParallelStrategy):
                raise InputError(
                    "FastKernels: FSDP2 shards contiguous weights alone; leave the callback out, "
                    "or give channels_last: false"
                )
            for net in (pl_module.net, pl_module.ema.net):
                assert isinstance(net, nn.Module)
                net.to(memory_format=torch.channels_last)
