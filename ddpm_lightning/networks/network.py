"""The seam between the diffusion mathematics and what learns."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from ddpm_lightning.configurable import Configurable

NULL_LABEL = -1
"""The label that says "no class": rows that carry it are denoised unconditionally."""


class Network(Configurable, nn.Module, ABC):
    """The learned function F(x, c_noise, y) inside a denoiser.

    The first three arguments of every network are ``in_channels``, ``out_channels`` and
    ``num_classes`` (None: unconditional); the trainer fills them in from the data.
    """

    @abstractmethod
    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None) -> Tensor:
        """Evaluate the network.

        Args:
            x: [B, in_channels, ...] scaled noisy input.
            c_noise: [B] float noise coordinate; t − 1 for the discrete-time parameterizations.
            y: [B] int64 class labels in 0…num_classes − 1, or −1 for the null label (a learned
                row of its own); None means the null label for every row. Ignored by an
                unconditional network.

        Returns:
            [B, out_channels, ...]
        """

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise InputError, with the fix, if data of this shape [C, ...] does not fit."""
