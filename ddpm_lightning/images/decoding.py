"""Decoding image files of many kinds to 8 bits, one size and one number of channels."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError
from torch import Tensor

from ddpm_lightning.errors import InputError
from ddpm_lightning.images.image_file import (
    BITS_PER_SAMPLE,
    FORMATS,
    KINDS,
    MODES,
    ORIENTATION,
    channels_first,
)

Resize = Literal["cover", "pad", "stretch", "none"]

PHOTOMETRIC = 262
"""Tag of a TIFF; 0 means that 0 is white."""


@dataclass(frozen=True)
class Decoding:
    """Decoding of the bytes of an image file to uint8 [C, H, W].

    The first frame is taken and turned as EXIF says. Grey of 16 bits is scaled by 255 / 65535; of
    16 bits in colour Pillow keeps the upper 8, which is at most 1 of 255 less. CMYK, YCbCr and
    palettes are converted to RGB, RGB to grey by ITU-R BT.601; colour profiles are not applied.
    Transparency is laid on the background, unless there are 4 channels.

    Args:
        channels: 1 (grey), 3 (RGB) or 4 (RGBA).
        size: H and W.
        resize: How to reach the size: cover (scaled so that it covers the size, the centre is
            cut out), pad (scaled to fit inside, the rest is background), stretch (each side by its
            own), none (the centre is cut out unscaled). Scaling is bilinear and antialiased.
        background: A colour by name or #rrggbb.

    Raises:
        InputError: The channels or the colour are none.
    """

    channels: int
    size: tuple[int, int]
    resize: Resize = "cover"
    background: str = "white"

    def __post_init__(self) -> None:
        if self.channels not in MODES:
            raise InputError(f"channels {self.channels}: give 1 (grey), 3 (RGB) or 4 (RGBA)")
        try:
            ImageColor.getrgb(self.background)
        except ValueError as error:
            raise InputError(
                f"background {self.background!r} is no colour; give e.g. white or '#808080'"
            ) from error

    def __call__(self, content: bytes) -> Tensor:
        """Decode the bytes of a file; raise InputError with what is wrong with them."""
        return channels_first(self.image(content))

    def image(self, content: bytes) -> Image.Image:
        """Decode the bytes of a file, as a call does, to Pillow's L, RGB or RGBA."""
        image = decoded(content)
        try:
            return self._sized(self._converted(image))
        except (ValueError, OSError) as error:
            raise InputError(f"{image.mode} cannot be converted ({error})") from error

    def _converted(self, image: Image.Image) -> Image.Image:
        """Convert to L, RGB or RGBA."""
        mode = MODES[self.channels]
        if is_transparent(image):
            image = image.convert("RGBA")
            if mode != "RGBA":
                colour = ImageColor.getcolor(self.background, "RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, colour), image)
        elif image.mode not in ("1", "L", "RGB"):  # because P to L would skip the palette
            image = image.convert("RGB")
        return image if image.mode == mode else image.convert(mode)

    def _sized(self, image: Image.Image) -> Image.Image:
        height, width = self.size
        if image.size == (width, height):
            return image
        filter_ = Image.Resampling.BILINEAR
        if self.resize == "cover":
            return ImageOps.fit(image, (width, height), filter_)
        if self.resize == "stretch":
            return image.resize((width, height), filter_)
        if self.resize == "pad":
            colour = ImageColor.getcolor(self.background, image.mode)
            return ImageOps.pad(image, (width, height), filter_, colour)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        if left < 0 or top < 0:
            raise InputError(
                f"{image.width}×{image.height} pixels, smaller than the {width}×{height} that are "
                "cut out"
            )
        return image.crop((left, top, left + width, top + height))


def is_transparent(image: Image.Image) -> bool:
    """Whether an image has an alpha channel or a transparent colour."""
    return image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info


def decoded(content: bytes) -> Image.Image:
    """Decode the first frame of a file's bytes, upright, in a mode of 8 bits.

    Raises InputError: With what is wrong with the file, without its name.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            upright = _eight_bits(image)
            ImageOps.exif_transpose(upright, in_place=True)  # because a copy takes time
            return upright
    except UnidentifiedImageError as error:
        reason = f"no {KINDS} image" if content else "empty"
        raise InputError(reason) from error
    except InputError:
        raise
    except (Image.DecompressionBombError, MemoryError) as error:
        raise InputError(f"too large to be read ({error})") from error
    except Exception as error:  # Pillow meets damage with errors of any kind
        raise InputError(f"damaged ({str(error) or type(error).__name__})") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """Read the pixels, and scale those of 9 to 16 bits to 8."""
    image.load()
    if not image.mode.startswith("I") and image.mode != "F":
        return image
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(BITS_PER_SAMPLE, (16,))[0]
    if image.mode == "F" or bits > 16:
        raise InputError(f"{image.mode}, 32 bits, whose range no file states; scale it to 8 or 16")
    top = 2**bits - 1
    values = np.asarray(image).astype(np.int64)
    if tags.get(PHOTOMETRIC) == 0:
        values = top - values
    grey = Image.fromarray(((values * 510 + top) // (2 * top)).clip(0, 255).astype(np.uint8))
    grey.getexif()[ORIENTATION] = image.getexif().get(ORIENTATION, 1)
    return grey
