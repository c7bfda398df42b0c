"""Data around data: what passes through, in any number of layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from ddpm_lightning.data import (
    MNIST,
    CachedLatents,
    Captioned,
    Conditioned,
    ImageFolder,
    SuperResolution,
)
from ddpm_lightning.data.data_module import identity
from ddpm_lightning.data.image_set import ImageSet
from ddpm_lightning.data.wrapper import DataWrapper, innermost, layers
from ddpm_lightning.errors import InputError
from ddpm_lightning.loaded import DataPlace, described_data
from tests.small import tiny_data

NAMES = [f"a {digit}" for digit in range(10)]


class Around(DataWrapper, ImageSet):
    """All as inside."""


def in_three_layers() -> Captioned:
    return Captioned(Around(CachedLatents(tiny_data(), "latents")), NAMES)


def test_what_a_wrapper_leaves_alone_is_as_inside():
    inside = Captioned(tiny_data(flip=True, seed=3), NAMES)
    around = Around(inside)
    assert around.spec == inside.spec
    assert around.captions("val") == inside.captions("val")
    assert torch.equal(around.images("test")[0], inside.images("test")[0])
    batch, expected = next(iter(around.train_dataloader())), next(iter(inside.train_dataloader()))
    assert torch.equal(batch.x0, expected.x0)
    assert batch.captions == expected.captions


def test_the_layers_are_listed_from_the_outside_in():
    names = [type(layer).__name__ for layer in layers(in_three_layers())]
    assert names == ["Captioned", "Around", "CachedLatents", "Digits"]
    assert innermost(in_three_layers()).subset == 64


def test_a_checkpoint_is_told_where_its_data_is_below_any_layers():
    saved = Captioned(Around(CachedLatents(MNIST("before"), "before")), NAMES).describe()
    data = described_data(Path("x.ckpt"), saved, DataPlace(root="here", folder="there"))
    assert innermost(data).root == Path("here")
    assert data.data.data.folder == Path("there")


def test_a_place_that_no_layer_takes_is_refused():
    saved = Captioned(Around(tiny_data()), NAMES).describe()
    with pytest.raises(InputError, match=r"Digits takes no folder; leave out --data\.folder"):
        described_data(Path("x.ckpt"), saved, DataPlace(folder="there"))


@pytest.mark.parametrize("wrap", [lambda data: CachedLatents(data, "latents"), Around])
def test_a_folder_that_is_the_data_set_is_part_of_what_is_around_it(wrap, tmp_path):
    made = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "one.png")
        made.append(identity(wrap(ImageFolder(str(tmp_path / name), size=8))))
    assert made[0] != made[1]


def test_where_latents_lie_is_no_part_of_what_they_are():
    data = tiny_data()
    assert identity(Around(CachedLatents(data, "a"))) == identity(Around(CachedLatents(data, "b")))


def test_conditioned_data_are_no_images_by_themselves():
    assert not isinstance(Conditioned(tiny_data(), SuperResolution(2)), ImageSet)
