"""check: what a folder of images consists of, before training on it."""

from __future__ import annotations

import io
import shlex
import time
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from ddpm_lightning.cli import main
from ddpm_lightning.data.survey import look
from ddpm_lightning.images.duplicates import (
    APART,
    BITS,
    difference_hash,
    near,
    thumbnail,
)
from tests.small import fail


def photograph(k: int, size: int = 72) -> Image.Image:
    """A smooth image, another one for every k."""
    random = np.random.default_rng(k)
    small = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return small.resize((size, size), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path):
    """Twelve images of two classes, a copy in another format, a JPEG of one, a damaged file."""
    root = tmp_path / "set"
    for k in range(12):
        (root / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
        photograph(k).save(root / "ab"[k % 2] / f"{k:02}.png")
    photograph(3).save(root / "b" / "copy.bmp")
    photograph(4).save(root / "a" / "near.jpg", quality=85)
    (root / "a" / "cut.webp").write_bytes(b"RIFF")
    return root


def test_check_says_what_a_folder_consists_of(folder, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    main(["check", str(folder), "--out", str(sheet), "--workers", "0", "--size", "64"])
    said = capsys.readouterr().out
    for line in (
        "images: 14 of 15 can be used",
        " MB (14 train)",
        "formats: 12 PNG, 1 JPEG, 1 BMP",
        "modes: 14 RGB",
        "sizes (width × height): 14 72×72",
        "classes: 2, by number: 0 a (7), 1 b (7)",
        "exact duplicates: 1 in 1 groups: b/03.png = b/copy.bmp",
        "1 in 1 groups: a/04.png = a/near.jpg",
        "1 file cannot be used: a/cut.webp: no PNG, JPEG",
        f"contact sheet: {sheet} (14 images at 64×64)",
    ):
        assert line in said, line
    with Image.open(sheet) as image:
        assert image.size == (2 + 8 * 66, 2 + 2 * 66)


@pytest.mark.slow
def test_the_command_that_check_prints_trains(folder, tmp_path, capsys):
    main(["check", str(folder), "--out", str(tmp_path / "s.png"), "--workers", "0"])
    words = shlex.split(capsys.readouterr().out.strip().splitlines()[-1])
    assert words[:3] == ["python", "-m", "ddpm_lightning"]
    small = ["--model.net", "SmallUNet", "--trainer.max_steps", "1", "--data.size", "16"]
    small += ["--trainer.limit_val_batches", "0", "--grid", "null", "--trainer.callbacks", "[]"]
    small += ["--data.workers", "0", "--trainer.accelerator", "cpu"]
    with pytest.warns(UserWarning, match="left out: 1 file cannot be used"):
        main([*words[3:], *small, "--trainer.default_root_dir", str(tmp_path / "run")])
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("cuda", "fit --config folder --data.root {} --data.size 64"),
        ("cpu", "fit --config folder_small --data.root {} --data.size 32"),
    ],
)
def test_a_small_network_is_proposed_where_there_is_no_gpu(
    device, words, folder, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("ddpm_lightning.commands.check.fastest_device", lambda: device)
    main(["check", str(folder), "--out", str(tmp_path / "s.png"), "--workers", "0"])
    assert words.format(folder) in capsys.readouterr().out


def test_grey_images_are_proposed_as_grey(tmp_path, capsys):
    for k in range(3):
        photograph(k, 20).convert("L").convert("RGB").save(tmp_path / f"{k}.png")
    main(["check", str(tmp_path), "--out", str(tmp_path / "x" / "s.png"), "--workers", "0"])
    assert "--data.size 16 --data.channels 1 " in capsys.readouterr().out


def test_a_folder_without_images_is_one_line(tmp_path, capsys):
    assert "holds no PNG" in fail(capsys, "check", str(tmp_path))


def test_a_contact_sheet_that_cannot_be_written_is_refused_before_reading(folder, capsys):
    assert "ends in .png" in fail(capsys, "check", str(folder), "--out", "sheet.jpg")
    line = fail(capsys, "check", str(folder), "--out", str(folder / "a" / "00.png" / "s.png"))
    assert "nothing can be written into" in line


def test_near_duplicates_are_those_of_comparing_all_pairs():
    random = np.random.default_rng(0)
    images = [photograph(k) for k in range(30)]
    for k in range(20):  # altered by more and more noise
        noise = random.normal(0, 0.7 * k, (72, 72, 3))
        images.append(Image.fromarray((np.asarray(images[k]) + noise).clip(0, 255).astype("u1")))
    images += [photograph(0).rotate(90), Image.new("RGB", (9, 9)), Image.new("RGB", (20, 20))]
    hashes = np.stack([difference_hash(one) for one in images])
    thumbnails = np.stack([thumbnail(one) for one in images])

    def alike(a: int, b: int) -> bool:
        apart = thumbnails[a].astype(float) - thumbnails[b]
        bits = int((hashes[a] != hashes[b]).sum())
        return bits <= BITS and (apart**2).mean() ** 0.5 <= APART

    pairs = {pair for pair in combinations(range(len(images)), 2) if alike(*pair)}
    assert 10 < len(pairs) < 25
    assert (len(images) - 2, len(images) - 1) in pairs
    assert {tuple(group) for group in near(hashes, thumbnails)} == pairs  # none is in two


def test_icons_are_compared_as_they_are_seen_and_not_by_what_transparency_hides():
    seen = []
    for k in range(12):
        alpha = np.asarray(photograph(k).convert("L"))
        icon = np.zeros((72, 72, 4), np.uint8)
        icon[..., 3] = alpha
        content = io.BytesIO()
        Image.fromarray(icon).save(content, "PNG")
        seen.append(look(k, content.getvalue()))
    hashes, small = (np.stack([getattr(x, part) for x in seen]) for part in ("hash", "thumbnail"))
    assert near(hashes, small) == []


def test_thousands_of_alike_images_are_grouped_in_seconds():
    hashes = np.zeros((3000, 64), bool)
    thumbnails = np.random.default_rng(0).integers(100, 104, (3000, 16, 16, 3), dtype=np.uint8)
    hashes[2000:, :32] = True  # another group
    start = time.perf_counter()
    assert near(hashes, thumbnails) == [[*range(2000)], [*range(2000, 3000)]]
    assert time.perf_counter() - start < 10  # a minute and more, pair by pair


def test_a_file_damaged_behind_its_first_frame_has_one():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    content = io.BytesIO()
    frames[0].save(content, "GIF", save_all=True, append_images=frames[1:])
    cut = content.getvalue()[:54]
    with Image.open(io.BytesIO(cut)) as image, pytest.raises(IndexError):
        _ = image.n_frames
    assert (look(0, cut).frames, look(0, content.getvalue()).frames) == (1, 3)
