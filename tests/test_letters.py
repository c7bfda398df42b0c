"""Letters drawn from fonts: the same each time, and what their labels say."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pytest
import torch

from ddpm_lightning.configurable import build
from ddpm_lightning.data import Letters
from ddpm_lightning.data.letters import COUNTS, LETTERS
from ddpm_lightning.errors import InputError


@pytest.fixture(scope="module")
def letters():
    return Letters(held_out=1040)


@pytest.mark.slow
def test_letters_are_drawn_the_same_each_time(letters):
    for mine, again in zip(letters.images("test"), Letters().images("test"), strict=True):
        assert torch.equal(mine, again)


@pytest.mark.slow
def test_every_letter_occurs_as_often_and_none_is_blank_or_twice(letters):
    images, labels = letters.images("train")
    assert images.shape == (COUNTS["train"] - 1040, 1, 28, 28)
    assert torch.equal(labels.bincount(), torch.full((26,), 360))
    assert images.flatten(1).max(1).values.min() > 150
    assert len(torch.unique(images.flatten(1), dim=0)) == len(images)


@pytest.mark.slow
def test_test_letters_are_nearest_to_training_letters_of_their_class(letters):
    images, labels = letters.images("train")
    others, truth = letters.images("test")
    train, test = images.flatten(1).float(), others.flatten(1).float()
    guess = labels[torch.cdist(test, train).argmin(1)]
    assert (guess == truth).float().mean() > 0.8


def test_a_checkpoint_states_the_settings_that_are_passed_on():
    stated = Letters(case="both", held_out=26).describe()
    assert stated["class_path"] == "ddpm_lightning.data.Letters"
    assert (
        stated["init_args"].items() >= {"font_folder": None, "held_out": 26, "subset": 1.0}.items()
    )
    assert build(stated).describe() == stated


@pytest.mark.slow
def test_the_cases_are_drawn_differently():
    upper, lower = (Letters(case=case).images("test")[0].float() for case in ("upper", "lower"))
    assert upper.mean() > 1.1 * lower.mean()


def test_letters_are_drawn_from_a_folder_of_fonts(tmp_path):
    font = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    (tmp_path / "one.TTF").write_bytes(font.read_bytes())
    images, labels = Letters(font_folder=str(tmp_path)).images("test")
    assert (len(images), len(LETTERS)) == (2080, int(labels.max()) + 1)


@pytest.mark.parametrize("content", [None, b"no font"])
def test_a_folder_without_fonts_is_refused(tmp_path, content):
    if content:
        (tmp_path / "a.ttf").write_bytes(content)
    with pytest.raises(InputError, match=r"holds no \.ttf|a\.ttf is no font"):
        Letters(font_folder=str(tmp_path)).images("test")
