"""Memory format and float32 matrix products: faster kernels for the same weights."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from typing_extensions import override

from ddpm_lightning.trained import TrainedModule


class FastKernels(Callback):
    """Stores the weights of convolutions channels-last and may let float32 products use TF32.

    Tensor cores and oneDNN convolve in that format, so that other layouts are converted at each
    layer. Only strides change, not what a checkpoint holds; numbers change by rounding, and
    dropout, which draws in the order of memory, zeroes other features.
    ``--trainer.callbacks+ FastKernels`` adds it to a config's callbacks.

    Args:
        channels_last: Store [O, I, H, W] weights of the network and of its average so.
        float32_matmul_precision: highest: float32 throughout; high: TF32 (10 bits of mantissa) on
            GPUs that have it; medium: bfloat16. For the rest of the process; it says nothing
            about mixed precision.
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
            for net in (pl_module.net, pl_module.ema.net):
                assert isinstance(net, nn.Module)
                net.to(memory_format=torch.channels_last)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A checkpoint holds contiguous moments, and an optimizer's fused loops need one format.
        for optimizer in trainer.optimizers if self.channels_last else ():
            for state in optimizer.state.values():
                for name, value in state.items():
                    state[name] = _channels_last(value)


def _channels_last(value: Any) -> Any:
    if isinstance(value, Tensor) and value.ndim == 4:
        return value.contiguous(memory_format=torch.channels_last)
    return value
