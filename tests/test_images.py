"""Images in files, and between [−1, 1] and 8 bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lightning.errors import InputError
from ddpm_lightning.images import from_uint8, read_image, read_mask, to_uint8


def test_all_256_values_survive_the_round_trip():
    values = torch.arange(256, dtype=torch.uint8)
    x = from_uint8(values)
    assert x.dtype == torch.float32
    assert (x.min(), x.max()) == (-1.0, 1.0)
    assert torch.equal(to_uint8(x), values)


def test_values_round_and_out_of_range_clamps_instead_of_wrapping():
    x = torch.tensor([-1.5, -1.02, -1.0, -0.9961, 0.0, 0.0039, 0.999, 1.0, 1.02, 9.0])
    expected = [0, 0, 0, 0, 128, 128, 255, 255, 255, 255]
    assert to_uint8(x).tolist() == expected


def write(path: Path, array, mode: str | None = None) -> Path:
    Image.fromarray(np.asarray(array, dtype=np.uint8)).convert(mode).save(path)
    return path


def test_files_are_read_to_the_data_s_range_and_shape(tmp_path):
    grey = np.arange(256).reshape(16, 16)
    image = read_image(write(tmp_path / "grey.png", grey), (1, 16, 16))
    np.testing.assert_allclose(image[0], grey / 127.5 - 1, atol=1e-6)
    colour = np.arange(4 * 6 * 3).reshape(4, 6, 3)
    image = read_image(write(tmp_path / "colour.png", colour), (3, 4, 6))
    np.testing.assert_allclose(image, colour.transpose(2, 0, 1) / 127.5 - 1, atol=1e-6)
    assert read_image(tmp_path / "grey.png", (3, 16, 16)).shape == (3, 16, 16)


def test_a_mask_is_white_where_it_is_brighter_than_half(tmp_path):
    mask = read_mask(write(tmp_path / "m.png", [[0, 127], [128, 255]], "RGB"), (3, 2, 2))
    assert mask.tolist() == [[[False, False], [True, True]]]
    with pytest.raises(InputError, match=r"m.png has no white pixel"):
        read_mask(write(tmp_path / "m.png", np.zeros((2, 2))), (3, 2, 2))


@pytest.mark.parametrize(
    ("size", "shape", "message"),
    [
        ((32, 28), (1, 8, 8), r"28×32 pixels \(width × height\), but .*\.resize\(\(8, 8\)\)"),
        ((8, 8, 3), (1, 8, 8), r"is RGB, but .*\.convert\('L'\)"),
        ((8, 8, 4), (3, 8, 8), "is RGBA, but images of 3 channel"),  # nothing drops silently
        ((8, 8), (2, 8, 8), "no image file has the 2 channels"),
    ],
)
def test_files_of_another_size_or_kind_are_refused_with_the_fix(tmp_path, size, shape, message):
    with pytest.raises(InputError, match=message):
        read_image(write(tmp_path / "a.png", np.zeros(size)), shape)


def test_files_that_are_no_images_are_refused(tmp_path):
    whole = write(tmp_path / "a.png", np.zeros((8, 8))).read_bytes()
    for content, message in (
        (None, "no image at"),
        (whole[:45], "is damaged"),
        (b"no image", "is not a PNG, JPEG"),
    ):
        path = tmp_path / "b.png"
        if content is not None:
            path.write_bytes(content)
        for read in (read_image, read_mask):
            with pytest.raises(InputError, match=message):
                read(path, (1, 8, 8))
