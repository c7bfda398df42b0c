"""ColourNet: its weights, what it computes, its training, and when auto chooses it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from safetensors import safe_open

from ddpm_lightning.callbacks import GenerativeMetrics
from ddpm_lightning.cli import main
from ddpm_lightning.data import CIFAR10, CIFAR100
from ddpm_lightning.doctor import Run
from ddpm_lightning.doctor.run_checks import metric_weights
from ddpm_lightning.errors import InputError
from ddpm_lightning.metrics import (
    Accuracy,
    ColourNet,
    Inception,
    LeNet,
    Pixels,
    Statistics,
    chosen_extractor,
    frechet_distance,
    train_colour,
)
from ddpm_lightning.metrics.colour import CLASSES
from tests.make_data import write_cifar10
from tests.small import fail, tiny_data, tiny_module, trainer
from tests.test_cli import DIGITS

INCEPTION = "weights-inception-2015-12-05-6726825d.pth"


def photographs(n: int, seed: int = 0, size: int = 32) -> torch.Tensor:
    """Smooth random colours, uint8 [n, 3, size, size]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = 255 * torch.rand(n, 3, 4, 4, generator=generator)
    smooth = F.interpolate(coarse, size=(size, size), mode="bilinear")
    return smooth.round().to(torch.uint8)


def noisy(images: torch.Tensor, sigma: float) -> torch.Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    return (images + sigma * noise).round().clamp(0, 255).to(torch.uint8)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def colour():
    return ColourNet()


# ------------------------------------------------------------------------------ weights


def test_the_weights_state_data_and_accuracy():
    with safe_open(str(ColourNet.weights), framework="pt") as file:
        facts = file.metadata()
    assert "CIFAR-10" in facts["data"]
    assert int(facts["test_images"]) == 10_000
    assert float(facts["test_accuracy_percent"]) >= 85


# ----------------------------------------------------------------------------- features


def test_other_sizes_are_resized_as_by_pillows_bilinear_filter(colour):
    large = noisy(photographs(8, size=80), sigma=20)
    small = [Image.fromarray(x.permute(1, 2, 0).numpy()).resize((32, 32), 2) for x in large]
    reference = colour(torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2))
    # Pillow rounds to 8 bits.
    assert (colour(large) - reference).norm() < 0.02 * reference.norm()


@pytest.mark.slow
def test_the_distance_grows_with_noise(colour):
    real = Statistics.of(colour(photographs(200, seed=0)))
    samples = [noisy(photographs(200, seed=1), sigma) for sigma in (0, 10, 30, 90)]
    distances = [frechet_distance(Statistics.of(colour(x)), real) for x in samples]
    assert distances == sorted(distances)
    assert distances[1] > 2 * distances[0]


def test_accuracy_is_measured_of_cifar10_alone(tmp_path):
    labels = torch.arange(10)
    Accuracy().check_labels(ColourNet(), CIFAR10(str(tmp_path)), labels)
    with pytest.raises(InputError, match="the classes of CIFAR10 apart, not those of CIFAR100"):
        Accuracy().check_labels(ColourNet(), CIFAR100(str(tmp_path)), labels)


# --------------------------------------------------------------------------------- auto


@pytest.mark.parametrize(
    ("shape", "downloaded", "expected"),
    [
        ((1, 28, 28), False, LeNet),
        ((1, 28, 28), True, LeNet),
        ((3, 32, 32), False, ColourNet),
        ((3, 32, 32), True, Inception),
    ],
)
def test_auto_chooses_by_channels_and_by_weights_that_are_here(
    monkeypatch, tmp_path, shape, downloaded, expected
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    if downloaded:
        file = tmp_path / "hub" / "checkpoints" / INCEPTION
        file.parent.mkdir(parents=True)
        file.touch()
    assert type(chosen_extractor("auto", shape)) is expected


def test_an_extractor_that_is_named_stays():
    pixels = Pixels()
    assert chosen_extractor(pixels, (3, 32, 32)) is pixels


def test_auto_refuses_images_that_are_neither_grey_nor_rgb():
    with pytest.raises(InputError, match=r"\[4, 8, 8\]; use Pixels"):
        chosen_extractor("auto", (4, 8, 8))


def digits_run(root: Path, *more: str) -> list[str]:
    """Flags that shrink configs/digits.yaml to two steps and few samples, with its metrics."""
    return [
        *("fit", "--config", DIGITS, f"--trainer.default_root_dir={root}"),
        *("--model.net.channels=8", "--model.net.groups=4", "--model.net.blocks=1"),
        *("--trainer.max_steps=2", "--trainer.accelerator=cpu", "--trainer.callbacks=[]"),
        *("--trainer.enable_progress_bar=false", "--trainer.limit_val_batches=0"),
        *("--grid=null", "--metrics.n=8", "--metrics.sampler.steps=2"),
        "--data.global_batch_size=8",
        *more,
    ]


@pytest.fixture
def no_inception(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


@pytest.mark.slow
def test_the_digits_config_trains_on_colour_data_and_says_which_extractor(
    no_inception, tmp_path, capsys
):
    root, data = tmp_path / "run", tmp_path / "data"
    write_cifar10(data, train=40, test=10)
    main(digits_run(root, "--data=CIFAR10", f"--data.root={data}", "--data.held_out=8"))
    assert "extractor auto: ColourNet (fd_colour)" in capsys.readouterr().out
    (record,) = json.loads((root / "metrics.json").read_text())
    assert record["metric"] == "fd_colour"
    assert record["extractor"]["class_path"] == "ddpm_lightning.metrics.ColourNet"
    assert record["extractor"]["sha256"] == ColourNet().digest
    assert record["extractor"]["resize"] == "antialiased-bilinear-32"

    flags = ["--n=8", "--sampler=DDIM", "--sampler.steps=2", "--device=cpu"]
    ckpt = f"--ckpt={root / 'checkpoints' / 'last.ckpt'}"
    main(["evaluate", ckpt, f"--out={tmp_path / 'scores'}", "--metrics=fd,accuracy", *flags])
    assert "extractor auto: ColourNet" in capsys.readouterr().out
    scores = json.loads((tmp_path / "scores" / "results.json").read_text())
    assert [one["metric"] for one in scores] == ["fd_colour", "accuracy"]


@pytest.mark.slow
def test_the_digits_config_keeps_lenet_and_its_tag(tmp_path, capsys):
    main(digits_run(tmp_path))
    assert "extractor auto: LeNet (fd_lenet) for grey images" in capsys.readouterr().out
    (record,) = json.loads((tmp_path / "metrics.json").read_text())
    assert record["metric"] == "fd_lenet"
    assert record["extractor"]["class_path"] == "ddpm_lightning.metrics.LeNet"
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert saved["metrics"]["init_args"]["extractor"] == "auto"


def test_lenet_for_colour_data_is_refused_with_the_flag_before_training(tmp_path, capsys):
    root, data = tmp_path / "run", tmp_path / "data"
    write_cifar10(data, train=40, test=10)
    flags = ["--data=CIFAR10", f"--data.root={data}", "--data.held_out=8"]
    line = fail(capsys, *digits_run(root, *flags, "--metrics.extractor=LeNet"))
    assert "--metrics.extractor auto" in line
    assert not (root / "checkpoints").exists()


def test_the_doctor_names_the_extractor_that_auto_chooses(tmp_path):
    source = tiny_data()
    one = trainer(tmp_path, 1, callbacks=[GenerativeMetrics()])
    found = metric_weights(Run(tiny_module(data=source.spec), source, one))
    assert found.text == "LeNet found"


# ----------------------------------------------------------------------------- training


def tinted(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images whose class is one of ten colours: uint8 [n, 3, 32, 32] and [n]."""
    labels = torch.arange(n) % 10
    tints = torch.randint(220, (10, 3, 1, 1), generator=torch.Generator().manual_seed(0))
    return (photographs(n) // 8 + tints[labels]).to(torch.uint8), labels


@pytest.mark.slow
def test_training_learns_classes():
    torch.manual_seed(0)
    *_, network = train_colour.train(*tinted(200), epochs=6, batch_size=40)
    assert train_colour.accuracy(network.eval(), *tinted(100)) > 30  # guessing: 10


def write_folders(root: Path, split: str, images: np.ndarray, labels: np.ndarray) -> None:
    for name in CLASSES:
        (root / split / name).mkdir(parents=True)
    for k, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = root / split / CLASSES[label] / f"{k:05d}.png"
        Image.fromarray(image.transpose(1, 2, 0)).save(path)


def test_the_script_reads_cifar10s_own_files_and_class_folders_alike(tmp_path):
    written = write_cifar10(tmp_path / "files", train=40, test=20)
    write_folders(tmp_path / "folders", "test", *written["test"])
    for root in ("files", "folders"):
        images, labels = train_colour.cifar10(tmp_path / root, "test")
        order = written["test"][1].argsort(kind="stable")
        rows = labels.argsort(stable=True)
        assert np.array_equal(labels[rows], written["test"][1][order])
        assert np.array_equal(images[rows], written["test"][0][order])


def test_folders_of_other_classes_are_refused(tmp_path):
    (tmp_path / "train" / "emoji").mkdir(parents=True)
    with pytest.raises(InputError, match=r"\['emoji'\], not CIFAR-10's"):
        train_colour.cifar10(tmp_path, "train")


@pytest.mark.slow
def test_the_script_writes_weights_of_the_shipped_form_with_their_accuracy(
    tmp_path, monkeypatch, capsys
):
    written = write_cifar10(tmp_path, train=500, test=100)
    out = tmp_path / "colour.safetensors"
    words = ["train_colour", f"--root={tmp_path}", "--epochs=1", f"--out={out}"]
    monkeypatch.setattr("sys.argv", words)
    train_colour.main()
    with safe_open(str(out), "pt") as new, safe_open(str(ColourNet.weights), "pt") as shipped:
        assert set(new.keys()) == set(shipped.keys())
        assert new.metadata().keys() == shipped.metadata().keys()
        facts = new.metadata()
    assert facts["data"] == "CIFAR-10's own files"
    assert f"CIFAR-10 test: {facts['test_accuracy_percent']} %" in capsys.readouterr().out
    monkeypatch.setattr(ColourNet, "weights", out)
    images, labels = (torch.from_numpy(part) for part in written["test"])
    right = ColourNet().both(images).logits.argmax(dim=1) == labels
    assert 100 * right.double().mean() == pytest.approx(float(facts["test_accuracy_percent"]))
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["colour.safetensors"]
