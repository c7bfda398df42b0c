"""The dtypes that operations really compute in, below autocast: a recorder, and a table of them.

python -m tests.dtypes prints the table of a training and a sampling step under bf16-mixed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ddpm_lightning import DiffusionModule
from ddpm_lightning.batch import Batch, Condition, DataSpec
from ddpm_lightning.diffusion import Linear
from ddpm_lightning.diffusion.samplers import DDIM, Sampler
from ddpm_lightning.networks import (
    MLP,
    AnnotatedUNet,
    AnnotatedUNet2022,
    DiT,
    DoubleConvUNet,
    SimpleUNet,
    SmallUNet,
    UNet,
)
from ddpm_lightning.randomness import IndexedNoise, Stream
from tests.small import randomized

LOW = (torch.bfloat16, torch.float16)
# Casts, views and copies move numbers without computing.
MOVES = {
    *("_to_copy", "detach", "view", "_unsafe_view", "t", "transpose", "clone", "alias", "split"),
    *("slice", "expand", "unsqueeze", "permute", "copy_"),
}


class Dtypes(TorchDispatchMode):
    """Records the dtypes of the floating-point tensors that each operation gets.

    Operations inside the network and outside (noising, coefficients, loss, sampler) are kept
    apart; those of the backward pass count as inside.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.inside: dict[str, set[torch.dtype]] = defaultdict(set)
        self.outside: dict[str, set[torch.dtype]] = defaultdict(set)
        self._where = self.outside
        net.register_forward_pre_hook(lambda *_: self._enter(self.inside))
        net.register_forward_hook(lambda *_: self._enter(self.outside))

    def _enter(self, where: dict[str, set[torch.dtype]]) -> None:
        self._where = where

    @contextmanager
    def backward(self) -> Iterator[None]:
        """Count what follows as inside the network."""
        self._where = self.inside
        yield
        self._where = self.outside

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.name().split("::")[1].split(".")[0]
        if name not in MOVES:
            flat = [one for a in args for one in (a if isinstance(a, list | tuple) else [a])]
            tensors = [one for one in flat if isinstance(one, Tensor)]
            if not tensors:  # arange and the like
                tensors = [result] if isinstance(result, Tensor) else []
            # 0-dimensional tensors do not decide in which dtype an operation computes.
            found = {x.dtype for x in tensors if x.is_floating_point() and x.ndim}
            if found:
                self._where[name] |= found
        return result


def small_networks() -> dict[str, Any]:
    """Every network, and every block and kind of attention of the U-Net, by name."""
    unet = partial(
        UNet, channels=8, multipliers=[1, 2], blocks=1, attention_levels=[1], groups=4, dropout=0
    )
    linear: dict[str, Any] = {"attention_levels": [], "linear_attention_levels": [0, 1]}
    return {
        "UNet": unet,
        "UNet, linear attention": partial(unet, **linear, mid_attention=False),
        "UNet, scale_shift": partial(unet, scale_shift=True),
        "UNet, convnext": partial(unet, block="convnext"),
        "UNet, weight_standardized": partial(unet, block="weight_standardized"),
        "AnnotatedUNet": partial(AnnotatedUNet, channels=8, multipliers=[1, 2], heads=1),
        "AnnotatedUNet2022": partial(AnnotatedUNet2022, channels=8, multipliers=[1, 2], heads=1),
        "DiT": partial(DiT, patch=4, width=16, depth=1, heads=2),
        "SimpleUNet": partial(SimpleUNet, channels=8),
        "SmallUNet": partial(SmallUNet, channels=8),
        "DoubleConvUNet": partial(DoubleConvUNet, channels=8, multipliers=[1, 2], heads=2),
        "MLP": partial(MLP, width=16, depth=1),
    }


def spec_of(name: str) -> DataSpec:
    """Data that a network of this name takes: digits with classes, or points."""
    return DataSpec((2,) if name == "MLP" else (1, 8, 8), num_classes=10)


def lively_module(name: str, **arguments: Any) -> DiffusionModule:
    """A module around that network, all weights drawn anew."""
    net = small_networks()[name]
    module = DiffusionModule(spec_of(name), net=net, conditional=True, **arguments)
    randomized(module.net)
    module.ema.follow(module.net)
    return module


def record_training(
    module: DiffusionModule, dtype: torch.dtype | None = torch.bfloat16, device: str = "cpu"
) -> Dtypes:
    """Noise a batch, compute its loss under autocast, and go backwards."""
    module.to(device)
    x0 = torch.randn(4, *module.data.shape, generator=torch.Generator().manual_seed(2))
    index = torch.arange(4)
    batch = Batch(x0.to(device), Condition(label=index.to(device)), index, index)
    noise = IndexedNoise(0, index, Stream.TRAINING, device)
    dtypes = Dtypes(module.net)
    with dtypes, torch.autocast(device, dtype=dtype, enabled=dtype is not None):
        t, weight = module.timesteps(module.schedule, noise)
        noised = module._noised(batch, t, noise, batch.condition)
        loss = (weight * module.objective(module.denoiser("raw"), noised)["loss"]).mean()
        with dtypes.backward():
            loss.backward()
    return dtypes


def record_sampling(
    module: DiffusionModule, sampler: Sampler, dtype: torch.dtype = torch.bfloat16
) -> Dtypes:
    """Sample under autocast, as predict does."""
    denoiser = module.denoiser("raw")
    noise = IndexedNoise(0, torch.arange(2))
    x_T = noise(0, module.data.shape)
    label = Condition(label=torch.tensor([0, 1]))
    dtypes = Dtypes(module.net)
    with dtypes, torch.autocast("cpu", dtype=dtype):
        sampler(denoiser, x_T, label, noise)
    return dtypes


def main() -> None:
    """Print the table."""
    shown = ("norm", "softmax", "attention", "var_mean", "sin", "pow", "conv", "addmm", "bmm")
    for name in small_networks():
        module = lively_module(name, schedule=Linear(50))
        training = record_training(module)
        print(f"\n{name}, training step under bf16-mixed")
        for op, found in sorted(training.inside.items()):
            if any(word in op for word in shown):
                print(f"  {op:<55} {_names(found)}")
        outside = set[torch.dtype]().union(*training.outside.values())
        print(f"  {'noising, coefficients, loss':<55} {_names(outside)}")
        sampling = record_sampling(module, DDIM(3, eta=1.0))
        outside = set[torch.dtype]().union(*sampling.outside.values())
        print(f"  {'sampler':<55} {_names(outside)}")


def _names(found: set[torch.dtype]) -> str:
    return ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in found))


if __name__ == "__main__":
    main()
