"""One reader for every image file, and one listing for every folder of images."""

from __future__ import annotations

import os
import struct
import tracemalloc
import zipfile
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ddpm_lightning.errors import InputError
from ddpm_lightning.images import (
    ImageArchive,
    UniformFolder,
    images_at,
    list_images,
    read_image,
    read_mask,
    read_transparent,
    write_npz,
)

ORIENTATION = 0x0112
RAMP = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
SHAPE = (1, 8, 8)


def saved(image: Image.Image, path: Path, **options) -> Path:
    image.save(path, **options)
    return path


def turned(path: Path, pixels: np.ndarray, orientation: int) -> Path:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return saved(Image.fromarray(pixels), path, exif=exif)


def folder_of(images: list[Image.Image], folder: Path) -> Path:
    folder.mkdir()
    for k, image in enumerate(images):
        image.save(folder / f"{k}.png")
    return folder


READERS = {
    "image": lambda path: read_image(path, SHAPE),
    "mask": lambda path: read_mask(path, SHAPE),
    "transparent": lambda path: read_transparent(path, SHAPE),
    "folder": lambda path: UniformFolder(path.parent).read([path]),
}


# ---------------------------------------------------------------------------- bit depth


def sixteen_bit_rgb(path: Path) -> Path:
    """Pillow cannot write one, and reads it as 8-bit RGB without a word."""
    rows = b"".join(b"\0" + RAMP[k].repeat(3).astype(">u2").tobytes() for k in range(8))
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    data = b"\x89PNG\r\n\x1a\n"
    for name, content in chunks:
        checksum = struct.pack(">I", zlib.crc32(name + content))
        data += struct.pack(">I", len(content)) + name + content + checksum
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@pytest.mark.parametrize("colour", [False, True])
def test_more_than_eight_bits_are_refused_by_every_reader(reader, colour, tmp_path):
    path = tmp_path / "g16.png"
    sixteen_bit_rgb(path) if colour else saved(Image.fromarray(RAMP), path)
    with pytest.raises(InputError, match=r"more than 8 bits a channel; scale it"):
        reader(path)


def test_the_advice_for_sixteen_bits_scales_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = saved(Image.fromarray(RAMP), tmp_path / "g16.png")
    with pytest.raises(InputError) as caught:
        read_image(path, SHAPE)
    exec(str(caught.value).split('python -c "')[1].rsplit('"', 1)[0])
    assert np.array_equal(np.array(Image.open("new.png")), np.round(RAMP / 257))


# -------------------------------------------------------------------------- orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_an_image_is_turned_as_its_exif_says(orientation, suffix, tmp_path):
    pixels = np.zeros((16, 8), np.uint8)
    pixels[:8, :4] = 255  # white at the top left
    # What EXIF 2.3 says of the place of row 0 and column 0.
    wanted = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.T,
        6: np.rot90(pixels, -1),
        7: pixels[::-1, ::-1].T,
        8: np.rot90(pixels),
    }[orientation]
    (tmp_path / "f").mkdir()
    path = turned(tmp_path / "f" / f"a.{suffix}", pixels, orientation)
    image = read_image(path, (1, *wanted.shape))[0].numpy() > 0
    assert np.array_equal(image, wanted > 127)
    assert np.array_equal(read_mask(path, (1, *wanted.shape))[0].numpy(), wanted > 127)
    folder = UniformFolder(tmp_path / "f")
    assert folder.shape == (1, *wanted.shape)
    assert np.array_equal(folder.read(folder.files)[0, 0].numpy() > 127, wanted > 127)


def test_the_proposed_resize_is_of_the_upright_image(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = turned(tmp_path / "a.png", np.zeros((32, 20), np.uint8), 6)
    with pytest.raises(InputError, match="is 32×20 pixels") as caught:
        read_image(path, SHAPE)
    exec(str(caught.value).split("in Python: ")[1].replace("; ", "\n"), {"PIL": __import__("PIL")})
    assert read_image(Path("new.png"), SHAPE).shape == SHAPE


# ------------------------------------------------------------------------- transparency


def alpha_square() -> Image.Image:
    """White everywhere, opaque in four pixels."""
    pixels = np.full((8, 8, 4), 255, np.uint8)
    pixels[..., 3] = 0
    pixels[2:4, 2:4, 3] = 255
    return Image.fromarray(pixels)


def test_a_mask_with_transparent_pixels_is_refused_and_its_advice_keeps_them(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    path = saved(alpha_square(), tmp_path / "mask_rgba.png")
    with pytest.raises(InputError, match="has transparent pixels") as caught:
        read_mask(path, SHAPE)
    exec(str(caught.value).split('python -c "')[1].rsplit('"', 1)[0])
    assert int(read_mask(Path("mask.png"), SHAPE).sum()) == 4


def test_a_mask_with_an_opaque_alpha_channel_is_read(tmp_path):
    path = saved(Image.new("RGBA", (8, 8), (255, 255, 255, 255)), tmp_path / "m.png")
    assert bool(read_mask(path, SHAPE).all())


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_transparent_colour_is_refused_alike_by_image_and_folder(mode, tmp_path):
    key = 0 if mode == "L" else (0, 0, 0)
    path = saved(Image.new(mode, (8, 8)), tmp_path / "a.png", transparency=key)
    for read in (lambda: read_image(path, (len(mode), 8, 8)), lambda: UniformFolder(tmp_path)):
        with pytest.raises(InputError, match=f"{mode} with transparency"):
            read()


# -------------------------------------------------------------- frames, size, open files


def test_of_several_frames_the_first_is_taken_and_that_is_said(tmp_path):
    first, second = Image.new("L", (8, 8), 255), Image.new("L", (8, 8), 0)
    path = saved(first, tmp_path / "a.png", save_all=True, append_images=[second])
    with pytest.warns(UserWarning, match=r"a.png has 2 frames; the first is taken"):
        assert bool((read_image(path, SHAPE) == 1).all())
    with pytest.warns(UserWarning, match="1 images have several frames"):
        folder = UniformFolder(tmp_path)
    assert int(folder.read(folder.files).min()) == 255


def test_a_huge_image_is_not_called_damaged(tmp_path):
    path = tmp_path / "huge.png"
    Image.new("1", (20_000, 20_000)).save(path)
    with pytest.raises(InputError, match="too large to be read"):
        read_image(path, SHAPE)


def test_files_are_closed(tmp_path):
    path = saved(Image.new("L", (8, 8), 255), tmp_path / "a.png")
    before = set(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else set()
    for reader in READERS.values():
        try:
            reader(path)
        except InputError:
            assert reader is READERS["transparent"]
    with pytest.raises(InputError):
        read_image(path, (1, 9, 9))
    after = set(os.listdir("/proc/self/fd")) if before else set()
    assert len(after) == len(before)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_cut_and_flipped_files_are_read_or_refused_and_nothing_else(suffix, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    whole = saved(Image.fromarray(noise), tmp_path / f"a.{suffix}").read_bytes()
    random = np.random.default_rng(1)
    refused = 0
    for _ in range(150):
        content = bytearray(
            whole[: random.integers(len(whole)) if random.random() < 0.3 else None]
        )
        for place in random.integers(0, max(1, len(content)), 3):
            content[place : place + 1] = bytes([random.integers(256)])
        path = tmp_path / f"b.{suffix}"
        path.write_bytes(content)
        for reader in READERS.values():
            try:
                reader(path)
            except InputError as error:
                assert str(path) in str(error)  # noqa: PT017
                refused += 1
    assert refused > 100


# ------------------------------------------------------------------- which files of a folder


def images(count: int) -> list[Image.Image]:
    return [Image.new("L", (8, 8), k) for k in range(count)]


def test_hidden_names_are_no_images(tmp_path):
    folder = folder_of(images(3), tmp_path / "a")
    folder_of(images(2), folder / ".ipynb_checkpoints")
    (folder / "._0.png").write_bytes(b"\0\5\26\7")
    assert [file.name for file in list_images(folder)] == ["0.png", "1.png", "2.png"]


def test_links_are_followed_and_loops_end(tmp_path):
    folder = folder_of(images(2), tmp_path / "a")
    other = folder_of(images(3), tmp_path / "b")
    (folder / "more").symlink_to(other)
    (folder / "one.png").symlink_to(other / "0.png")
    (folder / "again").symlink_to(folder)
    (folder / "gone.png").symlink_to(tmp_path / "nowhere")
    found = [str(file.relative_to(folder)) for file in list_images(folder)]
    assert found == ["0.png", "1.png", "more/0.png", "more/1.png", "more/2.png", "one.png"]


def test_an_orientation_in_xmp_before_the_pixels_turns_the_image(tmp_path):
    text = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", text)
    pixels = np.arange(32, dtype=np.uint8).reshape(4, 8)
    path = saved(Image.fromarray(pixels), tmp_path / "a.png", pnginfo=info)
    seen = (read_image(path, (1, 8, 4)) + 1) * 127.5
    assert np.array_equal(seen[0].round(), np.rot90(pixels, -1))


def test_a_link_to_itself_is_no_image(tmp_path):
    image = saved(Image.new("L", (8, 8)), tmp_path / "a.png")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    assert list_images(tmp_path) == [image]


@pytest.mark.parametrize("n", [0, -2])
@pytest.mark.parametrize("name", ["folder", "a.npz"])
def test_no_images_and_fewer_are_refused(name, n, tmp_path):
    write_npz(tmp_path / "a.npz", torch.zeros(3, 1, 8, 8, dtype=torch.uint8))
    (tmp_path / "folder").mkdir()
    for k in range(3):
        saved(Image.new("L", (8, 8)), tmp_path / "folder" / f"{k}.png")
    with pytest.raises(InputError, match=f"n={n}: give 1 or more"):
        images_at(tmp_path / name, n)


def test_an_archive_of_a_folder_is_what_numpy_writes(tmp_path):
    images = torch.randint(256, (600, 3, 4, 5), dtype=torch.uint8)
    labels = torch.arange(600)
    for k, image in enumerate(images):
        saved(Image.fromarray(image.permute(1, 2, 0).numpy()), tmp_path / f"{k:03d}.png")
    write_npz(tmp_path / "a.npz", UniformFolder(tmp_path), labels)
    with np.load(tmp_path / "a.npz") as archive:
        assert archive["arr_0"].dtype == np.uint8
        assert np.array_equal(archive["arr_0"], images.permute(0, 2, 3, 1))
        assert np.array_equal(archive["arr_1"], labels)


def test_an_archive_is_read_and_written_in_little_more_memory_than_it_takes(tmp_path):
    images = torch.zeros(3000, 3, 128, 128, dtype=torch.uint8)
    size = images.numel()
    tracemalloc.start()
    try:
        write_npz(tmp_path / "a.npz", images)
        written = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        archive = ImageArchive(tmp_path / "a.npz")
        read = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(archive) == 3000
    assert (written < 0.3 * size, read < 1.5 * size) == (True, True)


def test_only_regular_files_are_images(tmp_path):
    folder = folder_of(images(1), tmp_path / "a")
    os.mkfifo(folder / "pipe.png")
    assert [file.name for file in list_images(folder)] == ["0.png"]


def test_images_of_other_endings_are_counted(tmp_path):
    folder = folder_of(images(2), tmp_path / "a")
    for name in ("a.avif", "b.AVIF", "c.gif", "notes.txt"):
        (folder / name).write_bytes(b"")
    with pytest.warns(UserWarning, match=r"2 images are read, 2 \.avif, 1 \.gif are left"):
        assert len(UniformFolder(folder)) == 2


@pytest.mark.parametrize("ending", ["png", "webp", "bmp", "tif", "gif"])
def test_pixels_of_every_lossless_format_are_those_saved(ending, tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(8, 8), dtype=np.uint8)
    colour = np.stack([pixels, pixels, pixels], -1)
    path = tmp_path / f"a.{ending}"
    Image.fromarray(colour).convert("RGB").save(
        path, **{"lossless": True} if ending == "webp" else {}
    )
    read = read_image(path, (3, 8, 8)).double().add(1).mul(127.5).round().numpy()
    assert np.array_equal(read, colour.transpose(2, 0, 1))
    if ending != "gif":  # an animation, as a rule
        assert np.array_equal(
            next(UniformFolder(tmp_path).batches(1))[0], colour.transpose(2, 0, 1)
        )


def test_a_colour_space_that_pillow_does_not_convert_is_named(tmp_path):
    Image.new("LAB", (8, 8)).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match=r"a\.tif: .*LAB.*; save it as RGB"):
        read_mask(tmp_path / "a.tif", (3, 8, 8))


def test_sixteen_bits_of_a_tiff_are_not_cut_off(tmp_path):
    Image.fromarray(np.full((8, 8), 300, dtype=np.uint16)).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match="more than 8 bits a channel"):
        read_image(tmp_path / "a.tif", (1, 8, 8))


def test_a_folder_of_other_endings_alone_says_what_it_holds(tmp_path):
    (tmp_path / "a.gif").write_bytes(b"")
    with pytest.raises(InputError, match=r"holds no PNG, .* image, but 1 \.gif"):
        list_images(tmp_path)


# --------------------------------------------------------------------------------- .npz


def test_an_archive_holds_what_was_written(tmp_path):
    pixels = torch.randint(256, (5, 3, 4, 6), dtype=torch.uint8)
    write_npz(tmp_path / "x.npz", pixels, torch.arange(5))
    with np.load(tmp_path / "x.npz") as file:
        assert np.array_equal(file["arr_0"], pixels.permute(0, 2, 3, 1).numpy())
        assert file["arr_1"].tolist() == [0, 1, 2, 3, 4]
    archive = images_at(tmp_path / "x.npz", 4)
    assert archive.shape == (3, 4, 6)
    assert torch.equal(torch.cat([*archive.batches(3)]), pixels[:4])
    assert torch.equal(archive.read([3, 0]), pixels[[3, 0]])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"arr_0": np.zeros((2, 8, 8, 3), np.float32)}, r"holds float32 \[2, 8, 8, 3\]; give"),
        ({"arr_0": np.zeros((2, 3, 8, 8), np.uint8)}, r"holds uint8 \[2, 3, 8, 8\]; give"),
        ({"arr_0": np.zeros((0, 8, 8, 3), np.uint8)}, r"holds uint8 \[0, 8, 8, 3\]; give"),
        ({"mu": np.zeros(3)}, "has no arr_0; give"),
        ({"arr_0": np.array([{}])}, "holds object"),
    ],
)
def test_an_archive_of_something_else_is_refused(arrays, message, tmp_path):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(InputError, match=message):
        images_at(tmp_path / "x.npz")


def test_a_flipped_or_cut_archive_is_refused(tmp_path):
    path = tmp_path / "x.npz"
    write_npz(path, torch.randint(256, (5, 3, 8, 8), dtype=torch.uint8))
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 2
    for content in (bytes(flipped), whole[:500], b"", b"PK"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"x\.npz is damaged or no \.npz"):
            images_at(path)


def test_an_archive_that_says_it_is_huge_asks_for_no_memory(tmp_path):
    head = BytesIO()
    shape = (10**9, 1000, 1000, 3)
    np.lib.format.write_array_header_1_0(
        head, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("arr_0.npy", head.getvalue())
    with pytest.raises(InputError, match="shorter than it says"):
        images_at(tmp_path / "x.npz")
