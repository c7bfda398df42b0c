"""The evaluate command: scores, their settings, stops, sweeps, comparisons and mistakes."""

from __future__ import annotations

import hashlib
import json
import math
import re
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from ddpm_lightning.evaluation.checkpoint import Evaluated
from ddpm_lightning.metrics.measure import check_accuracy
from ddpm_lightning.trained import DataPlace
from PIL import Image
from scipy.linalg import sqrtm

from ddpm_lightning import DiffusionModule
from ddpm_lightning.checkpoint import weights_digest
from ddpm_lightning.cli import main
from ddpm_lightning.data import CIFAR10, MNIST, Digits, FashionMNIST
from ddpm_lightning.diffusion.denoiser import Guidance
from ddpm_lightning.diffusion.samplers import (
    DDIM,
    DDPM,
    DPMSolverPP,
    Heun,
    Karras,
    Levels,
    LogSNR,
    Uniform,
)
from ddpm_lightning.diffusion.schedules import Cosine, Linear
from ddpm_lightning.diffusion.variances import AnalyticVariance, FixedLarge, FixedSmall
from ddpm_lightning.errors import InputError
from ddpm_lightning.evaluation import sample_folder
from ddpm_lightning.evaluation.compare import compare_results
from ddpm_lightning.evaluation.sweep import Sweep, evaluations, points
from ddpm_lightning.images import ImageFolder, to_uint8
from ddpm_lightning.metrics import Inception, LeNet, inception_score, kid, kid_error, manifold
from ddpm_lightning.metrics.jackknife import shuffled
from ddpm_lightning.plots.pictures import draw_neighbours
from tests.test_cli import fail, randomised, tiny_run

FEW = ["--sampler=DDIM", "--sampler.steps=3"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    """A conditional model of the digits whose random weights heed their labels."""
    root = tmp_path_factory.mktemp("model")
    more = ["--model.conditional=true", "--data.subset=150", "--model.schedule.init_args.T=50"]
    main(["fit", *tiny_run(root, *more)])
    path = randomised(root / "checkpoints" / "last.ckpt")
    content = torch.load(path, weights_only=True)
    for name, value in content["state_dict"].items():
        value.mul_(20 if "label" in name else 1)
    torch.save(content, path)
    return str(path)


def evaluated(checkpoint: str, out: Path, *flags: str, n: int = 60) -> dict:
    main(["evaluate", f"--ckpt={checkpoint}", f"--out={out}", f"--n={n}", *FEW, *flags])
    return json.loads((out / "results.json").read_text())


def drawn(out: Path) -> torch.Tensor:
    files = sorted((out / "samples").glob("*.png"))
    return torch.stack([torch.from_numpy(np.array(Image.open(file)))[None] for file in files])


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    root = sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    traces = np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + traces)


def lenet(images: torch.Tensor) -> np.ndarray:
    return LeNet()(images).double().numpy()


def folder_of(images: torch.Tensor, folder: Path) -> Path:
    folder.mkdir()
    for k, image in enumerate(images):
        Image.fromarray(image[0].numpy()).save(folder / f"{k}.png")
    return folder


# ---------------------------------------------------------------------- what is measured


def test_the_distance_its_error_and_its_floor_are_those_of_the_images(checkpoint, tmp_path):
    result = evaluated(checkpoint, tmp_path / "out", "--seed=2")
    real, labels = Digits(subset=150).images("train")
    module = DiffusionModule.load_from_checkpoint(checkpoint)
    a, b = lenet(to_uint8(module.sample(60, DDIM(3), labels, seed=2))), lenet(real)
    score = result["metrics"]["fd_lenet"]
    assert score["value"] == pytest.approx(frechet(a, b), rel=1e-3)
    left_out = np.array(
        [
            frechet(np.delete(a, rows.numpy(), axis=0), b)
            for rows in shuffled(60, 2).tensor_split(20)
        ]
    )
    expected = np.sqrt(19 / 20 * np.square(left_out - left_out.mean()).sum())
    assert score["error"] == pytest.approx(expected, rel=0.02)
    order = torch.randperm(150, generator=torch.Generator().manual_seed(0)).numpy()
    assert score["floor"] == pytest.approx(frechet(b[order[:60]], b[order[60:]]), rel=1e-3)
    assert (score["floor_n"], score["floor_reference_n"]) == (60, 90)


@pytest.mark.parametrize(
    ("flags", "arguments"),
    [
        (["--weights=raw"], {"ema": False}),
        (["--guidance=3"], {"guidance": 3.0}),
        (
            ["--guidance=3", "--guidance_interval=[0.5, 1]", "--guidance_rescale=0.7"],
            {"guidance": Guidance(3.0, (0.5, 1.0), 0.7)},
        ),
        (["--seed=5"], {"seed": 5}),
        (["--labels=[3, 7]"], {"labels": [3, 7]}),
        (["--labels=4"], {"labels": [4]}),
        (["--sampler=DDPM", "--sampler.steps=4"], {"sampler": DDPM(4)}),
        (
            ["--sampler=DDPM", "--sampler.steps=4", "--variance=FixedLarge"],
            {"sampler": DDPM(4), "variance": FixedLarge()},
        ),
    ],
)
def test_samples_are_those_of_the_module_under_the_same_settings(
    checkpoint, tmp_path, flags, arguments
):
    evaluated(checkpoint, tmp_path, *flags, n=20)
    _, labels = Digits(subset=150).images("train")

    def sampled(sampler=None, variance=None, **more) -> torch.Tensor:
        module = DiffusionModule.load_from_checkpoint(checkpoint)
        module.variance = variance or module.variance
        settings = {"labels": labels, "seed": 1} | more
        return to_uint8(module.sample(20, sampler or DDIM(3), **settings)).int()

    found = drawn(tmp_path).int()
    assert (found - sampled(**arguments)).abs().max() <= 1
    without_one = dict(list(arguments.items())[:-1])
    assert (found - sampled(**without_one)).abs().float().mean() > 1


def test_a_result_states_all_that_was_measured(checkpoint, tmp_path):
    result = evaluated(checkpoint, tmp_path / "out", "--guidance=2", "--weights=raw", "--seed=3")
    real, _ = Digits(subset=150).images("train")
    assert result["n"] == 60
    assert result["seed"] == 3
    assert result["reference"] == {
        "data": {
            "class_path": "ddpm_lightning.data.digits.Digits",
            "init_args": {
                "image_size": None,
                "resize": "pad",
                "subset": 150,
                "held_out": None,
                "seed": None,
            },
        },
        "split": "train",
        "count": 150,
        "sha256": hashlib.sha256(real.numpy().tobytes()).hexdigest(),
    }
    weights = Path(sys.modules[LeNet.__module__].__file__).with_name("lenet.safetensors")
    assert result["extractor"] == {
        "class_path": "ddpm_lightning.metrics.lenet.LeNet",
        "init_args": {},
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "resize": "bilinear-28",
    }
    samples = result["samples"]
    pixels = drawn(tmp_path / "out").numpy().tobytes()
    module = DiffusionModule.load_from_checkpoint(checkpoint)
    expected = {
        "checkpoint": checkpoint,
        "step": 2,
        "steps": 3,
        "sha256": hashlib.sha256(pixels).hexdigest(),
        "network": weights_digest(module.net),
        "guidance_scale": 2.0,
        "guidance_interval": None,
        "guidance_rescale": 0.0,
        "weights": "raw",
        "seed": 3,
    }
    assert {name: samples[name] for name in expected} == expected
    assert samples["sampler"]["class_path"].endswith("DDIM")
    assert samples["sampler"]["init_args"]["steps"] == 3
    assert samples["sampler"]["init_args"]["clip"] == [-1.0, 1.0]
    assert samples["variance"]["class_path"].endswith(type(module.variance).__name__)
    assert samples["schedule"]["init_args"]["T"] == 50
    assert result["versions"]["torch"] == version("torch")


def test_the_steps_of_a_sampler_over_all_levels_are_stated(checkpoint, tmp_path):
    main(["evaluate", f"--ckpt={checkpoint}", f"--out={tmp_path}", "--n=2"])
    samples = json.loads((tmp_path / "results.json").read_text())["samples"]
    assert samples["sampler"]["init_args"]["steps"] is None
    assert samples["steps"] == 50


def test_each_score_states_its_error_its_settings_and_its_floor(checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    found = evaluated(checkpoint, out, "--metrics=fd,kid,is,pr,accuracy", n=100)["metrics"]
    settings = {
        "fd_lenet": {},
        "kd_lenet": {"subset_size": 100, "subsets": 100},
        "is_lenet": {"splits": 10},
        "precision_lenet": {"k": 3, "real_images": 100},
        "recall_lenet": {"k": 3, "real_images": 100},
        "density_lenet": {"k": 5, "real_images": 100},
        "coverage_lenet": {"k": 5, "real_images": 100},
        "accuracy": {},
    }
    assert {name: score["settings"] for name, score in found.items()} == settings
    smaller = {name for name, score in found.items() if score["smaller_is_better"]}
    assert smaller == {"fd_lenet", "kd_lenet"}
    for score in found.values():
        assert math.isfinite(score["error"])
        assert (score["floor_n"], score["floor_reference_n"]) == (75, 75)
    features, real = lenet(drawn(out)), lenet(Digits(subset=150).images("train")[0])
    x, y = (torch.from_numpy(rows).float() for rows in (features, real))
    mean, std = kid(x, y, subset_size=100, seed=1)
    assert found["kd_lenet"]["value"] == pytest.approx(mean, rel=1e-4)
    assert found["kd_lenet"]["error"] == pytest.approx(kid_error(x, y, std, seed=1), rel=1e-4)
    assert found["kd_lenet"]["error"] > 1e-3 * abs(mean)
    assert found["kd_lenet"]["spread"] is None  # each subset is the whole set
    logits = LeNet().classify(drawn(out))
    score, std = inception_score(logits, seed=1)
    assert found["is_lenet"]["value"] == pytest.approx(score)
    assert (found["is_lenet"]["spread"], found["is_lenet"]["error"]) == (
        pytest.approx(std),
        pytest.approx(std / 3),
    )
    share = found["accuracy"]["value"]
    assert found["accuracy"]["error"] == pytest.approx((share * (1 - share) / 100) ** 0.5)
    some = torch.randperm(150, generator=torch.Generator().manual_seed(0))[:100]
    for k, names in ((3, ("precision", "recall")), (5, ("density", "coverage"))):
        expected = manifold(x, y[some], k, seed=1)
        for name in names:
            one = found[f"{name}_lenet"]
            assert (one["value"], one["error"]) == pytest.approx(tuple(expected[name]), abs=1e-6)
    printed = " ".join(capsys.readouterr().out.split())
    assert "75 against the 75 others (fewer than the 100 samples" in printed
    assert f"(spread {found['is_lenet']['spread']:.2g})" in printed


def test_the_spread_over_subsets_stands_beside_the_error_and_is_not_it(tmp_path):
    real, _ = Digits().images("train")
    a = folder_of(real[:1100], tmp_path / "a")
    flags = [f"--samples={a}", "--reference=Digits", "--metrics=kid", f"--out={tmp_path / 'out'}"]
    main(["evaluate", *flags])
    score = json.loads((tmp_path / "out" / "results.json").read_text())["metrics"]["kd_lenet"]
    assert score["settings"]["subset_size"] == 1000
    assert 0 < score["spread"] < score["error"]


def test_few_samples_have_a_distance_without_an_error(checkpoint, tmp_path):
    score = evaluated(checkpoint, tmp_path, "--metrics=fd", n=30)["metrics"]["fd_lenet"]
    assert score["value"] > 0
    assert score["error"] is None


def test_the_seed_reaches_subsets_and_splits_and_not_the_distance(checkpoint, tmp_path):
    real, _ = Digits().images("train")
    images = folder_of(real[1000:1060], tmp_path / "images")
    found = []
    for seed in ("1", "2"):
        flags = [f"--samples={images}", "--reference=Digits", "--metrics=fd,kid,is"]
        main(["evaluate", *flags, f"--out={tmp_path / seed}", f"--seed={seed}"])
        scores = json.loads((tmp_path / seed / "results.json").read_text())["metrics"]
        found.append({name: score["value"] for name, score in scores.items()})
    assert found[0]["fd_lenet"] == found[1]["fd_lenet"]
    assert found[0]["kd_lenet"] != found[1]["kd_lenet"]
    assert found[0]["is_lenet"] != found[1]["is_lenet"]


def test_every_metric_comes_from_one_command(checkpoint, tmp_path):
    metrics = "fd,fd_inf,kid,is,pr,accuracy,bpd"
    result = evaluated(checkpoint, tmp_path / "out", f"--metrics={metrics}", n=130)
    expected = {"accuracy", "bpd"}
    for name in ("fd", "kd", "is", "precision", "recall", "density", "coverage"):
        expected.add(f"{name}_lenet")
    expected.add("fd_lenet_inf")
    assert set(result["metrics"]) == expected
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"results.json", "grid.png", "neighbours.png", "bound.png", "samples"}


def test_accuracy_is_the_share_that_the_classifier_takes_for_the_asked_class(checkpoint, tmp_path):
    result = evaluated(checkpoint, tmp_path / "out", "--metrics=accuracy", "--labels=[3, 7]")
    files = sorted((tmp_path / "out" / "samples").glob("*.png"))
    images = torch.stack([torch.from_numpy(np.array(Image.open(file)))[None] for file in files])
    asked = torch.tensor([3, 7]).repeat(30)
    share = (LeNet().classify(images).argmax(1) == asked).double().mean()
    assert result["metrics"]["accuracy"]["value"] == pytest.approx(float(share))
    real, labels = Digits(subset=150).images("train")
    right = (LeNet().classify(real).argmax(1) == labels).double().mean()
    assert result["metrics"]["accuracy"]["floor"] == pytest.approx(float(right), abs=0.1)


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_bits_per_dimension_are_those_of_the_test_command(checkpoint, tmp_path, weights):
    # Alone they need neither samples nor the extractor.
    idle = ["--extractor=Inception", "--extractor.weights=none.pth"]
    more = ["--metrics=bpd", "--seed=0", f"--weights={weights}", *idle]
    result = evaluated(checkpoint, tmp_path / "out", *more)
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"results.json", "bound.png"}
    assert "n" not in result
    assert result["samples"]["weights"] == weights
    ours = result["metrics"]["bpd"]
    flags = tiny_run(tmp_path / "test", "--model.conditional=true", f"--ckpt_path={checkpoint}")
    main(["test", *flags, f"--likelihood.ema={str(weights == 'ema').lower()}"])
    (theirs,) = json.loads((tmp_path / "test" / "metrics.json").read_text())
    assert ours["value"] == pytest.approx(theirs["value"], rel=1e-5)
    assert ours["error"] == pytest.approx(theirs["standard_error"], rel=1e-4)
    assert ours["parts"]["terms"] == pytest.approx(theirs["terms"], rel=1e-4)
    assert ours["parts"]["edges"] == theirs["edges"]
    assert (ours["parts"]["edges"][0], ours["parts"]["edges"][-1]) == (0, 50)
    assert sum(ours["parts"]["terms"]) == pytest.approx(ours["value"])
    settings = ours["settings"]
    assert (settings["split"], settings["count"], settings["T"]) == ("test", 297, 50)
    assert settings["evaluations"] == len(ours["parts"]["edges"]) - 1 == 32
    assert settings["decoder"]["class_path"].endswith("DiscretizedGaussian")
    assert settings["data"]["init_args"]["subset"] == 150


def test_images_from_anywhere_score_like_the_checkpoint_they_came_from(checkpoint, tmp_path):
    first = evaluated(checkpoint, tmp_path / "out")
    flags = ["--samples", str(tmp_path / "out" / "samples"), "--out", str(tmp_path / "again")]
    main(["evaluate", *flags, "--reference", "Digits", "--reference.subset", "150"])
    second = json.loads((tmp_path / "again" / "results.json").read_text())
    assert second["metrics"]["fd_lenet"] == first["metrics"]["fd_lenet"]


def test_what_sample_writes_can_be_scored(checkpoint, tmp_path):
    main(["sample", f"--ckpt={checkpoint}", f"--out={tmp_path / 'images'}", "--n=5", *FEW])
    folder = ImageFolder(tmp_path / "images")
    assert [file.name for file in folder.files] == [f"{k:06d}.png" for k in range(5)]


def test_a_folder_can_be_the_reference(tmp_path):
    real, _ = Digits().images("train")
    a, b = folder_of(real[:50], tmp_path / "a"), folder_of(real[:50], tmp_path / "b")
    main(["evaluate", f"--samples={a}", f"--reference={b}", f"--out={tmp_path / 'out'}"])
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert result["metrics"]["fd_lenet"]["value"] == pytest.approx(0, abs=1e-6)
    ordered = real[sorted(range(50), key=str)]
    pixels = hashlib.sha256(ordered.numpy().tobytes()).hexdigest()
    assert result["reference"] == {"folder": str(b), "count": 50, "sha256": pixels}
    assert result["samples"] == {"folder": str(a), "sha256": pixels}


def test_other_batch_sizes_give_the_same_distance(checkpoint, tmp_path):
    scores = [
        evaluated(checkpoint, tmp_path / str(size), f"--batch_size={size}")["metrics"]["fd_lenet"]
        for size in (7, 64)
    ]
    assert scores[0]["value"] == pytest.approx(scores[1]["value"], rel=1e-3)
    assert scores[0]["floor"] == pytest.approx(scores[1]["floor"], rel=1e-6)


def test_the_panel_shows_the_nearest_real_image_beside_each_sample():
    real, _ = Digits().images("train")
    samples = real[[5, 9]].clone()
    samples[:, :, 0, 0] ^= 1  # almost copies
    features = real.flatten(1).float()
    own = samples.flatten(1).float()
    panel = draw_neighbours(samples, own, features, lambda rows: real[rows], count=2)
    tile, gap = 64, 2
    for row, index in enumerate((5, 9)):
        top, left = gap + row * (tile + gap), gap + (tile + gap)
        nearest = panel[0, top : top + tile : 8, left : left + tile : 8]
        assert torch.equal(nearest, real[index, 0])


def test_the_data_is_taken_from_where_it_is_now(checkpoint, tmp_path):
    module = DiffusionModule.load_from_checkpoint(checkpoint)
    place = DataPlace(str(tmp_path))
    moved = Evaluated(Path(checkpoint), module, place, "train", None, True, 2, 0, 2, True)
    assert moved.data().root == tmp_path
    flags = [f"--ckpt={checkpoint}", f"--out={tmp_path / 'out'}", "--n=2", *FEW]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evaluated, "score", lambda self, *args: places.append(self.place))
        places: list = []
        main(["evaluate", *flags, f"--data.root={tmp_path}"])
    assert places == [place]


def test_a_model_of_given_images_is_given_those_of_the_reference(tmp_path):
    wrapped = ["--data=Conditioned", "--data.task=SuperResolution", "--data.task.factor=2"]
    data = [*wrapped, "--data.data=Digits", "--data.data.subset=150"]
    data += ["--data.data.global_batch_size=8"]
    flags = [flag for flag in tiny_run(tmp_path / "run") if not flag.startswith("--data.")]
    main(["fit", *flags, *data])
    checkpoint = randomised(tmp_path / "run" / "checkpoints" / "last.ckpt")
    result = evaluated(str(checkpoint), tmp_path / "out", "--metrics=fd,bpd")
    assert result["metrics"]["bpd"]["value"] > 0
    module = DiffusionModule.load_from_checkpoint(checkpoint)
    real = Digits(subset=150).images("train")[0][:60].float() / 127.5 - 1
    small = torch.nn.functional.avg_pool2d(real, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    x = to_uint8(module.sample(60, DDIM(3), seed=1, condition=small))
    last = np.array(Image.open(tmp_path / "out" / "samples" / "000059.png"))
    assert abs(last.astype(int) - x[59, 0].numpy()).max() <= 1
    # The same data in another place is the same condition.
    again = evaluated(str(checkpoint), tmp_path / "out", f"--data.root={tmp_path}")
    assert again["samples"]["condition"]["data"]["init_args"]["data"]["init_args"]["subset"] == 150


def test_the_floor_is_that_of_disjoint_real_images_and_its_limit_is_closer(tmp_path, capsys):
    flags = ["--reference=Digits", "--floor=[300, 600]", f"--out={tmp_path}", "--seed=4"]
    main(["evaluate", *flags])
    written = json.loads((tmp_path / "floor.json").read_text())
    features = LeNet()(Digits().images("train")[0]).double().numpy()
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(4)).numpy()
    for n, floor in zip((300, 600), written["floors"], strict=True):
        a, b = features[order[:n]], features[order[n : 2 * n]]
        root = sqrtm(np.cov(a.T) @ np.cov(b.T)).real
        expected = ((a.mean(0) - b.mean(0)) ** 2).sum()
        expected += np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
        assert floor["n"] == n
        assert floor["fd"] == pytest.approx(expected, rel=1e-3)
        assert abs(floor["fd_inf"]) < min(floor["fd"], 3 * floor["fd_inf_error"])
    assert f"{written['floors'][1]['fd']:.4g}" in capsys.readouterr().out


# ----------------------------------------------------------------------------- stops


def test_a_stopped_evaluation_goes_on_and_gives_the_same(checkpoint, tmp_path, monkeypatch):
    whole = evaluated(checkpoint, tmp_path / "whole", "--batch_size=16")
    written = []

    def breaking(path, image):
        if len(written) == 35:
            raise KeyboardInterrupt
        written.append(path)
        real_write(path, image)

    real_write = sample_folder.write_png
    monkeypatch.setattr(sample_folder, "write_png", breaking)
    with pytest.raises(SystemExit, match="130"):
        evaluated(checkpoint, tmp_path / "stopped", "--batch_size=16")
    assert not (tmp_path / "stopped" / "results.json").exists()

    monkeypatch.setattr(
        sample_folder, "write_png", lambda p, i: (written.append(p), real_write(p, i))
    )
    written.clear()
    stopped = evaluated(checkpoint, tmp_path / "stopped", "--batch_size=16")
    assert len(written) == 60 - 32  # two whole batches were there
    assert stopped["metrics"] == whole["metrics"]


def test_a_stop_in_the_middle_of_an_image_leaves_no_half_one(checkpoint, tmp_path, monkeypatch):
    whole = evaluated(checkpoint, tmp_path / "whole", "--batch_size=16")
    save, saved = Image.Image.save, []

    def breaking(self, file, *args, **kwargs):
        saved.append(file)
        save(self, file, *args, **kwargs)
        if len(saved) == 32:  # the last of its batch, which would pass for a whole one
            Path(file).write_bytes(Path(file).read_bytes()[:40])
            raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", breaking)
    with pytest.raises(SystemExit):
        evaluated(checkpoint, tmp_path / "stopped", "--batch_size=16")
    monkeypatch.setattr(Image.Image, "save", save)
    stopped = evaluated(checkpoint, tmp_path / "stopped", "--batch_size=16")
    assert stopped["metrics"] == whole["metrics"]
    assert stopped["samples"]["sha256"] == whole["samples"]["sha256"]


@pytest.mark.slow
def test_a_killed_process_goes_on_and_gives_the_same(checkpoint, tmp_path):
    whole = evaluated(checkpoint, tmp_path / "whole", "--batch_size=8")
    flags = [f"--ckpt={checkpoint}", f"--out={tmp_path / 'out'}", "--n=60", *FEW]
    command = [sys.executable, "-m", "ddpm_lightning", "evaluate", *flags, "--batch_size=8"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    samples = tmp_path / "out" / "samples"
    while process.poll() is None and not (samples / "000010.png").exists():
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert len(list(samples.glob("*.png"))) < 60
    again = evaluated(checkpoint, tmp_path / "out", "--batch_size=8")
    assert again["metrics"] == whole["metrics"]


def test_a_stop_while_the_settings_are_written_does_not_bar_the_folder(checkpoint, tmp_path):
    (tmp_path / "out" / "samples").mkdir(parents=True)
    (tmp_path / "out" / "samples" / "samples.json.part").write_text('{"netw')
    assert evaluated(checkpoint, tmp_path / "out")["n"] == 60


@pytest.mark.parametrize("again", [40, 70])
def test_another_number_of_samples_goes_on_with_those_that_are_there(checkpoint, tmp_path, again):
    whole = evaluated(checkpoint, tmp_path / "whole", "--batch_size=20", n=again)
    evaluated(checkpoint, tmp_path / "out", "--batch_size=20", n=60)
    first = (tmp_path / "out" / "samples" / "000003.png").stat().st_mtime_ns
    result = evaluated(checkpoint, tmp_path / "out", "--batch_size=20", n=again)
    assert (tmp_path / "out" / "samples" / "000003.png").stat().st_mtime_ns == first
    assert result["metrics"] == whole["metrics"]


def test_samples_of_other_settings_are_not_mixed(checkpoint, tmp_path, capsys):
    evaluated(checkpoint, tmp_path / "out")
    flags = [f"--ckpt={checkpoint}", f"--out={tmp_path / 'out'}", "--n=60", *FEW, "--guidance=3"]
    assert "drawn with another guidance_scale" in fail(capsys, "evaluate", *flags)


# ---------------------------------------------------------------------------- sweeps


@pytest.mark.parametrize(
    ("sampler", "guidance", "count"),
    [
        (DDIM(10), Guidance(), 10),
        (DDIM(10), Guidance(3.0), 20),
        (DDIM(10), Guidance(3.0, (0.5, 1.0)), 15),
        (Heun(10), Guidance(), 19),  # the step into level 0 takes one
        (DPMSolverPP(10), Guidance(), 10),
        (DDPM(), Guidance(), 100),
    ],
)
def test_network_evaluations_are_counted(sampler, guidance, count):
    assert evaluations(sampler, Linear(T=100), guidance) == count


def test_a_sweep_fits_as_many_steps_as_the_evaluations_allow():
    sweep = Sweep([12, 30], [DDIM(), Heun()], [1.0, 2.0])
    found = [
        (type(p.sampler).__name__, p.guidance.scale, p.sampler.steps, p.evaluations)
        for p in points(sweep, Linear(T=100))
    ]
    assert found == [
        ("DDIM", 1, 12, 12),
        ("DDIM", 1, 30, 30),
        ("DDIM", 2, 6, 12),
        ("DDIM", 2, 15, 30),
        ("Heun", 1, 6, 11),
        ("Heun", 1, 15, 29),
        ("Heun", 2, 4, 12),  # its first step is too long for the second order
        ("Heun", 2, 8, 30),
    ]


def test_spacing_and_variance_are_axes_and_settings_of_a_sampler_stay():
    sweep = Sweep(
        [5], [DDPM(), DDIM(eta=0.5)], spacings=[LogSNR()], variances=[FixedSmall(), FixedLarge()]
    )
    small, large, ddim = points(sweep, Cosine(T=100))
    assert all(isinstance(point.sampler.spacing, LogSNR) for point in (small, large, ddim))
    assert [type(point.variance) for point in (small, large)] == [FixedSmall, FixedLarge]
    assert ddim.variance is None
    assert ddim.sampler.eta == 0.5
    assert len({point.name for point in (small, large, ddim)}) == 3


def test_combinations_are_named_by_what_differs():
    karras = Sweep([5, 9], [DDIM()], spacings=[Karras(3), Karras(7), Uniform()])
    found = points(karras, Cosine(T=100))
    assert [point.curve for point in found[::2]] == [
        "DDIM, Karras, rho=3",
        "DDIM, Karras, rho=7",
        "DDIM, Uniform",
    ]
    assert len({point.name for point in found}) == 6
    assert [point.sampler.spacing.rho for point in found[:4]] == [3, 3, 7, 7]
    clipped = points(Sweep([5], [DDIM(), DDIM(clip=(-2, 2)), DDIM(eta=1.0)]), Cosine(T=100))
    assert [p.curve for p in clipped] == [
        "DDIM, eta=0.0, clip=null",
        "DDIM, eta=0.0, clip=[-2, 2]",
        "DDIM, eta1, clip=null",
    ]
    tables = [AnalyticVariance([0.1 * k] * 101) for k in (1, 2)]
    measured = points(Sweep([5], [DDPM()], variances=tables), Cosine(T=100))
    assert len({p.name for p in measured}) == 2
    assert max(len(p.name) for p in measured) < 60
    assert not set("".join(p.name for p in [*found, *clipped, *measured])) & set('/\\"[] ')


def test_equal_combinations_are_refused_before_any_work():
    with pytest.raises(InputError, match="2 combinations of the sweep are the same: DDIM_5"):
        points(Sweep([5], [DDIM(), DDIM()]), Cosine(T=100))


def test_interval_and_rescale_apply_to_the_strengths_of_a_sweep():
    sweep = Sweep([20], [DDIM()], [1.0, 3.0])
    plain, guided = points(sweep, Linear(T=100), (0.5, 1.0), 0.7)
    assert plain.guidance == Guidance()
    assert guided.guidance == Guidance(3.0, (0.5, 1.0), 0.7)
    assert (guided.sampler.steps, guided.evaluations) == (13, 20)
    with pytest.raises(InputError, match="change nothing at strength 1"):
        points(Sweep([20], [DDIM()]), Linear(T=100), (0.5, 1.0))


def test_a_sampler_that_does_not_start_from_noise_is_refused_before_any_work():
    with pytest.raises(InputError, match="starts at level 50"):
        evaluations(DDIM(None, spacing=Levels([50, 20, 0])), Linear(T=100), Guidance())


def test_too_few_evaluations_for_a_step_are_an_error():
    with pytest.raises(InputError, match="needs more than 1 evaluations"):
        points(Sweep([1], [DDIM()], [2.0]), Cosine(T=100))


def test_each_point_of_a_sweep_has_its_own_variance_or_the_checkpoint_s(checkpoint, tmp_path):
    flags = ["--metrics=bpd", "--batch_size=300"]
    plain = evaluated(checkpoint, tmp_path / "plain", *flags)["metrics"]["bpd"]["value"]
    ddpm = ["--sampler=DDPM", "--sampler.steps=3", "--variance=FixedLarge"]
    large = evaluated(checkpoint, tmp_path / "large", *flags, *ddpm)
    sweep = ["--sweep.samplers=[DDPM, DDIM]", "--sweep.variances=[FixedLarge]"]
    main(
        [
            *("evaluate", f"--ckpt={checkpoint}", f"--out={tmp_path / 'sweep'}", "--n=8"),
            *(*flags, *sweep, "--sweep.evaluations=[2]"),
        ]
    )
    rows = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    values = [row["metrics"]["bpd"]["value"] for row in rows]
    assert values == pytest.approx([large["metrics"]["bpd"]["value"], plain])
    assert values[0] != pytest.approx(plain, rel=1e-3)


def test_a_sweep_leaves_a_table_its_numbers_and_curves(checkpoint, tmp_path, capsys):
    flags = [f"--ckpt={checkpoint}", f"--out={tmp_path}", "--n=60", "--metrics=fd,accuracy"]
    axes = ["--sweep.evaluations=[2, 4]", "--sweep.samplers=[DDIM, Heun]"]
    main(["evaluate", *flags, *axes])
    rows = json.loads((tmp_path / "sweep.json").read_text())
    assert [(row["curve"], row["evaluations"]) for row in rows] == [
        ("DDIM", 2),
        ("DDIM", 4),
        ("Heun", 2),  # too far from noise for its second order
        ("Heun", 4),
    ]
    assert [row["samples"]["steps"] for row in rows] == [2, 4, 2, 3]
    assert rows[0]["metrics"]["fd_lenet"]["floor_n"] == 60
    for metric in ("fd_lenet", "accuracy"):
        assert Image.open(tmp_path / f"sweep_{metric}.png").size == (960, 540)
    table = capsys.readouterr().out
    assert f"{rows[1]['metrics']['fd_lenet']['value']:.4g}" in table


# ----------------------------------------------------------------------- comparisons


def result_file(path: Path, value: float, error: float | None = 1.0, **other) -> Path:
    score = {"value": value, "error": error, "smaller_is_better": True, "settings": {}}
    score |= {name: other.pop(name) for name in list(other) if name in score}
    reference = {"folder": str(path), "sha256": "a"}
    result = {"metrics": {"fd": score}, "n": 10, "reference": reference, "extractor": "b"}
    path.write_text(json.dumps(result | other))
    return path


@pytest.mark.parametrize(
    ("value", "error", "verdict"),
    [
        (12.0, 1.0, "within the noise (1.4 standard errors)"),
        (13.0, 1.0, "A is better (2.1 standard errors)"),
        (7.0, 1.0, "B is better (2.1 standard errors)"),
        (7.0, None, "its noise is not known"),
    ],
)
def test_a_difference_counts_from_two_of_its_standard_errors_on(tmp_path, value, error, verdict):
    a, b = result_file(tmp_path / "a", 10.0), result_file(tmp_path / "b", value, error)
    assert verdict in compare_results(a, b)


def test_which_direction_is_better_stands_beside_the_number(tmp_path):
    a = result_file(tmp_path / "a", 10.0, smaller_is_better=False)
    b = result_file(tmp_path / "b", 13.0, smaller_is_better=False)
    assert "B is better" in compare_results(a, b)


@pytest.mark.parametrize(
    ("differing", "value"),
    [
        ("n", 11),
        ("reference", {"folder": "a", "sha256": "other"}),
        ("extractor", "other"),
        ("settings", {"subset_size": 7}),
    ],
)
def test_what_was_measured_in_other_ways_is_not_compared(tmp_path, differing, value, capsys):
    a = result_file(tmp_path / "a", 1.0)
    b = result_file(tmp_path / "b", 1.0, **{differing: value})
    message = fail(capsys, "evaluate", "--compare", str(a), str(b))
    assert "do not compare: " in message
    assert differing in message


def test_a_result_of_another_version_is_named(tmp_path, capsys):
    a = result_file(tmp_path / "a", 1.0)
    (tmp_path / "b").write_text(json.dumps({"metrics": {"fd": {"value": 1, "error": None}}}))
    message = fail(capsys, "evaluate", "--compare", str(a), str(tmp_path / "b"))
    assert "no result of this version's evaluate command" in message


def test_the_reference_is_known_by_its_pixels_and_not_by_its_path(tmp_path, capsys):
    real, _ = Digits().images("train")
    a = folder_of(real[:60], tmp_path / "a")
    for name, part in (("one", real[60:200]), ("two", real[60:200]), ("other", real[61:201])):
        reference = folder_of(part, tmp_path / name)
        flags = [f"--samples={a}", f"--reference={reference}", "--metrics=fd,kid,is,pr"]
        main(["evaluate", *flags, f"--out={tmp_path / 'out' / name}"])
    paths = [str(tmp_path / "out" / name / "results.json") for name in ("one", "two", "other")]
    capsys.readouterr()
    main(["evaluate", "--compare", *paths[:2]])
    printed = capsys.readouterr().out
    assert printed.count("within the noise") == 7
    assert "do not compare: reference" in fail(capsys, "evaluate", "--compare", paths[0], paths[2])


def test_samples_of_one_distribution_differ_by_the_noise_and_others_by_more(tmp_path, capsys):
    real, _ = Digits().images("train")
    noise = torch.randint(-150, 150, real[:450].shape, generator=torch.Generator().manual_seed(0))
    noisy = (real[:450].int() + noise).clamp(0, 255).to(torch.uint8)
    sets = {"a": real[:450], "b": real[450:900], "c": noisy}
    reference = folder_of(real[900:], tmp_path / "real")
    for name, images in sets.items():
        flags = [f"--samples={folder_of(images, tmp_path / name)}", f"--reference={reference}"]
        main(["evaluate", *flags, "--metrics=fd,kid", f"--out={tmp_path / 'out' / name}"])
    paths = {name: str(tmp_path / "out" / name / "results.json") for name in sets}
    capsys.readouterr()
    main(["evaluate", "--compare", paths["a"], paths["b"]])
    for number in re.findall(r"\(([\d.]+) standard errors\)", capsys.readouterr().out):
        assert float(number) < 4
    main(["evaluate", "--compare", paths["a"], paths["c"]])
    assert capsys.readouterr().out.count("A is better") == 2


# -------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--metrics=fdd"], "did you mean fd?"),
        (["--metrics="], "no metrics"),
        (["--n=1"], "n is at least 2"),
        (["--n=0"], "n is at least 2"),
        (["--n=-3"], "n is at least 2"),
        (["--metrics=fd_inf"], "fd_inf needs 120 or more samples"),
        (["--metrics=accuracy", "--extractor=Pixels"], "Pixels gives no logits"),
        (["--metrics=accuracy", "--labels=[-1, 3]"], "label -1 is asked for"),
        (["--metrics=is", "--n=9"], "is needs 10 or more"),
        (["--metrics=pr", "--n=5"], "need 6 or more"),
        (["--guidance_interval=[0.2, 0.8]"], "change nothing at strength 1"),
        (
            [
                "--sampler.spacing=Levels",
                "--sampler.spacing.levels=[20, 0]",
                "--sampler.steps=null",
            ],
            "starts at level 20",
        ),
        (["--sweep.evaluations=[4]", "--guidance=2"], "leave out guidance"),
        (["--sweep.evaluations=[4]", "--sampler=DDIM"], "leave out sampler"),
        (["--sweep.evaluations=[4]", "--variance=FixedLarge"], "leave out variance"),
        (["--sweep.evaluations=[4]", "--guidance_rescale=0.5"], "--sweep.guidance"),
        (["--labels=10"], "give one or more from 0…9"),
        (["--extractor=Inception", "--extractor.weights=none.pth"], "cannot read the weights"),
        (["--reference=MNIST", "--reference.root=nowhere", "--reference.download=false"], "lacks"),
        (["--sweep.evaluations=[]"], "empty list"),
        (["--ckpt=none.ckpt"], "no checkpoint at none.ckpt"),
        (["--floor=[100]"], "floor [100]: give numbers from 120"),
        (["--floor=[700]"], "half of the 150 real images"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    checkpoint, tmp_path, capsys, flags, message, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    few = FEW if any("sampler.s" in flag for flag in flags) else []
    args = [f"--ckpt={checkpoint}", "--out=out", "--n=60", *few, *flags]
    assert message in fail(capsys, "evaluate", *args)
    assert not (tmp_path / "out").exists()


def test_a_class_that_the_extractor_does_not_know_is_refused_before_any_work(checkpoint, tmp_path):
    module = "tests.test_evaluate.FiveDigits"
    flags = [f"--ckpt={checkpoint}", f"--out={tmp_path / 'out'}", "--n=60", *FEW]
    with pytest.raises(SystemExit):
        main(["evaluate", *flags, "--metrics=accuracy", f"--extractor={module}"])
    assert not (tmp_path / "out").exists()


class FiveDigits(LeNet):
    """Says that it knows five classes."""

    classes = 5


@pytest.mark.parametrize(
    ("extractor", "data", "message"),
    [
        (LeNet(), FashionMNIST(), "LeNet tells the classes of MNIST, Digits apart, not those of"),
        (Inception("none"), CIFAR10(), "Inception tells the classes of no data set's apart"),
        (FiveDigits(), Digits(), "label 9 is asked for, which is none of FiveDigits's 5 classes"),
    ],
)
def test_accuracy_is_refused_where_it_means_nothing(extractor, data, message):
    with pytest.raises(InputError, match=message):
        check_accuracy(extractor, data, torch.arange(10))
    for known in (MNIST(), Digits()):
        check_accuracy(LeNet(), known, torch.arange(10))
    with pytest.raises(InputError, match="the model takes no labels"):
        check_accuracy(LeNet(), Digits(), None)


@pytest.mark.parametrize(
    "flags",
    [
        ["--guidance=2"],
        ["--guidance_interval=[0.2, 0.8]"],
        ["--guidance_rescale=0.5"],
        ["--weights=raw"],
        ["--labels=[1]"],
        ["--sampler=DDIM"],
        ["--variance=FixedLarge"],
        ["--sweep.evaluations=[4]"],
    ],
)
def test_what_has_no_say_in_images_of_a_folder_is_refused(tmp_path, capsys, flags):
    folder = folder_of(Digits().images("train")[0][:20], tmp_path / "images")
    args = [f"--samples={folder}", "--reference=Digits", f"--out={tmp_path / 'out'}", *flags]
    name = flags[0].removeprefix("--").split("=")[0].split(".")[0]
    assert f"leave out {name}" in fail(capsys, "evaluate", *args)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_hold_the_results_is_refused_first(
    checkpoint, tmp_path, capsys, monkeypatch
):
    (tmp_path / "file").write_text("")
    read = []
    monkeypatch.setattr(ImageFolder, "read", lambda self, files: read.append(files))
    folder = folder_of(Digits().images("train")[0][:20], tmp_path / "images")
    args = [f"--samples={folder}", "--reference=Digits"]
    for out, message in (
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "deeper", "is a file"),
        (folder, "lies in --samples"),
        (folder / "scores", "lies in --samples"),
    ):
        assert message in fail(capsys, "evaluate", *args, f"--out={out}")
    args[1] = f"--reference={folder}"
    args[0] = f"--samples={folder_of(Digits().images('train')[0][:20], tmp_path / 'more')}"
    assert "lies in --reference" in fail(capsys, "evaluate", *args, f"--out={folder}")

    def refuse(dir):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    line = fail(capsys, "evaluate", *args, f"--out={tmp_path / 'x'}")
    assert "nothing can be written into" in line
    assert "Permission denied" in line
    assert not read
    assert len(list(folder.iterdir())) == 20


@pytest.mark.parametrize(
    ("mode", "fix"),
    [("P", "'L' for grey ones"), ("LA", "'L' for grey ones"), ("I;16", "scale it to 0…255")],
)
def test_a_file_of_another_kind_is_named_with_what_to_do(tmp_path, mode, fix):
    grey((8, 8), mode).save(tmp_path / "0.png")
    with pytest.raises(InputError, match=re.escape(fix)) as caught:
        ImageFolder(tmp_path)
    assert f"0.png is {mode}, not one of L, RGB, RGBA" in str(caught.value)


def grey(size: tuple[int, int], mode: str = "L") -> Image.Image:
    return Image.new(mode, size)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "3.png").write_bytes(b"\x89PNG"), "3.png is"),
        (
            lambda folder: (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:60]),
            "is damaged",
        ),
        (lambda folder: grey((9, 8)).save(folder / "3.png"), "one size and kind"),
        (lambda folder: grey((8, 8), "RGB").save(folder / "3.png"), "one size and kind"),
        (lambda folder: [file.unlink() for file in folder.iterdir()], "holds no PNG"),
        (lambda folder: [file.unlink() for file in [*folder.iterdir()][:10]], "fewer than n = 20"),
    ],
)
def test_a_bad_folder_is_one_line_and_leaves_nothing(tmp_path, capsys, spoil, message):
    folder = folder_of(Digits().images("train")[0][:20], tmp_path / "images")
    spoil(folder)
    out = tmp_path / "out"
    flags = [f"--samples={folder}", "--reference=Digits", "--n=20", f"--out={out}"]
    assert message in fail(capsys, "evaluate", *flags)
    assert not out.exists()


def test_grey_images_for_a_reference_in_colour_are_an_error(tmp_path, capsys):
    folder = folder_of(Digits().images("train")[0][:5], tmp_path / "grey")
    (tmp_path / "colour").mkdir()
    grey((8, 8), "RGB").save(tmp_path / "colour" / "0.png")
    flags = [f"--samples={folder}", f"--reference={tmp_path / 'colour'}", "--extractor=LeNet"]
    message = fail(capsys, "evaluate", *flags, f"--out={tmp_path / 'out'}")
    assert "[1, 8, 8]" in message
    assert "[3, 8, 8]" in message
