"""Data sets: what their files hold, splits, the order of training, resume, and damaged files."""

import hashlib
import io
import os
import pickle
import random
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from sklearn.datasets import load_digits

from ddpm_lightning.batch import Batch, DataSpec
from ddpm_lightning.configurable import build
from ddpm_lightning.data import (
    CIFAR10,
    CIFAR100,
    MNIST,
    Digits,
    FashionMNIST,
    ImageData,
    MapStyleImages,
    Toy2D,
)
from ddpm_lightning.data.data_module import RawBatch
from ddpm_lightning.data.stream import EvaluationLoader, Layout, TrainingStream, coin_flips
from ddpm_lightning.errors import InputError
from ddpm_lightning.images import to_uint8
from tests.make_data import write_cifar10, write_cifar100, write_mnist


class Numbered(ImageData):
    """Images that carry their own number and show when they are mirrored."""

    native_shape = (1, 4, 4)
    num_classes = 10
    default_held_out = 10
    sizes = {"train": 50, "test": 21}  # noqa: RUF012
    reads = 0

    def read(self, split):
        self.reads += 1
        number = torch.arange(self.sizes[split])
        images = torch.zeros(len(number), 1, 4, 4, dtype=torch.uint8)
        images[:, 0, 0, 0] = number + (100 if split == "test" else 0)
        images[:, 0, 0, 1] = 255
        return images, number % 10


class NumberedFiles(MapStyleImages):
    """The same images, read one by one."""

    shape = (1, 4, 4)
    num_classes = 10

    def dataset(self, split):
        images, labels = Numbered().images(split)
        return list(zip(images, labels.tolist(), strict=True))


def numbers(x0):
    """The numbers and mirroring of images of Numbered."""
    pixels = to_uint8(x0)[:, 0, 0]
    flipped = pixels[:, 2] == 255
    return torch.where(flipped, pixels[:, 3], pixels[:, 0]).tolist(), flipped.tolist()


class Recorder(LightningModule):
    """Records the numbers it is trained and evaluated on."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.trained, self.flipped, self.evaluated, self.batches = [], [], [], []

    def training_step(self, batch, batch_idx):
        self.batches.append(batch)
        shown, flipped = numbers(batch.x0)
        self.trained.append(shown)
        self.flipped.append(flipped)
        return self.weight * batch.x0.mean()

    def validation_step(self, batch, batch_idx):
        if not self.trainer.sanity_checking:
            self.evaluated += numbers(batch.x0)[0]

    def test_step(self, batch, batch_idx):
        self.evaluated += numbers(batch.x0)[0]

    def predict_step(self, batch, batch_idx):
        return batch

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def make_trainer(tmp_path, **settings):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    settings = quiet | {"enable_checkpointing": False} | settings
    return Trainer(accelerator="cpu", devices=1, default_root_dir=tmp_path, **settings)


def fit(tmp_path, data, ckpt_path=None, **settings):
    """Train a Recorder."""
    module = Recorder()
    trainer = make_trainer(tmp_path, **settings)
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    return module


def pairs(places):
    """Batches of (index, whether mirrored)."""
    return (list(zip(p.index.tolist(), p.flip.tolist(), strict=True)) for p in places)


def only_indices(places):
    return (place.index.tolist() for place in places)


def take(stream, n):
    """The next n micro-batches, over as many epochs as that takes."""
    batches = []
    while len(batches) < n:
        for batch in stream:
            batches.append(batch)
            if len(batches) == n:
                break
    return batches


def flat(batches):
    return [row for batch in batches for row in batch]


# ---------------------------------------------------------------------- the data sets


@pytest.mark.parametrize(
    ("cls", "write", "arguments"),
    [
        (MNIST, write_mnist, {}),
        (FashionMNIST, write_mnist, {"name": "FashionMNIST"}),
        (CIFAR10, write_cifar10, {}),
        (CIFAR10, write_cifar10, {"modern": True}),
        (CIFAR100, write_cifar100, {}),
    ],
)
@pytest.mark.filterwarnings("ignore:.*MD5")
def test_each_data_set_gives_what_its_files_hold(tmp_path, cls, write, arguments):
    written = write(tmp_path, train=60, test=20, **arguments)
    data = cls(root=str(tmp_path), download=False, held_out=15, global_batch_size=8)
    assert data.shape == cls.native_shape
    train, rows = written["train"], {"train": slice(45), "val": slice(45, None)}
    expected = {split: [part[some] for part in train] for split, some in rows.items()}
    for split, (pixels, numbers) in (expected | {"test": written["test"]}).items():
        images, labels = data.images(split)
        assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
        assert np.array_equal(images.numpy(), pixels.reshape(-1, *cls.native_shape))
        assert np.array_equal(labels.numpy(), numbers)
    x0 = torch.cat([batch.x0 for batch in data.test_dataloader()])
    reference = written["test"][0].reshape(-1, *data.shape).astype(np.float64) / 255 * 2 - 1
    assert x0.dtype == torch.float32
    assert np.allclose(x0.numpy(), reference, atol=1e-6)


def test_digits_come_without_files_and_fill_eight_bits():
    data = Digits(root="/nowhere", download=False)
    images, labels = zip(*(data.images(split) for split in ("train", "val", "test")), strict=True)
    assert [len(part) for part in images] == [1350, 150, 297]
    together = torch.cat(images)
    assert (together.shape, together.dtype) == ((1797, 1, 8, 8), torch.uint8)
    assert np.array_equal(together[:, 0].numpy(), np.floor(load_digits().images * 255 / 16 + 0.5))
    assert np.array_equal(torch.cat(labels).numpy(), load_digits().target)


def test_the_specification_is_known_before_any_file_is_read_and_outlives_a_description():
    data = CIFAR100(root="/nowhere", image_size=64, subset=0.5, held_out=0, seed=3)
    again = build(data.describe())
    assert again.describe() == data.describe()
    assert again.spec == DataSpec((3, 64, 64), (-1.0, 1.0), 100)


# ------------------------------------------------------------------------- the splits


def held(data, split):
    """The numbers of the images of a split."""
    return data.images(split)[0][:, 0, 0, 0].tolist()


def test_splits_are_disjoint_and_the_same_for_every_seed():
    tested = list(range(100, 121))
    for seed in (0, 1):
        shown = [held(Numbered(seed=seed), split) for split in ("train", "val", "test")]
        assert shown == [list(range(40)), list(range(40, 50)), tested]
    shown = [held(Numbered(held_out=0), split) for split in ("train", "val", "test")]
    assert shown == [list(range(50)), tested, tested]


@pytest.mark.parametrize(("subset", "size"), [(0.25, 10), (7, 7), (1, 1), (1.0, 40), (0.001, 1)])
def test_a_subset_is_a_fixed_random_part_of_the_training_images(subset, size):
    data = Numbered(subset=subset)
    chosen = held(data, "train")
    assert len(set(chosen)) == len(chosen) == size
    assert set(chosen) <= set(range(40))
    assert held(data, "val") == list(range(40, 50))
    assert held(Numbered(subset=subset), "train") == chosen
    if 1 < size < 40:
        assert chosen != list(range(size))
        assert held(Numbered(subset=subset, seed=1), "train") != chosen
    shown = [number for batch in data.train_dataloader() for number in numbers(batch.x0)[0]]
    assert set(shown) == set(chosen)


@pytest.mark.parametrize(
    ("stage", "held_out", "reads"),
    [
        *(("predict", 9, 0), ("fit", 9, 1), ("validate", 9, 1), ("test", 9, 1), (None, 9, 2)),
        *(("fit", 0, 2), ("validate", 0, 1)),
    ],
)
def test_each_stage_reads_only_what_it_needs_and_reads_it_once(stage, held_out, reads):
    data = Numbered(held_out=held_out)
    data.setup(stage)
    data.setup(stage)
    assert data.reads == reads


# -------------------------------------------------------------------------- the sizes


@pytest.mark.parametrize(("size", "top", "left"), [(4, 0, 0), (6, 1, 1), (7, 1, 1), (32, 14, 14)])
def test_padding_centres_on_black(size, top, left):
    data = Numbered(image_size=size, resize="pad")
    images, _ = data.images("train")
    expected = np.zeros((40, 1, size, size), dtype=np.uint8)
    expected[:, :, top : top + 4, left : left + 4] = Numbered().images("train")[0]
    assert data.shape == (1, size, size)
    assert np.array_equal(images.numpy(), expected)


@pytest.mark.parametrize("size", [13, 45])
@pytest.mark.filterwarnings("ignore:.*MD5")
def test_bilinear_resizing_is_antialiased_like_pillows(tmp_path, size):
    written = write_cifar10(tmp_path, train=5, test=3)["test"][0]
    data = CIFAR10(root=str(tmp_path), image_size=size, resize="bilinear")
    images, _ = data.images("test")
    for image, array in zip(images, written, strict=True):
        reference = Image.fromarray(array.transpose(1, 2, 0)).resize(
            (size, size), Image.Resampling.BILINEAR
        )
        difference = image.permute(1, 2, 0).numpy().astype(int) - np.asarray(reference)
        assert abs(difference).max() <= 1


# --------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("arguments", "fix"),
    [
        ({"image_size": 3}, "bilinear"),
        ({"subset": 0.0}, "0.2"),
        ({"subset": 1.5}, "0.2"),
        ({"subset": 0}, "0.2"),
        ({"subset": -0.5}, "0.2"),
        ({"subset": 41}, "use less"),
        ({"held_out": 50}, "use less"),
        ({"global_batch_size": 0}, "1 or more"),
        ({"seed": -1}, "0 or more"),
    ],
)
def test_arguments_out_of_range_are_refused_with_the_fix(arguments, fix):
    with pytest.raises(InputError, match=fix):
        Numbered(**arguments).setup("fit")


def test_missing_files_are_named_with_their_folder_and_the_fix(tmp_path):
    data = MNIST(root=str(tmp_path), download=False)
    data.prepare_data()
    folder = tmp_path / "MNIST" / "raw"
    missing = f"{folder} lacks train-images-idx3-ubyte, train-labels-idx1-ubyte;"
    with pytest.raises(InputError, match=rf"{missing}.*--data.download true.*--data\.root"):
        data.setup("fit")


def test_a_failed_download_is_one_clear_error_before_training(tmp_path, monkeypatch):
    def fetch(self):
        raise OSError("no route\nto host")

    monkeypatch.setattr(CIFAR10, "fetch", fetch)
    with pytest.raises(InputError, match=r"no route to host.*connect to the internet") as caught:
        fit(tmp_path, CIFAR10(root=str(tmp_path)), max_steps=1)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no route"):
        CIFAR10(root=str(tmp_path)).images("test")


def test_nothing_is_downloaded_when_the_files_of_training_are_there(tmp_path, monkeypatch):
    write_mnist(tmp_path, train=5, test=5)
    monkeypatch.setattr(MNIST, "fetch", lambda self: pytest.fail("downloaded"))
    MNIST(root=str(tmp_path), held_out=1).setup()
    for file in (tmp_path / "MNIST" / "raw").glob("t10k*"):
        file.unlink()
    MNIST(root=str(tmp_path), held_out=1, download=False).setup("fit")


@pytest.mark.parametrize("kept", [0, 3, 40, 1000, -1])
@pytest.mark.parametrize(
    ("cls", "write", "file"),
    [
        (MNIST, write_mnist, "MNIST/raw/train-images-idx3-ubyte"),
        (MNIST, write_mnist, "MNIST/raw/train-labels-idx1-ubyte"),
        (CIFAR10, write_cifar10, "cifar-10-batches-py/data_batch_3"),
    ],
)
def test_a_truncated_file_is_named(tmp_path, cls, write, file, kept):
    write(tmp_path, train=2000, test=5)
    path = tmp_path / file
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=str(path)):
        cls(root=str(tmp_path), held_out=1).setup("fit")


@pytest.mark.parametrize(
    ("file", "of", "stage", "message"),
    [
        ("train-labels-idx1", "t10k-labels-idx1", "fit", r"labels torch.int64 \[5\]"),
        ("t10k-labels-idx1", "t10k-images-idx3", "test", "t10k-labels"),
    ],
)
def test_files_of_another_data_set_are_refused(tmp_path, file, of, stage, message):
    write_mnist(tmp_path, train=6, test=5)
    folder = tmp_path / "MNIST" / "raw"
    shutil.copy(folder / f"{of}-ubyte", folder / f"{file}-ubyte")
    with pytest.raises(InputError, match=message):
        MNIST(root=str(tmp_path), held_out=1).setup(stage)


class Malicious:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.fixture
def cifar_batch(tmp_path):
    """Writes CIFAR-10 with this pickled test batch, and says where that is."""
    write_cifar10(tmp_path, train=10, test=5)
    path = tmp_path / "cifar-10-batches-py" / "test_batch"

    def write(content, protocol=2):
        path.write_bytes(pickle.dumps(content, protocol))
        return path

    return write


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    ("function", "arguments"),
    [(os.mkdir, ("executed",)), (eval, ("open('executed', 'w')",)), (getattr, ("", "join"))],
)
def test_a_malicious_pickle_is_refused_and_not_executed(
    tmp_path, cifar_batch, protocol, function, arguments, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    content = {b"data": Malicious(function, *arguments), b"labels": []}
    file = cifar_batch(content, protocol)
    with pytest.raises(InputError, match=f"{file}.*{function.__name__}.*nothing was run"):
        CIFAR10(root=str(tmp_path)).setup("test")
    assert not Path("executed").exists()


PIXELS = {b"data": np.zeros((2, 3072), np.uint8)}


@pytest.mark.parametrize(
    "content",
    [
        {b"data": np.array([[b"x"] * 3072], dtype=object), b"labels": [1]},
        {b"data": np.zeros((1, 3072), np.float32), b"labels": [1]},
        {b"data": np.zeros((1, 3071), np.uint8), b"labels": [1]},
        {b"data": [0] * 9, b"labels": [1]},
        PIXELS | {b"labels": [1]},
        PIXELS | {b"labels": ["1", "2"]},
        PIXELS | {b"fine_labels": [1, 2]},
        PIXELS,
    ],
)
def test_a_cifar_file_with_other_pixels_or_labels_is_refused(tmp_path, cifar_batch, content):
    file = cifar_batch(content)
    with pytest.raises(InputError, match=f"{file}.*replace the file"):
        CIFAR10(root=str(tmp_path)).setup("test")


@pytest.mark.filterwarnings("ignore:.*MD5")
def test_labels_beyond_the_classes_are_refused(tmp_path, cifar_batch):
    cifar_batch(PIXELS | {b"labels": [3, 10]})
    with pytest.raises(InputError, match=r"of 3…10 instead of .* 0…9"):
        CIFAR10(root=str(tmp_path)).setup("test")


@pytest.mark.filterwarnings("ignore:.*MD5")
def test_fortran_ordered_arrays_are_read_in_their_order(tmp_path, cifar_batch):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)
    cifar_batch({b"data": np.asfortranarray(pixels), b"labels": [0, 1, 2, 3]})
    images, _ = CIFAR10(root=str(tmp_path)).images("test")
    assert np.array_equal(images.numpy().reshape(4, -1), pixels)


def test_an_unknown_md5_is_one_warning(tmp_path, monkeypatch):
    write_cifar10(tmp_path, train=10, test=5)
    data = CIFAR10(root=str(tmp_path), held_out=1)
    with pytest.warns(UserWarning, match="MD5") as caught:
        data.setup()
    assert len(caught) == 1

    folder = tmp_path / "cifar-10-batches-py"
    names = [f"data_batch_{i}" for i in range(1, 6)]
    for attribute, files in (("train_list", names), ("test_list", ["test_batch"])):
        digests = [[f, hashlib.md5((folder / f).read_bytes()).hexdigest()] for f in files]
        monkeypatch.setattr(CIFAR10._source, attribute, digests)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CIFAR10(root=str(tmp_path), held_out=1).setup()


# ------------------------------------------------------------------ the training order


@pytest.mark.parametrize("n", [37, 3])  # small data fills a large batch
def test_every_image_is_seen_once_per_n_positions_in_an_order_new_each_time(n):
    batches = take(TrainingStream(n, Layout(8), only_indices), n)
    assert {len(batch) for batch in batches} == {8}
    shown = np.array(flat(batches)).reshape(8, n)
    for epoch in shown:
        assert sorted(epoch) == list(range(n))
    assert len({tuple(epoch) for epoch in shown}) == (8 if n == 37 else 6)
    assert (shown[0] != np.arange(n)).any()


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (1, 2), (2, 2), (4, 3)])
def test_the_global_batch_is_the_same_in_every_layout(world, accumulate):
    alone = take(TrainingStream(40, Layout(24), pairs, seed=5, flip=True), 7)
    layouts = [Layout(24, rank, world, accumulate) for rank in range(world)]
    ranks = [
        take(TrainingStream(40, layout, pairs, seed=5, flip=True), 7 * accumulate)
        for layout in layouts
    ]
    dealt = [flat(micro) for micro in zip(*ranks, strict=True)]
    steps = [flat(dealt[k : k + accumulate]) for k in range(0, 7 * accumulate, accumulate)]
    assert steps == alone


@pytest.mark.parametrize(
    ("n", "layout", "batches"),
    [(40, (8,), 5), (47, (8,), 5), (40, (8, 0, 2, 4), 20), (3, (8,), 1)],
)
def test_an_epoch_is_the_whole_steps_that_fit_the_data(n, layout, batches):
    stream = TrainingStream(n, Layout(*layout), only_indices)
    assert len(stream) == len(list(stream)) == batches


def test_order_and_flips_depend_on_the_seed_and_touch_no_global_generator():
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    first, again, other = (
        take(TrainingStream(40, Layout(8), pairs, seed=seed, flip=True), 9) for seed in (1, 1, 2)
    )
    assert first == again
    assert [i for i, _ in flat(first)] != [i for i, _ in flat(other)]
    assert [f for _, f in flat(first)] != [f for _, f in flat(other)]
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (np.random.get_state()[1].tolist(), random.getstate())


def test_flips_are_fair_and_a_function_of_the_position():
    tosses = coin_flips(3, 0, 100_000)
    assert abs(tosses.mean() - 0.5) < 0.008  # five standard deviations
    assert abs(np.corrcoef(tosses[:-1], tosses[1:])[0, 1]) < 0.016
    for first, n in ((0, 1), (1, 7), (6, 2), (4093, 64)):
        assert np.array_equal(coin_flips(3, first, n), tosses[first : first + n])


def test_half_of_the_training_images_are_mirrored_if_asked_and_no_others():
    def seen(data):
        batches = [numbers(batch.x0) for batch in take(data.train_dataloader(), 100)]
        return [flat(part) for part in zip(*batches, strict=True)]

    mirrored = Numbered(global_batch_size=20, flip=True)
    (shown, flips), (straight, not_one) = seen(mirrored), seen(Numbered(global_batch_size=20))
    assert straight == shown
    assert abs(np.mean(flips) - 0.5) < 0.06
    assert len(set(zip(shown, flips, strict=True))) == 80  # both ways
    assert not any(not_one)
    for loader in (mirrored.val_dataloader(), mirrored.test_dataloader()):
        assert not any(any(numbers(batch.x0)[1]) for batch in loader)


def test_labels_and_places_stay_with_their_images():
    data = Numbered(flip=True, global_batch_size=8)
    for batch in data.train_dataloader():
        assert numbers(batch.x0)[0] == batch.index.tolist()
        assert [number % 10 for number in batch.index.tolist()] == batch.condition.label.tolist()
        assert batch.row.tolist() == list(range(8))
    for batch in data.test_dataloader():
        assert [number - 100 for number in numbers(batch.x0)[0]] == batch.index.tolist()
        assert batch.row is None


def test_a_step_left_half_way_is_begun_again_and_whole_steps_never_repeat():
    layout = Layout(8, 0, 1, 2)
    whole = take(TrainingStream(40, layout, only_indices), 12)
    stream = TrainingStream(40, layout, only_indices)
    iter(stream)  # nothing is asked of it
    assert take(stream, 4) == whole[:4]
    assert stream.state_dict() == {"step": 2}
    assert take(stream, 1) == whole[4:5]
    assert stream.state_dict() == {"step": 2}
    assert take(stream, 8) == whole[4:12]


def test_a_position_moves_to_any_other_layout():
    whole = flat(take(TrainingStream(40, Layout(8), pairs, flip=True), 9))
    stream = TrainingStream(40, Layout(8, 0, 1, 2), pairs, flip=True)
    stream.load_state_dict({"step": 3})
    assert flat(take(stream, 12)) == whole[24:]


# ----------------------------------------------------------------------- under Lightning


def test_plain_python_and_lightning_get_the_same_batches(tmp_path):
    data, kept = Numbered(global_batch_size=8), []
    before = next(iter(data.train_dataloader()))
    module = Recorder()
    module.on_train_start = lambda: kept.append(next(iter(data.val_dataloader())))
    make_trainer(tmp_path, max_steps=1).fit(module, data)
    assert (kept[0].samples.dtype, type(kept[0])) == (torch.uint8, RawBatch)  # on its way
    for batch in (*module.batches, next(iter(data.train_dataloader()))):  # under Lightning, after
        assert type(batch) is Batch
        assert torch.equal(batch.x0, before.x0)
        assert torch.equal(batch.condition.label, before.condition.label)


def test_half_precision_leaves_images_in_float32_and_places_in_int64(tmp_path):
    (batch,) = fit(tmp_path, Numbered(), max_steps=1, precision="bf16-true").batches
    dtypes = [part.dtype for part in (batch.x0, batch.condition.label, batch.index, batch.row)]
    assert dtypes == [torch.float32, torch.int64, torch.int64, torch.int64]


@pytest.mark.parametrize("data", [Numbered(flip=True), Toy2D("moons", n=8)])
def test_places_stay_on_the_cpu_when_a_batch_moves_to_a_device(data):
    samples, labels = data.samples("train")
    index = torch.arange(len(samples))
    raw = RawBatch(samples, labels, index, torch.ones_like(index, dtype=torch.bool), index)
    moved = data.transfer_batch_to_device(raw, torch.device("meta"), 0)
    batch = data.on_after_batch_transfer(moved, 0)
    assert {batch.x0.device.type, batch.condition.label.device.type} == {"meta"}
    assert torch.equal(batch.index, index)
    assert torch.equal(batch.row, index)


@pytest.mark.parametrize(
    ("kind", "accumulate", "saved_at"),
    [(Numbered, a, k) for a in (1, 2) for k in (3, 7)]
    + [pytest.param(Numbered, a, k, marks=pytest.mark.slow) for a in (1, 2) for k in (5, 10)]
    + [
        (NumberedFiles, 1, 3),
        pytest.param(NumberedFiles, 2, 7, marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_sees_what_the_whole_run_would_have_seen(
    tmp_path, kind, accumulate, saved_at
):
    settings = {"accumulate_grad_batches": accumulate, "max_epochs": -1}
    arguments = {"global_batch_size": 8, "flip": True, "seed": 4}
    whole = fit(tmp_path, Numbered(**arguments), max_steps=13, **settings)  # 5 steps an epoch
    assert len(whole.trained) == 13 * accumulate

    saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=saved_at, save_top_k=-1)
    saving = {"callbacks": [saver], "enable_checkpointing": True}
    first = fit(tmp_path, kind(**arguments), max_steps=saved_at, **saving, **settings)
    path = tmp_path / f"step={saved_at}.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    states = checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    assert states == [{"step": saved_at}]

    with warnings.catch_warnings():
        warnings.filterwarnings("error", "You're resuming from a checkpoint")
        second = fit(tmp_path, kind(**arguments), path, max_steps=13, **settings)
    assert first.trained + second.trained == whole.trained
    assert first.flipped + second.flipped == whole.flipped


@pytest.mark.parametrize("workers", [0, 2])
def test_images_read_one_by_one_come_as_those_in_memory(workers):
    arguments = {"global_batch_size": 8, "flip": True, "seed": 4}
    memory, files = Numbered(**arguments), NumberedFiles(**arguments, workers=workers)
    files.setup()
    for name, epochs in (("train", 3), ("val", 1), ("test", 1)):
        expected, found = (getattr(one, f"{name}_dataloader")() for one in (memory, files))
        assert len(found) == len(expected)
        count = epochs * len(expected)
        for a, b in zip(take(expected, count), take(found, count), strict=True):
            assert torch.equal(a.x0, b.x0)
            assert torch.equal(a.condition.label, b.condition.label)
            assert torch.equal(a.index, b.index)
            assert a.row is b.row is None or torch.equal(a.row, b.row)
    assert files.train_dataloader().state_dict() == {"step": 0}
    assert torch.equal(files.finished("val", 3).x0, memory.finished("val", 3).x0)


def test_a_run_resumed_from_an_epochs_last_checkpoint_goes_on(tmp_path):
    whole = fit(tmp_path, Numbered(global_batch_size=8), max_epochs=4)
    saver = ModelCheckpoint(tmp_path, "end", save_on_train_epoch_end=True)
    saving = {"callbacks": [saver], "enable_checkpointing": True}
    first = fit(tmp_path, Numbered(global_batch_size=8), max_epochs=2, **saving)
    second = fit(tmp_path, Numbered(global_batch_size=8), tmp_path / "end.ckpt", max_epochs=4)
    assert first.trained + second.trained == whole.trained


def test_reloading_the_loaders_does_not_start_over(tmp_path):
    whole = fit(tmp_path, Numbered(global_batch_size=8), max_epochs=3)
    reloading = {"max_epochs": 3, "reload_dataloaders_every_n_epochs": 1}
    assert fit(tmp_path, Numbered(global_batch_size=8), **reloading).trained == whole.trained
    assert sorted(flat(whole.trained)) == sorted([*range(40)] * 3)


@pytest.mark.parametrize(("overfit", "batches"), [(2, 2), (0.5, 2), (1, 1)])
def test_overfit_batches_repeats_the_first_batches_in_order(tmp_path, overfit, batches):
    data = Numbered(global_batch_size=8)
    module = fit(tmp_path, data, max_epochs=3, overfit_batches=overfit)
    first = [list(range(8 * k, 8 * k + 8)) for k in range(batches)]
    assert module.trained == first * 3


def test_a_batch_that_cannot_be_dealt_out_is_refused_with_the_nearest_that_can(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=1, accumulate_grad_batches=3)
    with pytest.raises(InputError, match="use 6 or 9"):
        trainer.fit(Recorder(), Numbered(global_batch_size=8))
    trainer.validate(Recorder(), Numbered(global_batch_size=8))  # which has no need of it
    with pytest.raises(InputError, match=r"use 8$"):
        TrainingStream(40, Layout(5, world=8), pairs)


def test_validation_and_test_see_every_image_once_in_order(tmp_path):
    data = Numbered(global_batch_size=8)
    module = fit(tmp_path, data, max_epochs=1)
    assert module.evaluated == list(range(40, 50))
    module.evaluated.clear()
    make_trainer(tmp_path).test(module, data)
    assert module.evaluated == list(range(100, 121))


def test_predict_gets_sample_indices_and_needs_no_data(tmp_path, monkeypatch):
    monkeypatch.setattr(MNIST, "fetch", lambda self: pytest.fail("downloaded"))
    data = MNIST(root=str(tmp_path), global_batch_size=8, predict_n=21)
    batches = make_trainer(tmp_path).predict(Recorder(), data)
    assert torch.equal(torch.cat(batches), torch.arange(21))
    assert max(len(batch) for batch in batches) <= 8


@pytest.mark.parametrize("n", [1, 2, 5, 7, 8, 9, 64, 101])
@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("batch", [1, 2, 16])
def test_evaluation_shares_cover_each_sample_once_in_equally_many_batches(n, world, batch):
    layouts = [Layout(batch * world, rank, world) for rank in range(world)]
    if n < world:
        with pytest.raises(InputError, match=r"--trainer\.devices"):
            EvaluationLoader(n, layouts[0], only_indices)
        return
    loaders = [EvaluationLoader(n, layout, only_indices) for layout in layouts]
    assert len({len(loader) for loader in loaders}) == 1
    for rank, loader in enumerate(loaders):
        share = list(loader)
        assert len(share) == len(loader)
        assert flat(share) == list(range(rank, n, world))
        assert all(0 < len(rows) <= max(batch, 2) for rows in share)


def test_the_helpers_write_what_the_published_files_look_like(tmp_path):
    written = write_cifar10(tmp_path, train=10, test=5)
    content = (Path(tmp_path) / "cifar-10-batches-py" / "data_batch_1").read_bytes()
    batch = pickle.load(io.BytesIO(content), encoding="bytes")
    assert content.startswith(b"\x80\x02}")
    assert b"cnumpy.core.multiarray\n_reconstruct\n" in content
    assert np.array_equal(batch[b"data"], written["train"][0][:2].reshape(2, -1))
    assert batch[b"labels"] == written["train"][1][:2].tolist()


@pytest.mark.parametrize(
    ("image", "label", "fix"),
    [
        (torch.zeros(1, 4, 4), 0, "give torch.uint8"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), 0, r"give torch.uint8 \[1, 4, 4\]"),
        (torch.zeros(1, 4, 4, dtype=torch.uint8), 10, "with 0…9"),
    ],
)
def test_items_that_are_not_what_the_data_says_of_itself_are_refused(image, label, fix):
    class Items(NumberedFiles):
        def dataset(self, split):
            return [(image, label)] * 8

    with pytest.raises(InputError, match=fix):
        next(iter(Items(global_batch_size=4, workers=0).train_dataloader()))
