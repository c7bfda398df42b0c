import hashlib
import io
import os
import pickle
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from sklearn.datasets import load_digits

from ddpm_lightning.configurable import build
from ddpm_lightning.data import CIFAR10, CIFAR100, MNIST, Digits, FashionMNIST, ImageData
from ddpm_lightning.data.in_memory import RawBatch
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


def numbers(x0):
    """The numbers and mirroring of a batch of Numbered."""
    pixels = to_uint8(x0)[:, 0, 0]
    flipped = pixels[:, 2] == 255
    return torch.where(flipped, pixels[:, 3], pixels[:, 0]).tolist(), flipped.tolist()


class Recorder(LightningModule):
    """Records the numbers it is trained and evaluated on."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.trained, self.flipped, self.evaluated, self.kinds = [], [], [], set()

    def training_step(self, batch, batch_idx):
        x0, y = batch
        self.kinds.add((x0.dtype, y.dtype))
        shown, flipped = numbers(x0)
        self.trained.append(shown)
        self.flipped.append(flipped)
        return self.weight * x0.mean()

    def validation_step(self, batch, batch_idx):
        if not self.trainer.sanity_checking:
            self.evaluated += numbers(batch[0])[0]

    def test_step(self, batch, batch_idx):
        self.evaluated += numbers(batch[0])[0]

    def predict_step(self, batch, batch_idx):
        return batch

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def make_trainer(tmp_path, **settings):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    settings = quiet | {"enable_checkpointing": False} | settings
    return Trainer(accelerator="cpu", devices=1, default_root_dir=tmp_path, **settings)


def pairs(indices, flips=None):
    return list(zip(indices.tolist(), flips.tolist() if flips is not None else [], strict=True))


def only_indices(indices, flips=None):
    return indices.tolist()


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
    for split, source, rows in (
        ("train", "train", slice(45)),
        ("val", "train", slice(45, None)),
        ("test", "test", slice(None)),
    ):
        images, labels = data.images(split)
        expected_images, expected_labels = written[source]
        assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
        assert images.shape[1:] == data.shape
        assert np.array_equal(images.numpy(), expected_images[rows].reshape(-1, *cls.native_shape))
        assert np.array_equal(labels.numpy(), expected_labels[rows])
    x0 = torch.cat([x0 for x0, _ in data.test_dataloader()])
    reference = written["test"][0].reshape(-1, *data.shape).astype(np.float64) / 255 * 2 - 1
    assert x0.dtype == torch.float32
    assert np.allclose(x0.numpy(), reference, atol=1e-6)


def test_digits_come_without_files_and_fill_eight_bits():
    data = Digits(root="/nowhere", download=False)
    images = torch.cat([data.images(split)[0] for split in ("train", "val", "test")])
    labels = torch.cat([data.images(split)[1] for split in ("train", "val", "test")])
    assert [len(data.images(split)[0]) for split in ("train", "val", "test")] == [1350, 150, 297]
    assert (images.shape, images.dtype) == ((1797, 1, 8, 8), torch.uint8)
    reference = np.floor(load_digits().images * 255 / 16 + 0.5)
    assert np.array_equal(images[:, 0].numpy(), reference)
    assert np.array_equal(labels.numpy(), load_digits().target)
    assert (images.min(), images.max()) == (0, 255)


def test_shape_and_classes_are_known_before_any_file_is_read():
    data = CIFAR100(root="/nowhere", image_size=64)
    assert (data.shape, data.num_classes, data.data_range) == ((3, 64, 64), 100, (-1.0, 1.0))


def test_a_data_set_is_rebuilt_from_its_description(tmp_path):
    data = MNIST(root=str(tmp_path), image_size=32, subset=0.5, held_out=0, seed=3)
    again = build(data.describe())
    assert type(again) is MNIST
    assert again.describe() == data.describe()
    assert again.shape == (1, 32, 32)


# ------------------------------------------------------------------------- the splits


def test_splits_are_disjoint_and_the_same_for_every_seed():
    for seed in (0, 1):
        data = Numbered(seed=seed)
        shown = {split: data.images(split)[0][:, 0, 0, 0].tolist() for split in ("train", "val")}
        assert shown == {"train": list(range(40)), "val": list(range(40, 50))}
        assert data.images("test")[0][:, 0, 0, 0].tolist() == list(range(100, 121))


def test_with_nothing_held_out_all_train_and_the_test_split_validates():
    data = Numbered(held_out=0)
    assert len(data.images("train")[0]) == 50
    assert torch.equal(data.images("val")[0], data.images("test")[0])


@pytest.mark.parametrize(("subset", "size"), [(0.25, 10), (7, 7), (1, 1), (1.0, 40), (0.001, 1)])
def test_a_subset_is_a_fixed_random_part_of_the_training_images(subset, size):
    data = Numbered(subset=subset)
    chosen = data.images("train")[0][:, 0, 0, 0].tolist()
    assert len(set(chosen)) == len(chosen) == size
    assert set(chosen) <= set(range(40))
    assert len(data.images("val")[0]) == 10
    assert Numbered(subset=subset).images("train")[0][:, 0, 0, 0].tolist() == chosen
    if 1 < size < 40:
        assert chosen != list(range(size))
        assert Numbered(subset=subset, seed=1).images("train")[0][:, 0, 0, 0].tolist() != chosen
    shown = numbers(torch.cat([x0 for x0, _ in data.train_dataloader()]))[0]
    assert set(shown) == set(chosen)


def test_each_stage_reads_only_what_it_needs_and_reads_it_once():
    for stage, held_out, reads in (
        ("predict", 10, 0),
        ("fit", 10, 1),
        ("validate", 10, 1),
        ("fit", 0, 2),
        ("validate", 0, 1),
        ("test", 10, 1),
        (None, 10, 2),
    ):
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
        ({"image_size": 0, "resize": "bilinear"}, "1 or more"),
        ({"subset": 0.0}, "0.2"),
        ({"subset": 1.5}, "0.2"),
        ({"subset": 0}, "0.2"),
        ({"subset": -0.5}, "0.2"),
        ({"subset": 41}, "use less"),
        ({"held_out": -1}, "0 or more"),
        ({"held_out": 50}, "use less"),
        ({"global_batch_size": 0}, "1 or more"),
        ({"predict_n": 0}, "1 or more"),
        ({"seed": -1}, "0 or more"),
    ],
)
def test_arguments_out_of_range_are_refused_with_the_fix(arguments, fix):
    with pytest.raises(InputError, match=fix):
        Numbered(**arguments).setup("fit")


def test_missing_files_are_named_with_their_folder_and_the_fix(tmp_path):
    data = MNIST(root=str(tmp_path), download=False)
    data.prepare_data()
    with pytest.raises(InputError) as caught:
        data.setup("fit")
    message = str(caught.value)
    assert str(tmp_path / "MNIST" / "raw") in message
    assert "train-images-idx3-ubyte, train-labels-idx1-ubyte" in message
    assert "t10k" not in message
    assert "--data.root" in message
    assert "--data.download true" in message


def test_a_failed_download_is_one_clear_error_before_training(tmp_path, monkeypatch):
    def fetch(self):
        raise OSError("no route\nto host")

    monkeypatch.setattr(CIFAR10, "fetch", fetch)
    module = Recorder()
    with pytest.raises(InputError, match=r"no route to host.*connect to the internet") as caught:
        make_trainer(tmp_path, max_steps=1).fit(module, CIFAR10(root=str(tmp_path)))
    assert "\n" not in str(caught.value)
    assert not module.trained
    with pytest.raises(InputError, match="no route"):
        CIFAR10(root=str(tmp_path)).images("test")


def test_nothing_is_downloaded_when_the_files_are_there(tmp_path, monkeypatch):
    write_mnist(tmp_path, train=5, test=5)
    monkeypatch.setattr(MNIST, "fetch", lambda self: pytest.fail("downloaded"))
    data = MNIST(root=str(tmp_path), held_out=1)
    data.prepare_data()
    assert len(data.images("train")[0]) == 4


def test_training_needs_no_test_files(tmp_path):
    write_mnist(tmp_path, train=5, test=5)
    for file in (tmp_path / "MNIST" / "raw").glob("t10k*"):
        file.unlink()
    MNIST(root=str(tmp_path), held_out=1, download=False).setup("fit")


@pytest.mark.parametrize("kept", [0, 3, 10, 1000, -1])
@pytest.mark.parametrize("kind", ["images-idx3", "labels-idx1"])
def test_a_truncated_idx_file_is_named(tmp_path, kept, kind):
    write_mnist(tmp_path, train=2000, test=5)
    file = tmp_path / "MNIST" / "raw" / f"train-{kind}-ubyte"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(InputError, match=str(file)):
        MNIST(root=str(tmp_path), held_out=1).setup("fit")


def test_files_of_another_data_set_are_refused(tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    write_mnist(tmp_path, train=6, test=5)
    (folder / "train-labels-idx1-ubyte").write_bytes(
        (folder / "t10k-labels-idx1-ubyte").read_bytes()
    )
    with pytest.raises(InputError, match=r"6 images, but labels are torch.int64 \[5\]"):
        MNIST(root=str(tmp_path), held_out=1).setup("fit")
    (folder / "t10k-labels-idx1-ubyte").write_bytes(
        (folder / "t10k-images-idx3-ubyte").read_bytes()
    )
    with pytest.raises(InputError, match="t10k-labels"):
        MNIST(root=str(tmp_path)).setup("test")


class Malicious:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path, protocol):
    write_cifar10(tmp_path, train=10, test=5)
    marker = tmp_path / "executed"
    file = tmp_path / "cifar-10-batches-py" / "test_batch"
    for function, arguments, name in (
        (os.mkdir, (str(marker),), "mkdir"),
        (eval, (f"open({str(marker)!r}, 'w')",), "eval"),
        (getattr, ("", "join"), "getattr"),
    ):
        content = {b"data": Malicious(function, *arguments), b"labels": []}
        file.write_bytes(pickle.dumps(content, protocol))
        with pytest.raises(InputError, match=f"{file}.*{name}.*nothing was run"):
            CIFAR10(root=str(tmp_path)).setup("test")
        assert not marker.exists()


def test_an_array_of_objects_is_refused(tmp_path):
    write_cifar10(tmp_path, train=10, test=5)
    file = tmp_path / "cifar-10-batches-py" / "test_batch"
    objects = np.array([[b"x"] * 3072], dtype=object)
    for data in (objects, np.zeros((1, 3072), np.float32), np.zeros((1, 3071), np.uint8), [0] * 9):
        file.write_bytes(pickle.dumps({b"data": data, b"labels": [1]}, protocol=2))
        with pytest.raises(InputError, match=f"{file}.*replace the file"):
            CIFAR10(root=str(tmp_path)).setup("test")


@pytest.mark.parametrize(
    "labels", [{b"labels": [1]}, {b"labels": ["1", "2"]}, {b"fine_labels": [1, 2]}, {}]
)
def test_wrong_labels_are_refused(tmp_path, labels):
    write_cifar10(tmp_path, train=10, test=5)
    file = tmp_path / "cifar-10-batches-py" / "test_batch"
    content = {b"data": np.zeros((2, 3072), np.uint8)} | labels
    file.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(InputError, match=f"{file}.*replace the file"):
        CIFAR10(root=str(tmp_path)).setup("test")


@pytest.mark.filterwarnings("ignore:.*MD5")
def test_labels_beyond_the_classes_are_refused(tmp_path):
    write_cifar10(tmp_path, train=10, test=5)
    file = tmp_path / "cifar-10-batches-py" / "test_batch"
    content = {b"data": np.zeros((2, 3072), np.uint8), b"labels": [3, 10]}
    file.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(InputError, match=r"span 3…10 instead of 0…9"):
        CIFAR10(root=str(tmp_path)).setup("test")


@pytest.mark.parametrize("kept", [0, 1, 40, 1000, -1])
def test_a_truncated_cifar_file_is_named(tmp_path, kept):
    write_cifar10(tmp_path, train=10, test=5)
    file = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(InputError, match=str(file)):
        CIFAR10(root=str(tmp_path), held_out=1).setup("fit")


@pytest.mark.filterwarnings("ignore:.*MD5")
def test_fortran_ordered_arrays_are_read_in_their_order(tmp_path):
    write_cifar10(tmp_path, train=10, test=5)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)
    content = {b"data": np.asfortranarray(pixels), b"labels": [0, 1, 2, 3]}
    file = tmp_path / "cifar-10-batches-py" / "test_batch"
    file.write_bytes(pickle.dumps(content, protocol=2))
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


def test_every_image_is_seen_once_per_n_positions_in_an_order_new_each_time():
    stream = TrainingStream(37, Layout(8), only_indices)
    shown = np.array(flat(take(stream, 37))).reshape(8, 37)
    for epoch in shown:
        assert sorted(epoch) == list(range(37))
    assert len({tuple(epoch) for epoch in shown}) == 8
    assert (shown[0] != np.arange(37)).any()


def test_small_data_fills_a_large_batch():
    shown = take(TrainingStream(3, Layout(8), only_indices), 3)
    assert [len(batch) for batch in shown] == [8, 8, 8]
    for epoch in np.array(flat(shown)).reshape(8, 3):
        assert sorted(epoch) == [0, 1, 2]


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (1, 2), (2, 2), (4, 3)])
def test_the_global_batch_is_the_same_in_every_layout(world, accumulate):
    alone = take(TrainingStream(40, Layout(24), pairs, seed=5, flip=True), 7)
    ranks = [
        take(
            TrainingStream(40, Layout(24, rank, world, accumulate), pairs, seed=5, flip=True),
            7 * accumulate,
        )
        for rank in range(world)
    ]
    for step, global_batch in enumerate(alone):
        dealt = [
            row
            for micro in range(accumulate)
            for rank in range(world)
            for row in ranks[rank][step * accumulate + micro]
        ]
        assert dealt == global_batch


def test_an_epoch_is_the_whole_steps_that_fit_the_data():
    assert len(TrainingStream(40, Layout(8), pairs)) == 5
    assert len(TrainingStream(47, Layout(8), pairs)) == 5
    assert len(TrainingStream(40, Layout(8, 0, 2, 4), pairs)) == 20
    assert len(TrainingStream(3, Layout(8), pairs)) == 1
    assert len(list(TrainingStream(47, Layout(8), only_indices))) == 5


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
    plain, mirrored = Numbered(global_batch_size=20), Numbered(global_batch_size=20, flip=True)
    stream = mirrored.train_dataloader()
    shown, flips = zip(*(numbers(x0) for x0, _ in take(stream, 100)), strict=True)
    assert abs(np.mean(flips) - 0.5) < 0.06
    twice = [set(zip(s, f, strict=True)) for s, f in zip(shown, flips, strict=True)]
    assert len(set.union(*twice)) == 80  # each image both ways
    plain_batches = take(plain.train_dataloader(), 100)
    straight, no_flips = zip(*(numbers(x0) for x0, _ in plain_batches), strict=True)
    assert straight == shown
    assert not np.any(no_flips)
    for loader in (mirrored.val_dataloader(), mirrored.test_dataloader()):
        assert not any(any(numbers(x0)[1]) for x0, _ in loader)


def test_labels_stay_with_their_images():
    for x0, y in Numbered(flip=True).train_dataloader():
        assert [number % 10 for number in numbers(x0)[0]] == y.tolist()


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


def test_plain_python_and_lightning_both_get_x0_and_y(tmp_path):
    data = Numbered(global_batch_size=8)
    x0, y = next(iter(data.train_dataloader()))
    assert (x0.shape, x0.dtype, y.dtype) == ((8, 1, 4, 4), torch.float32, torch.int64)
    module = Recorder()
    kept = []
    module.on_train_start = lambda: kept.append(next(iter(data.val_dataloader())))
    make_trainer(tmp_path, max_steps=1).fit(module, data)
    assert module.kinds == {(torch.float32, torch.int64)}
    assert module.trained == [numbers(x0)[0]]
    assert isinstance(kept[0], RawBatch)  # on its way to the device
    assert kept[0].samples.dtype == torch.uint8
    again, _ = next(iter(data.train_dataloader()))  # after training, plain Python again
    assert torch.equal(again, x0)


def test_half_precision_leaves_x0_in_float32(tmp_path):
    module = Recorder()
    trainer = make_trainer(tmp_path, max_steps=1, precision="bf16-true")
    trainer.fit(module, Numbered(global_batch_size=8))
    assert module.kinds == {(torch.float32, torch.int64)}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("saved_at", [3, 5, 7, 10])
def test_a_resumed_run_sees_what_the_whole_run_would_have_seen(tmp_path, accumulate, saved_at):
    settings = {"accumulate_grad_batches": accumulate, "max_epochs": -1}
    arguments = {"global_batch_size": 8, "flip": True, "seed": 4}
    whole = Recorder()  # 5 steps an epoch
    make_trainer(tmp_path, max_steps=13, **settings).fit(whole, Numbered(**arguments))
    assert len(whole.trained) == 13 * accumulate

    saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=saved_at, save_top_k=-1)
    first = Recorder()
    trainer = make_trainer(
        tmp_path, max_steps=saved_at, callbacks=[saver], enable_checkpointing=True, **settings
    )
    trainer.fit(first, Numbered(**arguments))
    path = tmp_path / f"step={saved_at}.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    states = checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    assert states == [{"step": saved_at}]

    second = Recorder()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "You're resuming from a checkpoint")
        trainer = make_trainer(tmp_path, max_steps=13, **settings)
        trainer.fit(second, Numbered(**arguments), ckpt_path=path, weights_only=True)
    assert first.trained + second.trained == whole.trained
    assert first.flipped + second.flipped == whole.flipped


def test_a_run_resumed_from_an_epochs_last_checkpoint_goes_on(tmp_path):
    whole = Recorder()
    make_trainer(tmp_path, max_epochs=4).fit(whole, Numbered(global_batch_size=8))
    first = Recorder()
    saver = ModelCheckpoint(tmp_path, "end", save_on_train_epoch_end=True)
    trainer = make_trainer(tmp_path, max_epochs=2, callbacks=[saver], enable_checkpointing=True)
    trainer.fit(first, Numbered(global_batch_size=8))
    second = Recorder()
    make_trainer(tmp_path, max_epochs=4).fit(
        second, Numbered(global_batch_size=8), ckpt_path=tmp_path / "end.ckpt", weights_only=True
    )
    assert first.trained + second.trained == whole.trained


def test_reloading_the_loaders_does_not_start_over(tmp_path):
    whole, reloaded = Recorder(), Recorder()
    make_trainer(tmp_path, max_epochs=3).fit(whole, Numbered(global_batch_size=8))
    make_trainer(tmp_path, max_epochs=3, reload_dataloaders_every_n_epochs=1).fit(
        reloaded, Numbered(global_batch_size=8)
    )
    assert reloaded.trained == whole.trained
    assert sorted(flat(whole.trained)) == sorted([*range(40)] * 3)


@pytest.mark.parametrize(("overfit", "batches"), [(2, 2), (0.5, 2), (1, 1)])
def test_overfit_batches_repeats_the_first_batches_in_order(tmp_path, overfit, batches):
    module = Recorder()
    trainer = make_trainer(tmp_path, max_epochs=3, overfit_batches=overfit)
    trainer.fit(module, Numbered(global_batch_size=8))
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
    module = Recorder()
    data = Numbered(global_batch_size=8)
    make_trainer(tmp_path, max_epochs=1).fit(module, data)
    assert module.evaluated == list(range(40, 50))
    module.evaluated.clear()
    make_trainer(tmp_path).test(module, data)
    assert module.evaluated == list(range(100, 121))


def test_predict_gets_sample_indices(tmp_path):
    batches = make_trainer(tmp_path).predict(
        Recorder(), Numbered(global_batch_size=8, predict_n=21)
    )
    assert torch.equal(torch.cat(batches), torch.arange(21))
    assert max(len(batch) for batch in batches) <= 8


def test_predict_needs_no_data(tmp_path, monkeypatch):
    monkeypatch.setattr(MNIST, "fetch", lambda self: pytest.fail("downloaded"))
    batches = make_trainer(tmp_path).predict(Recorder(), MNIST(root=str(tmp_path), predict_n=5))
    assert torch.equal(torch.cat(batches), torch.arange(5))


@pytest.mark.parametrize("n", [1, 2, 5, 7, 8, 9, 64, 101])
@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("batch", [1, 2, 16])
def test_evaluation_shares_cover_each_sample_once_in_equally_many_batches(n, world, batch):
    if n < world:
        with pytest.raises(InputError, match=r"--trainer\.devices"):
            EvaluationLoader(n, Layout(batch * world, 0, world), only_indices)
        return
    loaders = [
        EvaluationLoader(n, Layout(batch * world, rank, world), only_indices)
        for rank in range(world)
    ]
    assert len({len(loader) for loader in loaders}) == 1
    batches = [list(loader) for loader in loaders]
    for rank, share in enumerate(batches):
        assert len(share) == len(loaders[rank])
        assert flat(share) == list(range(rank, n, world))
        assert min(map(len, share)) > 0
        assert max(map(len, share)) <= max(batch, 2)
    assert sorted(flat(flat(batches))) == list(range(n))


def test_the_helpers_write_what_the_published_files_look_like(tmp_path):
    written = write_cifar10(tmp_path, train=10, test=5)
    content = (Path(tmp_path) / "cifar-10-batches-py" / "data_batch_1").read_bytes()
    batch = pickle.load(io.BytesIO(content), encoding="bytes")
    assert content.startswith(b"\x80\x02}")
    assert b"cnumpy.core.multiarray\n_reconstruct\n" in content
    assert np.array_equal(batch[b"data"], written["train"][0][:2].reshape(2, -1))
    assert batch[b"labels"] == written["train"][1][:2].tolist()
