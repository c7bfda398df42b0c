"""Folders of image files as data: layouts, splits, stores, bad files, resume, checkpoints."""

from __future__ import annotations

import json
import multiprocessing
import warnings
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerStatus
from PIL import Image

from ddpm_lightning.configurable import build
from ddpm_lightning.data import Conditioned, ImageFolder, RandomCrop, RandomResizedCrop
from ddpm_lightning.data.conditioned import SuperResolution
from ddpm_lightning.data.data_module import identity
from ddpm_lightning.data.folder_listing import list_folder
from ddpm_lightning.errors import InputError
from ddpm_lightning.evaluation.real_images import RealImages
from ddpm_lightning.loaded import Loaded
from ddpm_lightning.resume import check_data
from ddpm_lightning.run_folder import last_checkpoint
from tests.small import assert_same_weights, fail, fit


def write(path: Path, value: int = 0, size=(8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(value)
    Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def root(tmp_path):
    """Forty images of two classes."""
    for k in range(40):
        write(tmp_path / "set" / "ab"[k % 2] / f"{k:02}.png", k)
    return tmp_path / "set"


def data(root: Path, **settings) -> ImageFolder:
    defaults = {"size": 8, "cache": str(root.parent / "cache"), "global_batch_size": 8}
    return ImageFolder(str(root), **defaults | {"workers": 0} | settings)


def names(one: ImageFolder, split: str = "train") -> list[str]:
    return [one.collection.names[row] for row in one.source(split).rows]


def classes_of(one: ImageFolder) -> dict[str, str]:
    found = one.collection
    return {n: found.classes[k] for n, k in zip(found.names, found.labels, strict=True)}


# ---------------------------------------------------------------------------- layouts


def test_a_flat_folder_has_no_classes(tmp_path):
    for k in range(4):
        write(tmp_path / f"{k}.png", k)
    assert (data(tmp_path).num_classes, len(data(tmp_path).collection)) == (None, 4)


def test_the_outermost_folder_is_the_class_at_any_depth(tmp_path):
    for name in ("cat/a.png", "cat/wild/b.JPG", "dog/x/y/c.png"):
        write(tmp_path / name)
    found = classes_of(data(tmp_path))
    assert found == {"cat/a.png": "cat", "cat/wild/b.JPG": "cat", "dog/x/y/c.png": "dog"}


def test_classes_named_by_numbers_are_in_their_order(tmp_path):
    for name in ("10", "9", "100"):
        write(tmp_path / name / "a.png")
    assert data(tmp_path).collection.classes == ("9", "10", "100")


def test_folders_train_val_and_test_are_splits(tmp_path):
    for name in ("train/a/1.png", "train/b/2.png", "valid/a/3.png", "test/b/4.png"):
        write(tmp_path / name)
    one = data(tmp_path)
    assert [names(one, s) for s in ("train", "val", "test")] == [
        ["train/a/1.png", "train/b/2.png"],
        ["valid/a/3.png"],
        ["test/b/4.png"],
    ]
    assert one.collection.classes == ("a", "b")


@pytest.mark.parametrize("folders", [("Train", "TEST"), ("training", "testing")])
def test_folders_of_splits_may_be_named_otherwise(tmp_path, folders):
    for k, name in enumerate(folders):
        write(tmp_path / name / "a" / f"{k}.png", k)
    one = data(tmp_path, held_out=0)
    assert one.collection.classes == ("a",)
    assert [names(one, s) for s in ("train", "test")] == [
        [f"{name}/a/{k}.png"] for k, name in enumerate(folders)
    ]


def test_the_overview_of_a_folder_of_samples_is_no_image_of_it(tmp_path):
    for name in ("0.png", "1.png", "grid.png"):
        write(tmp_path / name)
    assert list(data(tmp_path).collection.names) == ["0.png", "1.png"]


def test_classes_that_only_look_like_numbers_are_names(tmp_path):
    for name in ("--5", "7"):
        write(tmp_path / name / "a.png")
    assert data(tmp_path).collection.classes == ("--5", "7")


@pytest.mark.parametrize("separator", ["\u2028", "\x85"])
def test_a_text_may_hold_any_separator_of_lines(tmp_path, separator):
    text = f"one{separator}two"
    row = json.dumps({"file_name": "a.png", "text": text}, ensure_ascii=False)
    for name, written in {
        "metadata.csv": f"file_name,text\na.png,{text}",
        "metadata.jsonl": row,
    }.items():
        write(tmp_path / name / "a.png")
        (tmp_path / name / name).write_text(written, encoding="utf-8")
        assert list(list_folder(tmp_path / name).texts) == [text]


@pytest.mark.parametrize("name", ["a\0.png", "\ud800.png"])
def test_a_listed_name_that_no_file_can_have_is_a_bad_file(tmp_path, name):
    write(tmp_path / "b.png")
    lines = [json.dumps({"file_name": one}) for one in (name, "b.png")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"1 file cannot be used: .*no name of a file"):
        data(tmp_path).source("train")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "metadata.csv",
            'file_name,label,text\nx/a.png,dog,"a dog, sitting"\nb.png,cat,\n',
        ),
        (
            "metadata.jsonl",
            '{"file_name": "x/a.png", "label": "dog", "text": "a dog, sitting"}\n\n'
            '{"file_name": "b.png", "label": "cat"}\n',
        ),
    ],
)
def test_a_metadata_file_lists_images_labels_and_texts(tmp_path, name, text):
    for one in ("x/a.png", "b.png", "unlisted.png"):
        write(tmp_path / one)
    (tmp_path / name).write_text(text, encoding="utf-8")
    one = data(tmp_path)
    with pytest.warns(UserWarning, match="does not list 1 images"):
        assert list(one.collection.texts) == ["a dog, sitting", ""]
    assert classes_of(one) == {"x/a.png": "dog", "b.png": "cat"}


@pytest.mark.parametrize(
    ("files", "metadata", "message"),
    [
        ([], None, "holds no PNG"),
        (["notes.txt"], None, "it holds 1 .txt"),
        (["a.png", "cat/b.png"], None, "1 images have no class .a.png. and 1 have one"),
        (["test/a.png"], None, "none is left for training"),
        (["a.png"], "name\na.png\n", "line 2: no file_name, but name"),
        (["a.png"], "file_name\n", "metadata.csv lists no image"),
        (["a.png"], "file_name\n../a.png\n", "outside the folder"),
        (["a.png"], "file_name\na.png\na.png\n", "listed more than once: a.png"),
    ],
)
def test_folders_that_are_no_data_set_are_refused(tmp_path, files, metadata, message):
    for file in files:
        write(tmp_path / file) if file.endswith("png") else (tmp_path / file).write_text("x")
    if metadata:
        (tmp_path / "metadata.csv").write_text(metadata)
    with pytest.raises(InputError, match=message):
        _ = data(tmp_path).num_classes


def test_classes_may_be_left_out(tmp_path):
    write(tmp_path / "a.png")
    write(tmp_path / "cat" / "b.png")
    assert data(tmp_path, classes=False).num_classes is None


# ----------------------------------------------------------------------------- splits


def test_held_out_images_are_of_all_classes_and_not_trained_on(root):
    one = data(root, held_out=10)
    train, val = names(one), names(one, "val")
    assert (len(train), len(val), {*train} & {*val}) == (30, 10, set())
    assert {name[0] for name in val} == {"a", "b"}
    assert names(one, "test") == val


def test_a_subset_leaves_the_held_out_images_alone(root):
    part, whole = data(root, held_out=10, subset=0.5), data(root, held_out=10)
    assert {*names(part)} < {*names(whole)}
    assert (len(names(part)), names(part, "val")) == (15, names(whole, "val"))


def test_no_held_out_image_and_no_folder_for_validation_is_refused(root):
    one = data(root, held_out=0)
    assert len(names(one)) == 40
    with pytest.raises(InputError, match="no image is left for the val split"):
        one.val_dataloader()


# ----------------------------------------------------------------------------- stores

STORES = ({"store": "mapped"}, {"store": "streamed"}, {"store": "streamed", "workers": 2})


@pytest.mark.parametrize("crop", [RandomCrop(), RandomResizedCrop()], ids=["crop", "resized crop"])
def test_batches_are_the_same_from_memory_a_mapped_file_and_workers(root, crop):
    settings = {"crop": crop, "flip": True, "seed": 3, "size": [8, 6]}

    def batches(**store):
        one = data(root, **settings | store)
        one.prepare_data()
        return list(islice(one.train_dataloader(), 4))

    first = batches(store="memory")
    assert first[0].x0.shape == (8, 3, 8, 6)
    for store in STORES:
        for a, b in zip(first, batches(**store), strict=True):
            assert torch.equal(a.x0, b.x0)
            assert torch.equal(a.condition.label, b.condition.label)


def test_crops_change_from_epoch_to_epoch(root):
    one = data(root, crop=RandomCrop(), subset=1)
    batch = next(iter(data(root, crop=RandomCrop(), subset=1).train_dataloader()))
    assert len(names(one)) == 1
    assert len(torch.unique(batch.x0.flatten(1), dim=0)) > 2  # of eight looks at one image


def test_evaluation_reads_the_same_images_from_every_store(root):
    def images(**store):
        one = data(root, crop=RandomResizedCrop(), **store)
        one.prepare_data()
        real = RealImages(one, split="val")
        rows = torch.arange(real.count)
        assert torch.equal(torch.cat([*real.batches(rows, 1)]), real.take(rows))
        return real.take(rows), real.labels, real.digest()

    first = images(store="memory", held_out=5)
    for store in STORES:
        for a, b in zip(first, images(held_out=5, **store), strict=True):
            assert a == b if isinstance(a, str) else torch.equal(a, b)


def test_a_mapped_file_is_decoded_once_and_again_if_an_image_changes(root, capsys):
    def prepare():
        data(root, store="mapped").prepare_data()
        return capsys.readouterr().out.count("images decoded")

    assert (prepare(), prepare()) == (1, 0)
    write(root / "a" / "00.png", 99)
    assert prepare() == 1
    assert data(root, store="mapped").prepare_data() is None


def test_a_damaged_file_of_decoded_images_is_named(root):
    data(root, store="mapped").prepare_data()
    (file,) = (root.parent / "cache").glob("*.npy")
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(InputError, match=f"{file.name} is damaged; remove it"):
        data(root, store="mapped").source("train")


def test_a_cache_that_cannot_be_written_is_refused(root, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"nothing can be written into .*choose another folder"):
        data(root, store="mapped", cache=str(tmp_path / "file" / "cache")).prepare_data()


def test_two_processes_that_begin_together_decode_once(root):
    fork = multiprocessing.get_context("fork")
    counts = fork.Queue()

    def prepare():
        one = data(root, store="mapped")
        write_ = type(one._cache)._write
        calls = []
        type(one._cache)._write = lambda *a: (calls.append(1), write_(*a))[1]
        one.prepare_data()
        counts.put(len(calls))

    both = [fork.Process(target=prepare) for _ in range(2)]
    [process.start() for process in both]
    [process.join(60) for process in both]
    assert sorted(counts.get(timeout=5) for _ in both) == [0, 1]


# --------------------------------------------------------------------------- bad files


@pytest.fixture
def damaged(root):
    """The same with two bad files."""
    (root / "a" / "zero.png").write_bytes(b"")
    (root / "b" / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    return root


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_the_pixels_of_good_files_are_pillows_whatever_bad_ones_lie_between(
    tmp_path, channels, mode
):
    files = [write(tmp_path / "set" / f"{k}.png", k, size=(4, 6)) for k in (0, 2)]
    (tmp_path / "set" / "1.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match=r"1 file cannot.*1\.png"):
        one = data(
            tmp_path / "set", size=[4, 6], channels=channels, bad_files="skip", held_out=0
        ).source("train")
    images, _ = next(iter(one.batches([np.arange(2)])))
    assert images.stride() == (24 * channels, 24, 6, 1)  # as of images in memory, grey ones, too
    for image, file in zip(images, files, strict=True):
        pixels = np.asarray(Image.open(file).convert(mode)).reshape(4, 6, channels)
        assert np.array_equal(image.permute(1, 2, 0), pixels)


@pytest.mark.parametrize("store", ["memory", "mapped", "streamed"])
def test_bad_files_are_named_at_once_before_training(damaged, store, capsys):
    words = ["fit", "--data", "ImageFolder", "--data.root", str(damaged), "--data.size", "8"]
    words += ["--data.store", store, "--data.cache", str(damaged.parent / "cache")]
    words += ["--trainer.default_root_dir", str(damaged.parent / "run")]
    words += ["--trainer.max_steps", "1", "--data.workers", "0", "--model.net", "SmallUNet"]
    line = fail(capsys, *words)
    assert line.startswith("error: 2 files cannot be used: a/zero.png: empty; b/cut.jpg: ")
    assert "--data.bad_files skip" in line


@pytest.mark.parametrize("store", ["memory", "mapped", "streamed"])
@pytest.mark.parametrize("prepared", [True, False])
def test_bad_files_are_left_out_if_asked(damaged, store, prepared):
    one = data(damaged, store=store, bad_files="skip", held_out=4)
    if prepared:
        one.prepare_data()
    with pytest.warns(UserWarning, match=r"left out: 2 files.*zero\.png"):
        batches = [*one.val_dataloader()]
    assert sum(len(batch.x0) for batch in batches) == 4
    assert len(one.source("train")) == 36


# -------------------------------------------------------------- training, checkpoints


@pytest.mark.slow
@pytest.mark.parametrize("store", ["mapped", "streamed"])
def test_a_resumed_run_with_random_crops_is_exact(root, tmp_path, store):
    def one():
        return data(root, store=store, crop=RandomResizedCrop(), flip=True)

    whole = fit(tmp_path / "whole", 8, data=one())
    fit(tmp_path / "parts", 3, data=one())
    resumed = fit(tmp_path / "parts", 8, data=one(), resume=True)
    assert_same_weights(whole, resumed)


def test_a_checkpoint_states_its_data_and_reading_it_writes_nothing(root, tmp_path):
    one = data(root, store="mapped", crop=RandomCrop(1.5), held_out=3)
    fit(tmp_path / "run", 3, data=one)
    for file in (cache := root.parent / "cache").iterdir():
        file.unlink()
    cache.rmdir()
    again = Loaded.read(last_checkpoint(tmp_path / "run")).data
    assert again.describe() == one.describe()
    assert json.loads(json.dumps(again.describe()))["init_args"]["held_out"] == 3
    assert torch.equal(
        torch.cat([*again.images("val")[0].batches(2)]),
        torch.cat([*one.images("val")[0].batches(2)]),
    )
    assert not cache.exists()


def test_a_checkpoints_data_is_found_elsewhere_by_root(root, tmp_path):
    fit(tmp_path / "run", 3, data=data(root))
    root.rename(tmp_path / "moved")
    loaded = Loaded.read(last_checkpoint(tmp_path / "run"))
    with pytest.raises(InputError, match="no folder"):
        loaded.data.source("val")
    description = loaded.description
    description["init_args"]["root"] = str(tmp_path / "moved")
    assert len(build(description).source("val")) == 2


def test_images_of_a_folder_can_be_made_smaller_for_super_resolution(root):
    one = Conditioned(data(root, crop=RandomCrop(), store="streamed"), SuperResolution(2))
    batch = next(iter(one.train_dataloader()))
    small = torch.nn.functional.avg_pool2d(batch.x0, 2).repeat_interleave(2, -1)
    assert torch.equal(batch.condition.image, small.repeat_interleave(2, -2))


def test_predict_decodes_nothing_around_a_folder_either(root):
    one = Conditioned(data(root, store="mapped"), SuperResolution(2))
    one.trainer = SimpleNamespace(
        state=SimpleNamespace(status=TrainerStatus.RUNNING), predicting=True
    )
    one.prepare_data()
    assert not (root.parent / "cache").exists()
    one.trainer.predicting = False
    one.prepare_data()
    assert [*(root.parent / "cache").glob("*.npy")]


@pytest.mark.parametrize("task", [None, SuperResolution()])
def test_a_folder_is_the_data_and_where_it_is_decoded_is_not(root, task):
    def changes(folder=root, **settings):
        both = [data(root), data(folder, **settings)]
        before, now = both if task is None else [Conditioned(one, task) for one in both]
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            check_data(before.describe(), now)
        assert bool(told) == (identity(before) != identity(now))
        return bool(told)

    write(root.parent / "other" / "0.png")
    assert changes(root.parent / "other")
    assert changes(size=4)
    assert not changes(store="mapped", cache="elsewhere", workers=3, predict_n=1)


def test_a_set_of_known_size_is_held_in_memory(root):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images, labels = data(root).images("train")
    assert (images.shape, images.dtype) == ((38, 3, 8, 8), torch.uint8)
    assert set(labels.tolist()) == {0, 1}
