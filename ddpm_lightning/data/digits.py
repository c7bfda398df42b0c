"""scikit-learn's handwritten digits: real data without a download."""

from __future__ import annotations

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
        from sklearn.datasets import load_digits  # here, because it takes half a second

        digits = load_digits()
        part = slice(TRAINING_IMAGES) if split == "train" else slice(TRAINING_IMAGES, None)
        images = np.round(digits.images[part] * (255 / 16)).astype(np.uint8)
        labels = digits.target[part].astype(np.int64)
        return torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels)
