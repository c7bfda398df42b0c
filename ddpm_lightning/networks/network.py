"""The base class of the networks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ddpm_lightning.batch import Condition, DataSpec
from ddpm_lightning.configurable import Configurable
from ddpm_lightning.errors import InputError


class Network(Configurable, nn.Module, ABC):
    """The learned function F(x, c_noise, condition) inside a denoiser.

    The first two arguments of every network are ``data``, which it keeps as an attribute, and
    ``out_channels``; both follow from the data module and the variance.
    """

    data: DataSpec
    image_patch: int = 0
    """Side of the patches in which attention reads the condition's image; 0: it is stacked."""

    self_conditioning: bool = False
    """Whether it is shown an earlier estimate of x0, see diffusion/self_conditioning.py."""

    @property
    def takes_tokens(self) -> bool:
        """Whether it reads ``condition.tokens``."""
        return False

    @property
    def in_channels(self) -> int:
        """Channels of x, and of the image and the estimate of x0 stacked onto it."""
        channels = self.data.shape[0] * (2 if self.self_conditioning else 1)
        return channels + (0 if self.image_patch else self.data.image_channels)

    @abstractmethod
    def forward(self, x: Tensor, c_noise: Tensor, condition: Condition = Condition()) -> Tensor:
        """Evaluate the network in the dtype of its weights: [B, out_channels, ...].

        Args:
            x: [B, C, ...] scaled noisy samples, c_in·x_t.
            c_noise: [B] float noise coordinate; t − 1 for the discrete-time parameterizations.
            condition: ``condition.label`` is int64 [B] in 0…num_classes − 1, or −1 for the null
                label (a learned row of its own), which is also what a missing label means;
                without classes it is ignored. ``condition.image`` is stacked onto x unscaled, and
                so is ``condition.estimate`` where the network has self_conditioning.
                ``condition.tokens`` of ``data.token_width`` are read by cross-attention, where the
                network has some; without tokens the caption is null.
        """

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise InputError, with the fix, if samples of this shape [C, ...] do not fit."""

    def stack_image(self, x: Tensor, condition: Condition) -> Tensor:
        """Concatenate x [B, C, ...] and the condition's image to [B, in_channels, ...].

        An image that attention reads is left out, but must fit, too. With self-conditioning the
        estimate of x0 comes last, 0 where there is none.
        """
        self.check_shape(tuple(x.shape[1:]))
        network, image, channels = type(self).__name__, condition.image, self.data.image_channels
        if x.shape[1] != self.data.shape[0]:
            raise InputError(
                f"{network} was built for {self.data.shape[0]} channels, not {x.shape[1]}"
            )
        shape = None if image is None else tuple(image.shape)
        expected = (len(x), channels, *x.shape[2:]) if channels else None
        if shape != expected:
            raise InputError(
                f"the shape of condition.image is {shape}; {network}, built for image_channels="
                f"{channels}, needs {expected} beside x of shape {tuple(x.shape)}"
            )
        parts = [x] if image is None or self.image_patch else [x, image.to(x.dtype)]
        if self.self_conditioning:
            estimate = condition.estimate
            parts.append(torch.zeros_like(x) if estimate is None else estimate.to(x.dtype))
        return torch.cat(parts, dim=1) if len(parts) > 1 else x


def through(block: Callable[..., Any], *inputs: Any, recompute: bool = False) -> Any:
    """Call a block of a network; with recompute the backward pass computes its activations again.

    They are not kept then, and have the same dropout masks the second time (Chen et al. 2016,
    "Training deep nets with sublinear memory cost"). Without gradients nothing is kept anyway.
    """
    if recompute and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)
