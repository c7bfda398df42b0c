"""diffusers' UNet2DModel, trained as its example of unconditional generation does.

Source: examples/unconditional_image_generation/train_unconditional.py of huggingface/diffusers,
with its default arguments, EMA and, of colour, --random_flip, as its README calls it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from typing_extensions import override

from benchmarks.peers.peer import Peer


class DiffusersExample(Peer):
    """A UNet2DModel of 2.5 M weights on grey images: three levels, attention at the second.

    AdamW with betas (0.95, 0.999) and decay 1e-6, batches of 16, 500 warm-up steps, then a
    cosine, here to the end of training, gradients clipped to 1, noise predicted on 1000 linear
    levels, EMA with power 3/4 up to 0.9999.

    Args:
        channels: Channels of the images.
        side: Their height and width.
        lr: Learning rate after the warm-up; the default is the example's.
        device: Where it is trained.
    """

    name = "diffusers"
    batch_size = 16
    warm_up = 500
    widths = (32, 64, 96)

    def __init__(self, channels: int, side: int, lr: float = 1e-4, device: str = "cpu") -> None:
        net: Any = UNet2DModel(
            sample_size=side,
            in_channels=channels,
            out_channels=channels,
            layers_per_block=2,
            block_out_channels=self.widths,
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        )
        self.model: nn.Module = net.to(device)
        self.lr, self.device = lr, device
        self.shape = (channels, side, side)
        self.noises: Any = DDPMScheduler(num_train_timesteps=1000)
        self.optimizer = torch.optim.AdamW(
            net.parameters(), lr=self.lr, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8
        )
        self.ema: Any = EMAModel(
            net.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75
        )
        self.steps = 0

    @override
    def step(self, images: Tensor, progress: float) -> None:
        eps = torch.randn(images.shape).to(self.device)
        t = torch.randint(0, 1000, (len(images),)).to(self.device)
        noisy = self.noises.add_noise(images, eps, t)
        loss = F.mse_loss(self.model(noisy, t, return_dict=False)[0], eps)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        warm = min(1.0, self.steps / self.warm_up)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * warm * 0.5 * (1 + math.cos(math.pi * progress))
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.step(self.model.parameters())
        self.steps += 1

    @override
    @torch.no_grad()
    def sample(self, n: int, seed: int) -> Tensor:
        self.ema.copy_to(self.model.parameters())
        self.model.eval()
        scheduler: Any = DDIMScheduler.from_config(self.noises.config)
        scheduler.set_timesteps(50)
        noise = torch.randn(n, *self.shape, generator=torch.Generator().manual_seed(seed))
        parts = []
        for x in noise.to(self.device).split(250):
            for t in scheduler.timesteps:
                eps = self.model(x, t, return_dict=False)[0]
                x = scheduler.step(eps, t, x, eta=0.0).prev_sample
            parts.append(x.clamp(-1, 1).cpu())
        return torch.cat(parts)
