"""What stands above, beside and over the pictures of a run."""

from __future__ import annotations

import torch
from PIL import Image

from ddpm_lightning.callbacks import SampleGrid
from ddpm_lightning.callbacks.loss_by_timestep import draw_losses
from ddpm_lightning.diffusion.samplers import DDIM
from ddpm_lightning.diffusion.schedules import Cosine
from ddpm_lightning.plots.pictures import strip_rows
from ddpm_lightning.plots.strips import captioned
from tests.small import conditional_fit, logged_fit


def test_a_strip_of_ten_classes_shows_each_once():
    classes = torch.arange(10).repeat_interleave(8)
    assert classes[strip_rows(len(classes))].tolist() == list(range(10))


def test_a_strip_has_levels_above_and_classes_beside_its_rows(tmp_path):
    grid = SampleGrid(n=20, columns=2, sampler=DDIM(2), frames=3)
    logged_fit(tmp_path / "plain", 1, grid)
    conditional_fit(tmp_path / "labels", SampleGrid(n=20, columns=2, sampler=DDIM(2), frames=3))
    sizes = []
    for name in ("plain", "labels"):
        (file,) = (tmp_path / name / "samples").glob("*_denoising_*.png")
        sizes.append(Image.open(file).size)
    # Tiles of 48 and borders of 2; a line of levels and one of the title, which wraps.
    assert sizes[0][0] == 3 * 50 + 2
    assert (sizes[0][1] - 2 - (10 * 50 + 2)) // 18 in (2, 3)
    assert sizes[1][0] == sizes[0][0] + 34


def test_captions_of_narrow_columns_neither_touch_nor_leave_the_picture():
    picture = captioned(torch.zeros(3, 32, 12 * 34, dtype=torch.uint8), ["t=1000"] * 12)
    ink = (picture[:, :18] < 128).any(0).any(0).tolist()  # by column of pixels
    assert not ink[0]
    assert not ink[-1]
    words = "".join(".#"[dark] for dark in ink).strip(".").split("." * 6)
    assert len([word for word in words if word]) == 6


def test_the_loss_curve_has_a_title():
    figure = draw_losses({"raw": [1.0, 2.0]}, Cosine(T=100), "validation at step 7")
    assert figure.get_suptitle() == "validation at step 7"
