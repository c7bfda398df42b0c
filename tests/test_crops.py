"""Random crops: the pixels of a part of the image, chosen by the numbers given."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms import RandomResizedCrop as Theirs

from ddpm_lightning.data.crops import CentreCrop, RandomCrop, RandomResizedCrop, resample
from ddpm_lightning.data.stream import Layout, Places, TrainingStream
from ddpm_lightning.errors import InputError

IMAGES = torch.randint(256, (40, 3, 15, 10), dtype=torch.uint8, generator=torch.manual_seed(0))


def draws(crop, n=40):
    return torch.rand(n, crop.draws, dtype=torch.float64, generator=torch.manual_seed(1))


def test_a_random_crop_is_a_window_of_its_image_and_every_place_occurs():
    crop = RandomCrop(enlarge=1.25)
    size = (12, 8)
    assert crop.stored(size) == (15, 10)
    cropped = crop(IMAGES, draws(crop), size)
    seen = set()
    for image, window in zip(IMAGES, cropped, strict=True):
        places = [
            (y, x)
            for y in range(4)
            for x in range(3)
            if torch.equal(image[:, y : y + 12, x : x + 8], window)
        ]
        seen.update(places)
        assert len(places) == 1
    assert len(seen) == 12


def test_resampling_a_box_is_interpolating_what_was_cut_out():
    boxes = torch.tensor([[0, 0, 15, 10], [2, 3, 9, 7], [14, 9, 1, 1], [0, 5, 4, 5]])
    ours = resample(IMAGES[:4], boxes, (8, 8))
    for image, (top, left, height, width), got in zip(IMAGES, boxes.tolist(), ours, strict=False):
        part = image[None, :, top : top + height, left : left + width].float()
        theirs = F.interpolate(part, (8, 8), mode="bilinear", antialias=True)[0]
        assert (got - theirs).abs().max() <= 1.02  # rounded twice


def test_resampling_does_not_depend_on_the_batch():
    crop = RandomResizedCrop()
    boxes = crop.boxes(draws(crop), (15, 10))
    alone = [resample(IMAGES[k : k + 1], boxes[k : k + 1], (12, 8)) for k in range(40)]
    assert torch.equal(torch.cat(alone), resample(IMAGES, boxes, (12, 8)))


@pytest.mark.slow
@pytest.mark.parametrize("stored", [(80, 80), (30, 120), (120, 30)])
def test_boxes_are_distributed_as_torchvisions(stored):
    crop = RandomResizedCrop(scale=(0.3, 1.0))
    ours = crop.boxes(draws(crop, 4000), stored).double()
    torch.manual_seed(0)
    image = torch.empty(1, *stored)
    theirs = [Theirs.get_params(image, [0.3, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)]
    other = torch.tensor(theirs, dtype=torch.float64)
    error = (ours.var(0) / 4000 + other.var(0) / 4000).sqrt()
    assert ((ours.mean(0) - other.mean(0)).abs() <= 4 * error + 1e-9).all()
    assert (ours[:, :2] + ours[:, 2:] <= torch.tensor(stored)).all()
    assert ours[:, :2].min() >= 0


def test_areas_and_ratios_lie_within_their_bounds():
    crop = RandomResizedCrop(scale=(0.8, 1.0))
    height, width = crop.boxes(draws(crop, 1000), (200, 200))[:, 2:].double().unbind(1)
    assert (height * width / 200**2).min() >= 0.79
    assert (width / height).log().abs().max() <= math.log(4 / 3) + 0.02


def test_evaluation_sees_the_whole_image_or_its_centre():
    whole = RandomResizedCrop().view(IMAGES, (12, 8))
    theirs = F.interpolate(IMAGES.float(), (12, 8), mode="bilinear", antialias=True)
    assert (whole.float() - theirs).abs().max() <= 1.02  # rounded twice
    assert torch.equal(RandomCrop().view(IMAGES, (13, 8)), IMAGES[:, :, 1:14, 1:9])
    assert torch.equal(CentreCrop().view(IMAGES, (15, 10)), IMAGES)


@pytest.mark.parametrize(
    "make",
    [
        lambda: RandomCrop(enlarge=1.0),
        lambda: RandomResizedCrop(enlarge=0.9),
        lambda: RandomResizedCrop(scale=(0.9, 0.8)),
        lambda: RandomResizedCrop(ratio=(0.0, 1.0)),
    ],
)
def test_crops_that_choose_nothing_are_refused(make):
    with pytest.raises(InputError):
        make()


def test_a_random_crop_with_nothing_to_choose_at_its_size_is_refused():
    with pytest.raises(InputError, match=r"stores 32×32 .* give e\.g\. 1\.25"):
        RandomCrop(enlarge=1.01).stored((32, 32))
    assert RandomCrop(enlarge=1.01).stored((64, 32)) == (65, 32)


@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (1, 3), (2, 3)])
def test_the_numbers_of_a_row_do_not_depend_on_processes_and_accumulation(world, accumulate):
    def steps(layout: Layout) -> list[Places]:
        stream = TrainingStream(40, layout, iter, seed=5, crop_draws=3)
        return [stream.places(step, m) for step in range(4) for m in range(layout.accumulate)]

    alone = steps(Layout(12))
    parts = [steps(Layout(12, rank, world, accumulate)) for rank in range(world)]
    for step, whole in enumerate(alone):
        span = range(step * accumulate, (step + 1) * accumulate)
        rows = [parts[rank][k] for k in span for rank in range(world)]
        assert np.array_equal(np.concatenate([one.crop for one in rows]), whole.crop)
    assert len(np.unique(np.concatenate([one.crop for one in alone]))) == 4 * 12 * 3
