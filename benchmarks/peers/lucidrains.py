"""lucidrains' denoising-diffusion-pytorch, with the settings of its Trainer.

Source: Unet, GaussianDiffusion and Trainer of denoising_diffusion_pytorch.py, 2.3.4; a Trainer
itself reads its images from a folder and has no limit of time.
"""

from __future__ import annotations

from typing import Any

import torch
from denoising_diffusion_pytorch import GaussianDiffusion, Unet
from ema_pytorch import EMA
from torch import Tensor, nn
from typing_extensions import override

from benchmarks.peers.peer import Peer


class Lucidrains(Peer):
    """A Unet of 2.6 M weights on grey images: width 32 with multipliers 1, 2, 4.

    Adam with betas (0.9, 0.99) at a constant rate, batches of 16, gradients clipped to 1, EMA
    0.995 every 10 steps; v is predicted on 1000 levels of the sigmoid schedule, the defaults of
    GaussianDiffusion.

    Args:
        channels: Channels of the images.
        side: Their height and width.
        lr: Learning rate; the default is the Trainer's.
        device: Where it is trained.
    """

    name = "lucidrains"
    batch_size = 16
    width = 32
    multipliers = (1, 2, 4)

    def __init__(self, channels: int, side: int, lr: float = 1e-4, device: str = "cpu") -> None:
        net = Unet(dim=self.width, dim_mults=self.multipliers, channels=channels)
        diffusion: Any = GaussianDiffusion(
            net, image_size=side, timesteps=1000, sampling_timesteps=50
        )
        self.model: nn.Module = diffusion.to(device)
        self.device = device
        self.optimizer = torch.optim.Adam(diffusion.parameters(), lr=lr, betas=(0.9, 0.99))
        self.ema: Any = EMA(diffusion, beta=0.995, update_every=10)

    @override
    def step(self, images: Tensor, progress: float) -> None:
        loss = self.model((images + 1) / 2)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update()

    @override
    @torch.no_grad()
    def sample(self, n: int, seed: int) -> Tensor:
        torch.manual_seed(seed)
        model = self.ema.ema_model.eval()
        parts = [model.sample(batch_size=min(250, n - i)) for i in range(0, n, 250)]
        return torch.cat(parts).cpu().clamp(0, 1) * 2 - 1
