"""Features on disk: found again, never mixed up, never half written."""

from __future__ import annotations

import hashlib
import importlib
import sys
import types
import weakref
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from torch import nn

from ddpm_lightning.metrics import (
    FeatureExtractor,
    Features,
    LeNet,
    Pixels,
)
from ddpm_lightning.metrics.cache import cache_path, default_cache, lookup, store


def images(n=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, 1, 8, 8), dtype=torch.uint8, generator=generator)


def reference_features(extractor, images, folder=None):
    path = cache_path(extractor, images, folder)
    found = lookup(path)
    if found is None:
        found = Features.compute(extractor, images)
        store(found, path)
    return found


class Counting(FeatureExtractor):
    """Mean and spread of the pixels, times a factor; counts the images it has seen."""

    name, alias, dim, channels = "fd_counting", "fd", 2, (1,)

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor
        self.seen = 0

    def load(self):
        return nn.Identity(), hashlib.sha256(b"").hexdigest()

    def features(self, images):
        self.seen += len(images)
        x = images.flatten(1).float() * self.factor
        return torch.stack([x.mean(dim=1), x.std(dim=1)], dim=1)


SOURCE = """
import hashlib
from torch import nn
from ddpm_lightning.metrics import FeatureExtractor

class Mine(FeatureExtractor):
    name, alias, dim, channels = "fd_mine", "fd", 16, (1, 3)

    def load(self):
        return nn.AdaptiveAvgPool2d(4), hashlib.sha256(b"").hexdigest()

    def features(self, images):
        return self.network(images.float() * FACTOR).mean(dim=1).flatten(1)
"""


def test_features_come_back_from_their_file_as_they_were(tmp_path):
    path = tmp_path / "new" / "features.safetensors"
    for extractor, with_logits in ((LeNet(), True), (Pixels(), False)):
        one = Features.compute(extractor, images())
        store(one, path)
        other = lookup(path)
        assert torch.equal(one.features, other.features)
        assert (one.logits is not None) == (other.logits is not None) == with_logits
        assert not with_logits or torch.equal(one.logits, other.logits)
        assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_batches_may_be_of_any_sizes_and_are_not_kept():
    alive: list[weakref.ref] = []

    def batches():
        for part in images(50).split([3, 20, 27]):
            assert sum(batch() is not None for batch in alive) <= 1
            batch = part.clone()
            alive.append(weakref.ref(batch))
            yield batch
            del batch

    extractor = Counting()
    features = Features.compute(extractor, batches(), batch_size=8)
    assert torch.equal(features.features, Features.compute(Counting(), images(50)).features)
    assert len(alive) == 3
    assert len(features) == extractor.seen == 50


def test_the_second_time_costs_no_network(tmp_path):
    extractor = Counting()
    first = reference_features(extractor, images(), tmp_path)
    second = reference_features(extractor, images(), tmp_path)
    assert torch.equal(first.features, second.features)
    assert extractor.seen == 20


def test_another_image_order_shape_argument_extractor_or_weight_is_another_file(tmp_path):
    x = images()
    changed = x.clone()
    changed[3, 0, 2, 2] ^= 1

    class Digest(Counting):
        digest = "0" * 64

    pairs = [(Counting(), part) for part in (x, changed, x.flip(0), x.view(20, 1, 4, 16), x[:19])]
    pairs += [(extractor, x) for extractor in (Counting(2.0), LeNet(), Digest())]
    with pytest.warns(UserWarning, match="defined in a script"):
        paths = [cache_path(*pair, tmp_path) for pair in pairs]
    assert len(set(paths)) == len(paths)
    assert cache_path(Counting(), x.clone(), tmp_path) == paths[0]
    assert {path.parent for path in paths} == {tmp_path}


def test_an_edited_extractor_is_another_file(tmp_path, monkeypatch):
    paths = []
    for factor in ("1", "1", "2"):
        folder = tmp_path / str(len(paths))
        folder.mkdir()
        (folder / "edited.py").write_text(SOURCE.replace("FACTOR", factor))
        monkeypatch.syspath_prepend(str(folder))
        sys.modules.pop("edited", None)
        extractor = importlib.import_module("edited").Mine()
        paths.append(cache_path(extractor, images(), tmp_path))
    assert paths[0] == paths[1] != paths[2]


@pytest.mark.parametrize("package", ["torch", "torch-fidelity"])
def test_another_version_of_what_computes_them_is_another_file(tmp_path, monkeypatch, package):
    before = cache_path(LeNet(), images(), tmp_path)
    module = "ddpm_lightning.metrics.cache.version"
    monkeypatch.setattr(module, lambda name: "0" if name == package else version(name))
    assert cache_path(LeNet(), images(), tmp_path) != before


def test_an_extractor_without_a_source_file_is_computed_each_time(tmp_path, monkeypatch):
    # Of a notebook or standard input: a changed one could not be told from the last.
    module = types.ModuleType("typed")
    monkeypatch.setitem(sys.modules, "typed", module)
    sums = []
    for factor in ("1", "3"):
        exec(SOURCE.replace("FACTOR", factor), vars(module))
        features = reference_features(module.Mine(), images(), tmp_path / "cache").features
        sums.append(float(features.sum()))
    assert sums[1] == pytest.approx(3 * sums[0])
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("damage", [b"", b"no tensors", None], ids=["empty", "other", "cut off"])
def test_a_damaged_file_is_computed_anew_with_a_warning(tmp_path, damage):
    extractor = Counting()
    first = reference_features(extractor, images(), tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-7] if damage is None else damage)
    with pytest.warns(UserWarning, match="no readable file of features"):
        again = reference_features(extractor, images(), tmp_path)
    assert torch.equal(first.features, again.features)
    assert torch.equal(lookup(path).features, first.features)


def test_a_folder_that_cannot_be_written_costs_a_warning_only(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match=r"cannot write the features.*another folder"):
        features = reference_features(Counting(), images(), tmp_path / "file" / "folder")
    assert len(features) == 20


def test_a_stopped_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(tensors, path):
        Path(path).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.warns(UserWarning, match="no space left"):
        store(Features.compute(Counting(), images()), tmp_path / "features.safetensors")
    assert not list(tmp_path.iterdir())


def test_writers_at_once_do_not_break_each_other(tmp_path):
    path = tmp_path / "features.safetensors"
    whole = Features.compute(Counting(), images(500))
    store(whole, path)

    def work(i):
        store(whole, path)
        return torch.equal(lookup(path).features, whole.features)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(64)))
    assert list(tmp_path.iterdir()) == [path]


def test_the_folder_is_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "ddpm_lightning"
    reference_features(Counting(), images())
    assert len(list(default_cache().iterdir())) == 1
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache() == tmp_path / "home" / ".cache" / "ddpm_lightning"
