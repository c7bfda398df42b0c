"""Shapes: grammar, pictures, the reader, and the measured agreement of text and pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from ddpm_lightning.data import Digits, Shapes
from ddpm_lightning.data.compositions import COMPOSITIONS, Composition, Thing
from ddpm_lightning.data.shape_reader import agreement, read_pictures, things_of
from ddpm_lightning.data.shapes import RGB, draw, pictures_of
from ddpm_lightning.errors import InputError
from ddpm_lightning.images import to_uint8
from ddpm_lightning.metrics import Comparison, Features, LeNet, ShapeReader, TextAlignment

ASKED = Composition.read("a small red ring left of a large blue square")


@pytest.fixture(scope="module")
def shapes():
    return Shapes()


def painted(*things) -> torch.Tensor:
    """Draw with Pillow, at eight times the size: (kind, colour, x, y, radius) each."""
    big = Image.new("RGB", (192, 192), "white")
    pen = ImageDraw.Draw(big)
    for kind, colour, x, y, radius in things:
        left, top, right, bottom = (
            8 * v for v in (x - radius, y - radius, x + radius, y + radius)
        )
        if kind == "square":
            pen.rectangle((left, top, right - 1, bottom - 1), fill=RGB[colour])
        elif kind == "triangle":
            pen.polygon([(left, bottom), (right, bottom), (8 * x, top)], fill=RGB[colour])
        else:
            pen.ellipse((left, top, right, bottom), fill=RGB[colour])
            if kind == "ring":
                hole = 4 * radius
                box = (8 * x - hole, 8 * y - hole, 8 * x + hole, 8 * y + hole)
                pen.ellipse(box, fill="white")
    small = np.asarray(big.resize((24, 24), Image.Resampling.BOX))
    return torch.from_numpy(small.copy()).permute(2, 0, 1)[None]


RIGHT = painted(("ring", "red", 5, 12, 3), ("square", "blue", 17, 13, 5))


def test_every_caption_is_read_as_what_it_says():
    assert [Composition.read(str(one)) for one in COMPOSITIONS[::37]] == [*COMPOSITIONS[::37]]


def test_the_grammar_says_nothing_twice():
    assert len({str(one) for one in COMPOSITIONS}) == len(COMPOSITIONS) == 48 + 48 * 4 * 48


@pytest.mark.parametrize("text", ["red ring", "a pink ring", "a red ring near a blue disc", ""])
def test_other_texts_are_no_captions(text):
    with pytest.raises(InputError, match="is no caption of Shapes; they are like 'a red ring'"):
        Composition.read(text)


@pytest.mark.slow
def test_what_is_left_out_is_in_every_test_picture_and_in_no_other(shapes):
    for split in ("train", "val", "test"):
        captions = shapes.captions(split)
        share = np.mean(["green ring" in one or "yellow triangle" in one for one in captions])
        assert share == (split == "test")


def test_with_nothing_left_out_the_test_split_shows_everything():
    captions = Shapes(left_out=[]).captions("test")
    assert {word for one in captions for word in one.split()} >= {
        "green",
        "ring",
        "above",
        "small",
    }
    assert any("green ring" not in one for one in captions)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"left_out": ["pink ring"]}, "'pink ring' is no colour and shape; give some of"),
        ({"flip": True}, r"a mirrored picture is not what its caption says; .*--data\.flip"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Shapes(**settings)


def test_a_picture_depends_on_its_index_alone(shapes):
    again = pictures_of.__wrapped__("test", tuple(shapes.left_out))
    assert torch.equal(again[0], shapes.images("test")[0])


@pytest.mark.slow
def test_the_reader_reads_every_real_picture(shapes):
    images, labels = shapes.images("val")
    readings = read_pictures(images[:200])
    for reading, label in zip(readings, labels[:200].tolist(), strict=True):
        assert False not in agreement(reading, COMPOSITIONS[label]).values()


@pytest.mark.parametrize("kind", ["square", "disc", "triangle", "ring"])
@pytest.mark.parametrize(("size", "radius"), [("small", 3), ("large", 5)])
def test_the_reader_reads_what_another_program_draws(kind, size, radius):
    reading = read_pictures(painted((kind, "green", 9.5, 13, radius)))[0]
    (seen,) = things_of(reading)
    assert (seen.colour, seen.shape, seen.size) == ("green", kind, size)
    assert abs(seen.x - 9.5) < 0.6
    assert abs(seen.y - 13) < 0.6


@pytest.mark.parametrize(
    ("picture", "wrong"),
    [
        (RIGHT, set()),
        (painted(("ring", "blue", 5, 12, 3), ("square", "red", 17, 13, 5)), {"colour"}),
        (painted(("disc", "red", 5, 12, 3), ("square", "blue", 17, 13, 5)), {"shape"}),
        (painted(("ring", "red", 7, 12, 5), ("square", "blue", 18, 12, 5)), {"size"}),
        (painted(("ring", "red", 20, 12, 3), ("square", "blue", 7, 13, 5)), {"position"}),
        (painted(("ring", "red", 12, 4, 3), ("square", "blue", 13, 16, 5)), {"position"}),
        (
            painted(("ring", "red", 5, 12, 3)),
            {"count", "colour", "shape", "size", "position"},
        ),
    ],
)
def test_each_attribute_is_wrong_by_itself(picture, wrong):
    found = agreement(read_pictures(picture)[0], ASKED)
    assert {name for name, right in found.items() if not right} == wrong


def test_nothing_is_asked_of_what_a_caption_does_not_say():
    reading = read_pictures(painted(("ring", "red", 9, 9, 3)))[0]
    found = agreement(reading, Composition(Thing(None, "red", "ring")))
    assert found["size"] is None
    assert found["position"] is None


def test_noise_and_blots_have_no_shape():
    torch.manual_seed(0)
    noise = to_uint8(torch.rand(4, 3, 24, 24) * 2 - 1)
    readings = read_pictures(noise)
    assert not any(all(agreement(one, ASKED).values()) for one in readings)
    blot = painted(("square", "red", 6, 12, 3), ("square", "red", 11.5, 12.2, 3))
    (seen,) = things_of(read_pictures(blot)[0])
    assert seen.shape is None


def test_things_of_two_neither_touch_nor_leave_the_picture():
    labels = np.arange(48, len(COMPOSITIONS), 97)
    pictures = draw(labels, np.random.Generator(np.random.Philox(key=[5, 5])))
    readings = read_pictures(torch.from_numpy(pictures))
    assert (readings[:, 0] == 2).all()


def test_alignment_is_the_share_of_what_was_asked():
    wrong = painted(("ring", "blue", 5, 12, 3), ("square", "red", 17, 13, 5))
    readings = Features(read_pictures(torch.cat([RIGHT, RIGHT, RIGHT, wrong])))
    labels = torch.full((4,), COMPOSITIONS.index(ASKED))
    scores = TextAlignment()(Comparison(readings, readings, labels))
    assert {name: score.value for name, score in scores.items()} == {
        "alignment": 0.75,
        "alignment_count": 1.0,
        "alignment_colour": 0.75,
        "alignment_shape": 1.0,
        "alignment_size": 1.0,
        "alignment_position": 1.0,
    }


def test_alignment_needs_the_reader_pictures_that_it_reads_and_captions(shapes):
    metric, reader = TextAlignment(), ShapeReader()
    with pytest.raises(InputError, match="--extractor ShapeReader"):
        metric.check(LeNet(), 10)
    with pytest.raises(InputError, match="the model takes no text"):
        metric.check_labels(reader, shapes, None)
    with pytest.raises(InputError, match="reads pictures of Shapes, not of Digits"):
        metric.check_labels(reader, Digits(), torch.tensor([1]))
    with pytest.raises(InputError, match="a prompt is none of the captions"):
        metric.check_labels(reader, shapes, torch.tensor([1, -1]))
