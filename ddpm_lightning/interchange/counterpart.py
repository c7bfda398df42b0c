"""What every pair of a network here and a class of diffusers states."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor

from ddpm_lightning.batch import DataSpec
from ddpm_lightning.errors import InputError
from ddpm_lightning.networks import Network

Weights = dict[str, Tensor]
"""Tensors by name."""


class Counterpart(ABC):
    """A network here and the class of diffusers that computes the same."""

    ours: ClassVar[type[Network]]
    theirs: ClassVar[str]
    """Name of their class, which is compared and never imported."""

    part: ClassVar[str]
    """Name of the network in a pipeline, and of its folder."""

    always_null: ClassVar[bool] = False
    """Whether their label table always has a last row for no class."""

    pipeline: ClassVar[str | None]
    """The pipeline that samples with it as it is; None: there is none."""

    def fits(self, config: dict[str, Any]) -> bool:
        """Whether this is the pair for a configuration of their class."""
        return True

    @abstractmethod
    def config(self, net: Network) -> dict[str, Any]:
        """Write their configuration of a network; raise InputError if they have no such one."""

    @abstractmethod
    def exported(self, net: Network, weights: Weights) -> Weights:
        """Convert weights of a network to theirs."""

    @abstractmethod
    def without_labels(self, config: dict[str, Any], weights: Weights, row: int) -> Weights:
        """Make exported weights those of a network that takes no labels, and so its config.

        Args:
            config: Their configuration, which is changed.
            weights: Their weights.
            row: The row of the label table that the network keeps.
        """

    @abstractmethod
    def without_variance(self, config: dict[str, Any], weights: Weights, channels: int) -> Weights:
        """Make exported weights those of a network of as many output channels; config follows."""

    @abstractmethod
    def imported(self, net: Network, weights: Weights) -> Weights:
        """Convert their weights to those of a network here, whose tensors may be on meta."""

    @abstractmethod
    def settings(self, config: dict[str, Any], where: str) -> dict[str, Any]:
        """Complete their configuration; raise InputError if a key is not understood."""

    @abstractmethod
    def arguments(self, settings: dict[str, Any], where: str) -> dict[str, Any]:
        """Give the arguments of our network; raise InputError if it has no such one."""

    @abstractmethod
    def label_rows(self, settings: dict[str, Any], null_label: bool) -> int | None:
        """Number of classes without the null label; None: no labels."""


def renamed(
    weights: Weights, ours: Iterable[str], name_of: Callable[[str], str], where: str
) -> Weights:
    """Rename weights by the names of another library; all of them must be needed.

    Raises InputError: A tensor is missing or left over.
    """
    left = dict(weights)
    found: Weights = {}
    for name in ours:
        theirs = name_of(name)
        if theirs not in left:
            raise InputError(f"{where} lacks the tensor {theirs}")
        found[name] = left.pop(theirs)
    if left:
        listed = ", ".join(sorted(left)[:4]) + (" …" if len(left) > 4 else "")
        raise InputError(f"{where} has tensors that its configuration has no place for: {listed}")
    return found


def check_only_x(data: DataSpec, theirs: str) -> None:
    """Raise InputError if a network is given images or tokens beside x, which theirs is not."""
    for name in ("image_channels", "token_width"):
        if getattr(data, name):
            raise InputError(
                f"{theirs} takes no condition images or tokens, and this network has "
                f"{name} {getattr(data, name)}; --format safetensors can hold it"
            )


def halves_swapped(weight: Tensor) -> Tensor:
    """The weight [out, in] of a layer for inputs whose halves, sines and cosines, are swapped."""
    return torch.cat(weight.chunk(2, dim=1)[::-1], dim=1)
