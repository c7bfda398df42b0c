"""The extractor that suits a data set, where none is named."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ddpm_lightning.errors import InputError
from ddpm_lightning.metrics.colour import ColourNet
from ddpm_lightning.metrics.features import FeatureExtractor
from ddpm_lightning.metrics.inception import Inception
from ddpm_lightning.metrics.lenet import LeNet

REASONS: dict[type[FeatureExtractor], str] = {
    LeNet: "for grey images",
    Inception: "for colour images, since its weights are on this machine",
    ColourNet: "for colour images, since Inception's weights are not on this machine",
}


def chosen_extractor(
    asked: FeatureExtractor | Literal["auto"], shape: Sequence[int]
) -> FeatureExtractor:
    """Choose by the shape [C, H, W] of the images; an extractor that is named stays.

    ``auto`` is LeNet for grey images; for colour it is Inception if its published weights lie in
    torch hub's cache already, else ColourNet. Nothing is downloaded.

    Raises InputError: Images that are neither grey nor RGB.
    """
    if isinstance(asked, FeatureExtractor):
        return asked
    if shape[0] == 1:
        return LeNet()
    if shape[0] != 3:
        raise InputError(
            f"extractor auto knows grey and RGB images, not {list(shape)}; use Pixels "
            "(--extractor Pixels, in training --metrics.extractor Pixels) or one of your own"
        )
    inception = Inception()
    return inception if inception.is_here else ColourNet()


def choice_in_words(chosen: FeatureExtractor) -> str:
    """Say what ``auto`` chose, and why, in a line."""
    return f"extractor auto: {type(chosen).__name__} ({chosen.name}) {REASONS[type(chosen)]}"
