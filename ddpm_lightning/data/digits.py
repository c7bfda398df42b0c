"""scikit-learn's handwritten digits: real data without a download."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from ddpm_lightning.data.image_data import ImageData, OfficialSplit

TRAINING_IMAGES = 1500


class Digits(ImageData):
    """scikit-learn's 1,797 handwritten digits, 8 × 8 grey (150 held out by default).

    There is no official split; here the first 1,500 are for training and the last 297 for
    testing. Values 0…16 become round(value · 255 / 16). ``root`` and ``download`` have no effect.
    """

    native_shape = (1, 8, 8)
    num_classes = 10
    default_held_out = 150

    @override
    def read(self, split: OfficialSplit) -> tuple[Tensor, Tensor]:
        part = slice(TRAINING_IMAGES) if split == "train" else slice(TRAINING_IMAGES, None)
        table = np.loadtxt(_file(), delimiter=",")[part]  # [N, 65]: the pixels, and the class
        images = np.round(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
        return torch.from_numpy(images), torch.from_numpy(table[:, -1].astype(np.int64))


def _file() -> Path:
    """The file that sklearn.datasets.load_digits reads, found without half a second's import."""
    package: Any = find_spec("sklearn")
    return Path(package.origin).with_name("datasets") / "data" / "digits.csv.gz"
