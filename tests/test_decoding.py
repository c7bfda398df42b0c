"""Files of every kind become 8 bits of the size and channels asked for, or say why not."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from ddpm_lightning.errors import InputError
from ddpm_lightning.images.decoding import Decoding

RANDOM = np.random.default_rng(0)
RGB = RANDOM.integers(0, 256, (6, 4, 3), dtype=np.uint8)  # H = 6, W = 4


def saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(content: bytes, channels: int = 3, size=(6, 4), **settings) -> np.ndarray:
    """Decode to [H, W, C]."""
    return Decoding(channels, size, **settings)(content).permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("WEBP", {"lossless": True}), ("GIF", {})],
)
def test_lossless_formats_keep_every_pixel(kind, options):
    few = RGB // 128 * 255  # eight colours, which a palette holds
    assert np.array_equal(pixels(saved(Image.fromarray(few), kind, **options)), few)


def test_a_jpeg_is_what_pillow_reads():
    content = saved(Image.fromarray(RGB), "JPEG", quality=90)
    assert np.array_equal(pixels(content), np.asarray(Image.open(io.BytesIO(content))))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_of_sixteen_bits_is_scaled_and_rounded(kind):
    values = RANDOM.integers(0, 65536, (6, 4), dtype=np.uint16)
    grey = pixels(saved(Image.fromarray(values), kind), channels=1)[..., 0]
    assert np.array_equal(grey, np.round(values / 257.0).astype(np.uint8))


def test_cmyk_becomes_rgb():
    cmyk = RANDOM.integers(0, 256, (6, 4, 4), dtype=np.uint8)
    rgb = pixels(saved(Image.fromarray(cmyk, "CMYK"), "TIFF"))
    ink = cmyk.astype(float) / 255
    assert np.abs(rgb - 255 * (1 - ink[..., :3]) * (1 - ink[..., 3:])).max() <= 1.5


@pytest.mark.parametrize(("background", "colour"), [("white", 255), ("#400000", (64, 0, 0))])
def test_transparency_is_laid_on_the_background(background, colour):
    alpha = RANDOM.integers(0, 256, (6, 4, 1), dtype=np.uint8)
    content = saved(Image.fromarray(np.concatenate([RGB, alpha], 2)), "PNG")
    share = alpha / 255.0
    expected = share * RGB + (1 - share) * np.array(colour)
    assert np.abs(pixels(content, background=background) - expected).max() <= 1


def test_four_channels_keep_the_transparency():
    rgba = RANDOM.integers(0, 256, (6, 4, 4), dtype=np.uint8)
    assert np.array_equal(pixels(saved(Image.fromarray(rgba), "PNG"), channels=4), rgba)


def test_a_transparent_colour_of_a_palette_is_background():
    image = Image.new("P", (4, 6), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.putpixel((0, 0), 0)
    read = pixels(saved(image, "PNG", transparency=0))
    assert read[0, 0].tolist() == [255] * 3
    assert read[1, 1].tolist() == [10, 20, 30]


def test_a_photograph_is_turned_as_its_exif_says():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    content = saved(Image.fromarray(RGB), "PNG", exif=exif)
    assert np.array_equal(pixels(content, size=(4, 6)), np.rot90(RGB, -1))


def test_the_first_frame_of_an_animation_is_taken():
    first, second = (Image.new("RGB", (4, 6), colour) for colour in ("red", "blue"))
    content = saved(first, "GIF", save_all=True, append_images=[second])
    assert (pixels(content) == [255, 0, 0]).all()


def smooth(height: int, width: int) -> Image.Image:
    y, x = np.mgrid[:height, :width] / 20
    return Image.fromarray((127 + 120 * np.sin(x + 2 * y)).astype(np.uint8))


@pytest.mark.parametrize("shape", [(64, 96), (96, 64), (70, 70)])
def test_cover_is_torchvisions_resize_and_centre_crop(shape):
    image = smooth(*shape)
    theirs = transforms.CenterCrop(32)(transforms.Resize(32)(image))
    ours = pixels(saved(image, "PNG"), 1, (32, 32))[..., 0].astype(int)
    assert np.abs(ours - np.asarray(theirs)).max() <= 1


def test_pad_keeps_the_whole_image_between_margins():
    white = saved(Image.new("L", (20, 40), 200), "PNG")
    read = pixels(white, 1, (10, 10), resize="pad", background="black")[..., 0]
    columns = [0, 0, *[200] * 5, 0, 0, 0]
    assert sorted(read[4].tolist()) == sorted(columns)
    assert (read == read[4]).all()


def test_stretch_takes_the_whole_image():
    read = pixels(saved(smooth(40, 80), "PNG"), 1, (20, 20), resize="stretch")[..., 0]
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(np.asarray(smooth(40, 80)).copy())[None, None].float(),
        (20, 20),
        mode="bilinear",
        antialias=True,
    )
    assert np.abs(read - theirs[0, 0].numpy()).max() <= 1


def test_none_cuts_the_centre_out_of_the_pixels():
    read = pixels(saved(Image.fromarray(RGB), "PNG"), size=(2, 2), resize="none")
    assert np.array_equal(read, RGB[2:4, 1:3])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"GIF89a and no more", "damaged|no PNG"),
        (b"no image at all", "no PNG, JPEG"),
        (saved(Image.fromarray(RGB), "PNG")[:60], "damaged"),
        (saved(Image.fromarray(RGB[..., 0].astype(np.float32)), "TIFF"), "32 bits"),
    ],
)
def test_what_cannot_be_decoded_says_why(content, message):
    with pytest.raises(InputError, match=message):
        pixels(content)


def test_an_image_below_the_size_cut_out_is_refused():
    with pytest.raises(InputError, match="4×6 pixels, smaller than the 8×8"):
        pixels(saved(Image.fromarray(RGB), "PNG"), size=(8, 8), resize="none")


@pytest.mark.parametrize("settings", [{"channels": 2}, {"background": "whitish"}])
def test_settings_that_mean_nothing_are_refused(settings):
    with pytest.raises(InputError):
        Decoding(**{"channels": 3, "size": (4, 4)} | settings)
