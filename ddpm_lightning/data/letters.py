"""Letters drawn from fonts: 26 classes without a download."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from typing_extensions import override

from ddpm_lightning.data.image_data import ImageData, OfficialSplit
from ddpm_lightning.errors import InputError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

SHIPPED = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
    *("cmr10", "cmb10", "cmss10", "cmtt10", "cmmi10"),
)
"""Fonts that come with matplotlib, less those of symbols."""

COUNTS: dict[OfficialSplit, int] = {"train": 10400, "test": 2080}
"""Images of each split, multiples of 26."""


class Letters(ImageData):
    """Letters A…Z drawn from fonts, 28 × 28, white on black (1,040 held out by default).

    10,400 are for training and 2,080 for testing, other drawings of the same fonts: each letter
    in every font in turn, at random sizes of 17 to 24 pixels, turned by up to 8° and moved by up
    to 2 pixels. The class is the letter, of either case. The drawings depend on the versions of
    the fonts, of Pillow and of NumPy alone. ``root`` and ``download`` have no effect.

    Args:
        font_folder: Folder of .ttf and .otf files to draw from, with its subfolders, e.g.
            /usr/share/fonts; default: 21 that come with matplotlib, and Pillow's own.
        case: upper, lower or both.
        **settings: Of ImageData.
    """

    native_shape = (1, 28, 28)
    num_classes = 26
    default_held_out = 1040

    def __init__(
        self,
        font_folder: str | None = None,
        case: Literal["upper", "lower", "both"] = "upper",
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.state_defaults(ImageData)
        self.font_folder = font_folder
        self.case = case

    @override
    def read(self, split: OfficialSplit) -> tuple[Tensor, Tensor]:
        random = np.random.Generator(np.random.Philox(key=[26, split == "test"]))
        n, fonts = COUNTS[split], _font_files(self.font_folder)
        labels = np.arange(n) % len(LETTERS)
        images = np.zeros((n, 1, 28, 28), dtype=np.uint8)
        for k, label in enumerate(labels):
            lower = self.case == "lower" or (self.case == "both" and bool(random.integers(2)))
            letter = LETTERS[label].lower() if lower else LETTERS[label]
            font = fonts[k // len(LETTERS) % len(fonts)]
            images[k, 0] = _drawn(letter, font, random)
        return torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64))


def _font_files(folder: str | None) -> list[Path | None]:
    """The fonts to draw from; None is Pillow's own."""
    if folder is None:
        shipped = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
        return [*(shipped / f"{name}.ttf" for name in SHIPPED), None]
    root = Path(folder).expanduser()
    found = sorted(path for path in root.rglob("*") if path.suffix.lower() in (".ttf", ".otf"))
    if not found:
        raise InputError(f"{root} holds no .ttf or .otf file; name a folder of fonts, or leave "
                         "--data.font_folder out for those of matplotlib and Pillow")  # fmt: skip
    return [*found]


def _drawn(letter: str, path: Path | None, random: np.random.Generator) -> np.ndarray:
    """Draw a letter: uint8 [28, 28]."""
    size, angle = int(random.integers(17, 25)), float(random.uniform(-8, 8))
    x, y = random.uniform(12, 16, 2).tolist()
    # Basic layout, because Raqm is in some builds of Pillow only.
    layout = ImageFont.Layout.BASIC
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont
    try:
        if path is None:
            font = ImageFont.load_default(size)
        else:
            font = ImageFont.truetype(str(path), size, layout_engine=layout)
    except OSError as error:
        raise InputError(f"{path} is no font that can be read ({error})") from error
    image = Image.new("L", (28, 28))
    left, top, right, bottom = font.getbbox(letter)
    corner = (x - (left + right) / 2, y - (top + bottom) / 2)
    ImageDraw.Draw(image).text(corner, letter, fill=255, font=font)
    return np.asarray(image.rotate(angle, Image.Resampling.BILINEAR))
