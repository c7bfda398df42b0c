"""How far images are apart in the features of a network that was trained to recognise objects."""

from __future__ import annotations

import textwrap
from abc import ABC, abstractmethod
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from ddpm_lightning.configurable import Configurable
from ddpm_lightning.errors import InputError, above

SOURCE = "https://download.pytorch.org/models/vgg16-397923af.pth"

BLOCKS = (4, 9, 16, 23, 30)
"""Where the five blocks of VGG-16's layers end, each with its last ReLU."""

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's pixels in [0, 1], by which its inputs are normalised."""


class Perceptual(Configurable, ABC):
    """A distance of images that is added to the loss of an autoencoder.

    Attributes:
        weight: Its factor in the loss.
    """

    weight: float

    @abstractmethod
    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """The distance of images x from y, both [B, C, H, W] in [−1, 1]: [B]."""

    def prepare(self, shape: tuple[int, ...]) -> None:
        """Read what is needed for images [C, H, W], before training begins."""


class VGG(Perceptual):
    """Distance in the features of VGG-16 (Johnson et al. 2016, eq. 2).

    The features of the last layer of each of the five blocks have unit length in every pixel, as
    in LPIPS (Zhang et al. 2018, eq. 1), whose learned weights are left out here; squared
    differences are averaged over the pixels, and summed over channels and blocks. Grey images are
    shown as colour.

    Args:
        path: The weights, as torchvision publishes them: vgg16-397923af.pth. Read for training
            only; a checkpoint holds the place, not the weights.
        weight: Factor in the loss.

    Raises:
        InputError: The weight is not above 0; in training: the file does not hold the weights, or
            the images are smaller than 16×16.
    """

    def __init__(self, path: str, weight: float = 0.1) -> None:
        above(0, self, weight=weight)
        self.path = path
        self.weight = weight
        self._blocks: list[nn.Module] = []

    @override
    def prepare(self, shape: tuple[int, ...]) -> None:
        if shape[0] not in (1, 3) or min(shape[1:]) < 16:
            raise InputError(
                f"VGG takes grey or colour images of 16×16 pixels or more, not {list(shape)}; "
                "leave out --model.perceptual"
            )
        if not self._blocks:
            layers = _read(Path(self.path).expanduser())
            starts = (0, *BLOCKS[:-1])
            self._blocks = [layers[a:b] for a, b in zip(starts, BLOCKS, strict=True)]

    @override
    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        self.prepare(tuple(x.shape[1:]))
        total = torch.zeros(len(x), device=x.device)
        h = torch.cat([_normalised(x), _normalised(y)])
        for block in self._blocks:
            h = block.to(x.device)(h)
            a, b = F.normalize(h.float(), dim=1).chunk(2)
            total = total + (a - b).square().sum(1).flatten(1).mean(1)
        return total


def _normalised(x: Tensor) -> Tensor:
    mean, deviation = (x.new_tensor(one).view(3, 1, 1) for one in (MEAN, DEVIATION))
    return ((x + 1) / 2 - mean) / deviation  # grey images become [B, 3, H, W] here


def _read(path: Path) -> nn.Sequential:
    """Build the convolutions of VGG-16 around the tensors of a file; one with code is refused."""
    from torchvision.models.vgg import cfgs, make_layers

    ways = f"download {SOURCE} there, or state its place: --model.perceptual.path PATH"
    if not path.is_file():
        raise InputError(f"VGG: there is no file {path}; {ways}")
    with torch.random.fork_rng(devices=[]):  # its initial weights are not our randomness
        layers: nn.Sequential = make_layers(cfgs["D"])
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        prefix = "features."
        layers.load_state_dict(
            {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}
        )
    except Exception as error:  # a damaged file can fail in any way
        reason = textwrap.shorten(str(error), width=200, placeholder=" …")
        raise InputError(
            f"{path} does not hold the plain weights of torchvision's VGG-16: {reason}; {ways}"
        ) from error
    for layer in layers:
        if isinstance(layer, nn.ReLU):
            layer.inplace = False  # the features before are needed, too
    return layers.eval().requires_grad_(False)
