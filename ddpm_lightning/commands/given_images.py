"""The images that a conditioned model is given: what sample --condition does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ddpm_lightning.batch import Condition
from ddpm_lightning.data.conditioned import Conditioned
from ddpm_lightning.errors import InputError
from ddpm_lightning.images import list_images
from ddpm_lightning.loaded import Loaded


@dataclass(frozen=True, eq=False)
class GivenImages:
    """Condition images, repeated along the index of the samples; empty for most models.

    They are pairs of ``data`` and, where it is known, made from the truth [M, C, H, W].
    """

    condition: Condition = Condition()
    data: Conditioned | None = None
    truth: Tensor | None = None

    def bands(self, n: int) -> dict[str, Tensor]:
        """What a grid of n samples shows above each and, if it is known, below."""
        if self.data is None:
            return {}
        shown = self.data.shown(self.condition)
        assert shown is not None
        rows = torch.arange(n) % len(shown)
        bands = {"above": shown[rows]}
        return bands if self.truth is None else bands | {"below": self.truth[rows]}

    def agreement(self, x: Tensor) -> str:
        """Say how well samples [n, C, H, W] agree with their conditions and the truth.

        Empty where the truth is not known, for then the task may have had other chances.
        """
        if self.truth is None or self.data is None:
            return ""
        count = len(self.truth)
        rows = torch.arange(len(x)) % count
        condition, truth = self.condition.rows(rows), self.truth[rows]
        shown = self.data.shown(condition)
        assert condition.image is not None
        assert shown is not None
        made = self.data.task(x, rows)
        error = 127.5 * float((made - condition.image).square().mean().sqrt())
        return (
            f"against the {count} true images: PSNR {psnr(x, truth):.2f} dB (of the "
            f"conditions as shown {psnr(shown, truth):.2f} dB); conditions made from the samples "
            f"are {error:.2f} of 255 off their own (root mean square)"
        )


def given_images(loaded: Loaded, files: list[Path] | None, n: int) -> GivenImages:
    """Find the images for n samples: files and folders of such, or the first of the test split.

    Raises InputError: There are no images, they do not suit, or the model takes none.
    """
    if not loaded.module.data.image_channels:
        if files is not None:
            raise InputError(
                f"{loaded.path} makes images out of noise alone; leave out --condition"
            )
        return GivenImages()
    data = loaded.data
    if not isinstance(data, Conditioned):
        raise InputError(f"{type(data).__name__} cannot show what it gives; it is no Conditioned")
    if files is None:
        batch = data.finished("test", n)
        return GivenImages(batch.condition, data, batch.x0)
    found = [one for path in files for one in (list_images(path) if path.is_dir() else [path])]
    images = torch.stack([data.task.read(file, data.shape) for file in found])
    return GivenImages(Condition(image=images), data)


def psnr(x: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio 10·log10(2² / MSE) of images in [−1, 1], averaged over them."""
    errors = (x - truth).square().flatten(1).mean(1)
    return float((10 * torch.log10(4 / errors.clamp(min=1e-10))).mean())
