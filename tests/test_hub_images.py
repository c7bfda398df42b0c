"""Data sets of Hugging Face's datasets library, written by it, as training data."""

from __future__ import annotations

import builtins
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lightning.data import HubImages
from ddpm_lightning.errors import InputError
from ddpm_lightning.loaded import Loaded
from ddpm_lightning.run_folder import last_checkpoint
from tests.small import fit

datasets = pytest.importorskip("datasets")
PIXELS = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()


def rows(n: int, first: int = 0):
    features = datasets.Features(
        picture=datasets.Image(), kind=datasets.ClassLabel(names=["cat", "dog"]),
        name=datasets.Value("string"), caption=datasets.Value("string"),
    )  # fmt: skip
    table = {
        "picture": [Image.fromarray(PIXELS[first + k]) for k in range(n)],
        "kind": [k % 2 for k in range(n)],
        "name": ["zebra" if k % 3 else "ape" for k in range(n)],
        "caption": [f"number {k}" for k in range(n)],
    }
    return datasets.Dataset.from_dict(table, features=features)


@pytest.fixture
def saved(tmp_path):
    splits = {"train": rows(20), "validation": rows(6, 20), "test": rows(4, 26)}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "set"))
    return tmp_path / "set"


def data(name, **settings) -> HubImages:
    defaults = {"size": 8, "image_column": "picture", "workers": 0, "global_batch_size": 4}
    return HubImages(str(name), **defaults | settings)


def test_a_saved_set_has_its_splits_images_and_class_names(saved):
    one = data(saved, label_column="kind")
    for split, part in {"train": slice(20), "val": slice(20, 26), "test": slice(26, 30)}.items():
        images, labels = one.images(split)
        assert np.array_equal(images.permute(0, 2, 3, 1), PIXELS[part])
        assert labels.tolist() == [k % 2 for k in range(len(labels))]
    assert one.collection.classes == ("cat", "dog")


def test_names_are_numbered_as_classes_and_without_a_column_there_are_none(saved):
    one = data(saved, label_column="name")
    assert one.collection.classes == ("ape", "zebra")
    assert one.images("test")[1].tolist() == [0, 1, 1, 0]
    assert data(saved).num_classes is None


def test_captions_are_those_of_the_column(saved):
    assert data(saved, text_column="caption").captions("val")[1] == "number 1"


def test_a_parquet_file_is_a_set_for_training(tmp_path):
    rows(20).to_parquet(str(tmp_path / "a.parquet"))
    one = data(tmp_path / "a.parquet", label_column="kind", held_out=5)
    assert (len(one.source("train")), len(one.source("val"))) == (15, 5)
    stored = torch.cat([one.images(split)[0] for split in ("train", "val")])
    assert {x.numpy().tobytes() for x in stored.permute(0, 2, 3, 1).contiguous()} == {
        x.tobytes() for x in PIXELS[:20]
    }


def test_a_column_that_is_not_there_is_named_with_those_that_are(saved):
    with pytest.raises(InputError, match="no column image, but picture, kind, name, caption"):
        _ = data(saved, image_column="image").num_classes


@pytest.mark.parametrize("name", ["no/such-set-anywhere", "set.npz"])
def test_a_set_that_is_not_there_is_one_line_and_asks_no_network(name, tmp_path):
    (tmp_path / "set.npz").write_bytes(b"")
    where = tmp_path / name if name == "set.npz" else name
    with pytest.raises(InputError, match=r"cannot be loaded .*--data\.path") as caught:
        _ = data(where, download=False).num_classes
    assert "\n" not in str(caught.value)


def test_without_the_library_there_is_the_command_that_installs_it(saved, monkeypatch):
    known = builtins.__import__

    def without(name, *rest):
        if name == "datasets":
            raise ImportError(name)
        return known(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match="pip install 'datasets"):
        _ = data(saved).num_classes


def test_a_checkpoints_set_is_not_downloaded(saved, tmp_path):
    fit(tmp_path / "run", 3, data=data(saved, label_column="kind"))
    again = Loaded.read(last_checkpoint(tmp_path / "run")).data
    assert (again.download, again.label_column) == (False, "kind")
    assert len(again.source("val")) == 6


def test_files_of_rows_are_read_beside_the_set_and_nowhere_else(tmp_path):
    def parquet(path):
        features = datasets.Features(picture=datasets.Image())
        table = {"picture": [{"bytes": None, "path": str(path)}]}
        rows_ = datasets.Dataset.from_dict(table, features=features)
        file = tmp_path / "set" / "a.parquet"
        rows_.with_format("arrow").to_pandas()[["picture"]].to_parquet(file)
        return data(file).collection

    (tmp_path / "set").mkdir()
    for place in ("set", "."):
        (tmp_path / place / "x.png").write_bytes(b"content")
    assert parquet(tmp_path / "set" / "x.png").read(0) == b"content"
    for outside in (tmp_path / "x.png", tmp_path / "set" / ".." / "x.png"):
        with pytest.raises(InputError, match="lies outside the data set"):
            parquet(outside).read(0)


def test_a_folder_of_image_files_is_read_by_the_library(tmp_path, monkeypatch):
    for k in range(3):
        (tmp_path / "set").mkdir(exist_ok=True)
        Image.fromarray(PIXELS[k]).save(tmp_path / "set" / f"{k}.png")
    monkeypatch.chdir(tmp_path)
    one = data("set", image_column="image", held_out=0)
    assert np.array_equal(one.images("train")[0].permute(0, 2, 3, 1), PIXELS[:3])
    elsewhere = replace(one.collection, folders=HubImages("some/name")._folders(datasets))
    with pytest.raises(InputError, match="lies outside the data set"):
        elsewhere.read(0)


def test_labels_below_0_are_refused(tmp_path):
    table = {"picture": [Image.fromarray(PIXELS[0])] * 2, "kind": [0, -1]}
    datasets.Dataset.from_dict(table).save_to_disk(str(tmp_path / "set"))
    with pytest.raises(InputError, match=r"1 labels are below 0 \(column kind\)"):
        _ = data(tmp_path / "set", label_column="kind").num_classes


@pytest.mark.parametrize("ending", ["csv", "json", "jsonl"])
def test_files_that_hold_no_images_are_refused(tmp_path, ending):
    (tmp_path / f"a.{ending}").write_text("picture\n1\n")
    with pytest.raises(InputError, match=rf"\.{ending} is none of \.arrow, \.parquet"):
        _ = data(tmp_path / f"a.{ending}").num_classes
