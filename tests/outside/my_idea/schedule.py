import math

import torch

from ddpm_lightning.diffusion import Schedule


class Circle(Schedule):
    """alpha and sigma run along a quarter of the circle, evenly.

    Args:
        T: Number of noise levels.
    """

    def __init__(self, T: int = 1000) -> None:
        angle = torch.linspace(0, math.pi / 2, T + 1, dtype=torch.float64)
        super().__init__(angle.cos(), angle.sin())
