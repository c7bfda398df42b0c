"""Training loops beside fit: a bare one around our network, and that of diffusers' example."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm_lightning import EMA, DiffusionModule
from ddpm_lightning.batch import DataSpec
from ddpm_lightning.diffusion import FixedLarge, Linear
from ddpm_lightning.networks import UNet

Step = Callable[[], object]
"""One optimizer step."""


@dataclass(frozen=True)
class Recipe:
    """The network and batch of configs/cifar10.yaml, or a smaller one.

    Args:
        channels: Width of the U-Net.
        multipliers: Its widths by level, as multiples.
        blocks: Residual blocks a level.
        attention_levels: Levels with self-attention.
        groups: Groups of its norms.
        dropout: Its dropout.
        side: Height and width of the images.
        batch: Images a step.
        colours: Channels of the images.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    blocks: int = 2
    attention_levels: tuple[int, ...] = (1,)
    groups: int = 32
    dropout: float = 0.1
    side: int = 32
    batch: int = 128
    colours: int = 3

    @property
    def spec(self) -> DataSpec:
        """Its data."""
        return DataSpec((self.colours, self.side, self.side), (-1.0, 1.0))

    def module(self, compile: bool = False) -> DiffusionModule:
        """Our model."""
        settings = ("channels", "multipliers", "blocks", "attention_levels", "groups", "dropout")
        return DiffusionModule(
            self.spec,
            net=partial(UNet, heads=1, **{name: getattr(self, name) for name in settings}),
            schedule=Linear(1000),
            variance=FixedLarge(),
            ema=EMA(0.9999, warmup=False),
            optimizer=partial(torch.optim.Adam, lr=2e-4),
            warmup_steps=5000,
            compile=compile,
        )

    def unet2d(self) -> Any:
        """Return diffusers' network of the same size, set as the published DDPM networks are."""
        from diffusers import UNet2DModel

        levels = range(len(self.multipliers))
        kinds = ["Attn" * (level in self.attention_levels) for level in levels]
        return UNet2DModel(
            sample_size=self.side,
            in_channels=self.colours,
            out_channels=self.colours,
            block_out_channels=tuple(self.channels * m for m in self.multipliers),
            layers_per_block=self.blocks,
            down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
            up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
            norm_num_groups=self.groups,
            attention_head_dim=None,
            dropout=self.dropout,
            downsample_padding=0,
            flip_sin_to_cos=False,
            freq_shift=1,
        )

    def images(self, device: torch.device) -> Tensor:
        """A batch of noise in place of images, float32 [B, C, side, side]."""
        generator = torch.Generator().manual_seed(0)
        shape = (self.batch, *self.spec.shape)
        return torch.rand(shape, generator=generator).mul(2).sub(1).to(device)


CIFAR10 = Recipe()

SMALL = Recipe(
    channels=32,
    multipliers=(1, 2, 3),
    attention_levels=(2,),
    groups=8,
    dropout=0.0,
    side=28,
    batch=64,
    colours=1,
)
"""A network of 2.6 M weights for MNIST."""


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[None]:
    """Mixed precision on a device; None computes in float32."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def bare_step(
    recipe: Recipe,
    device: torch.device,
    dtype: torch.dtype | None,
    channels_last: bool = False,
) -> Step:
    """Our network with torch's noise, Adam, clipping and average, and nothing around it."""
    torch.manual_seed(0)
    module = recipe.module().to(device)
    net, ema, schedule = module.net.train(), module.ema, module.schedule
    if channels_last:
        for one in (net, ema.net):
            one.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-4, fused=True)  # as fit makes it
    x0 = recipe.images(device)

    def step() -> None:
        eps = torch.randn_like(x0)
        t = torch.randint(1, schedule.T + 1, (len(x0),), device=device)
        x_t = schedule.add_noise(x0, t, eps)
        with autocast(device, dtype):
            loss = F.mse_loss(net(x_t, t.float()).float(), eps)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update(net, 0)

    return step


def diffusers_step(
    recipe: Recipe,
    device: torch.device,
    dtype: torch.dtype | None,
    channels_last: bool = False,
    compile: bool = False,
) -> Step:
    """One step of diffusers' examples/unconditional_image_generation/train_unconditional.py.

    With --use_ema; images lie on the device already, so its data path costs nothing here.
    """
    from diffusers import DDPMScheduler
    from diffusers.training_utils import EMAModel

    torch.manual_seed(0)
    net: Any = recipe.unet2d().to(device).train()
    if channels_last:
        net.to(memory_format=torch.channels_last)
    ema = EMAModel(net.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    ema.to(device)
    call: Any = torch.compile(net) if compile else net
    scheduler: Any = DDPMScheduler(num_train_timesteps=1000)
    optimizer = torch.optim.AdamW(
        net.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8
    )
    clean = recipe.images(device)

    def step() -> None:
        noise = torch.randn(clean.shape, device=device)
        t = torch.randint(0, 1000, (len(clean),), device=device).long()
        noisy = scheduler.add_noise(clean, noise, t)
        with autocast(device, dtype):
            loss = F.mse_loss(call(noisy, t).sample.float(), noise)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(net.parameters())
        loss.detach().item()  # which its progress bar shows at each step

    return step
