"""The extractor that suits a data set, where none is named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    asked: FeatureExtractor | Literal["auto"],
    shape: Sequence[int],
    agreed: Callable[[bool], bool] = bool,
) -> FeatureExtractor:
    """Choose by the shape [C, H, W] of the images; an extractor that is named stays.

    ``auto`` is LeNet for grey images; for colour it is Inception if its published weights lie in
    torch hub's cache already, else ColourNet. Nothing is downloaded.

    Args:
        asked: An extractor, or auto.
        shape: Of an image.
        agreed: Turns this process's answer to whether the weights are here into one of all
            processes: yes if all have them.

    Raises:
        InputError: Images that are neither grey nor RGB.
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
    return inception if agreed(inception.is_here) else ColourNet()


def chosen_before(name: str, agreed: Callable[[bool], bool] = bool) -> FeatureExtractor:
    """Return the extractor that ``auto`` chose when a run began, by the name of its class.

    Raises InputError: It never chooses such a one, or the weights are not here any more.
    """
    chosen = next((cls() for cls in REASONS if cls.__name__ == name), None)
    if chosen is None:
        raise InputError(f"the checkpoint's extractor {name!r:.40} is none that auto chooses")
    if isinstance(chosen, Inception) and not agreed(chosen.is_here):
        raise InputError(
            f"the run began with {name} ({chosen.name}) as extractor auto, whose weights are not "
            f"at {chosen.path} any more; --metrics.extractor {name} downloads them (95 MB), with "
            "--metrics.extractor.weights PATH it takes them from another place, and "
            "--metrics.extractor ColourNet goes on with other numbers (fd_colour)"
        )
    return chosen


def choice_in_words(chosen: FeatureExtractor, kept: bool = False) -> str:
    """Say what ``auto`` chose, or a resumed run has kept, and why, in a line."""
    why = "as when the run began" if kept else REASONS[type(chosen)]
    return f"extractor auto: {type(chosen).__name__} ({chosen.name}) {why}"
