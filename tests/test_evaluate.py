"""evaluate, score, sweep, floor and compare: scores, their settings, stops and mistakes."""

from __future__ import annotations

import hashlib
import json
import math
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lightning import DiffusionModule
from ddpm_lightning.batch import Condition
from ddpm_lightning.callbacks import Likelihood, RunCheckpoint
from ddpm_lightning.checkpoint import weights_digest
from ddpm_lightning.cli import main
from ddpm_lightning.data import CIFAR10, MNIST, Conditioned, Digits, FashionMNIST
from ddpm_lightning.data.conditioned import SuperResolution
from ddpm_lightning.diffusion import (
    AnalyticVariance,
    Cosine,
    FixedLarge,
    FixedSmall,
    Guidance,
    Linear,
)
from ddpm_lightning.diffusion.samplers import (
    DDIM,
    DDPM,
    DPMSolverPP,
    Heun,
    KarrasSpacing,
    Levels,
    LogSNRSpacing,
    PredictorCorrector,
    UniformSpacing,
)
from ddpm_lightning.errors import InputError
from ddpm_lightning.evaluation import sample_set
from ddpm_lightning.evaluation.compare import compare_results
from ddpm_lightning.evaluation.evaluation import Evaluation
from ddpm_lightning.evaluation.real_images import RealImages
from ddpm_lightning.evaluation.sample_set import SampleSet
from ddpm_lightning.evaluation.sweep import Sweep, evaluations
from ddpm_lightning.images import UniformFolder, to_uint8
from ddpm_lightning.loaded import Loaded
from ddpm_lightning.metrics import (
    KID,
    Accuracy,
    Comparison,
    Features,
    Inception,
    LeNet,
    Result,
    Score,
    inception_score,
    manifold,
)
from ddpm_lightning.metrics.jackknife import shuffled
from ddpm_lightning.metrics.result import append_result, read_results, write_results
from ddpm_lightning.sampling import Request
from tests.small import fail, frechet, image_spec, lively, tiny_data, tiny_module, trainer

FEW = ["--sampler=DDIM", "--sampler.steps=3"]
DIGITS = "--reference.data=Digits"


def saved(folder: Path, dataset, **arguments) -> str:
    """A checkpoint whose random weights heed their labels."""
    module = lively(tiny_module(schedule=Linear(T=50), **arguments))
    for name, value in module.named_parameters():
        value.data.mul_(20 if "label" in name else 1)
    trainer(folder, 1, callbacks=[RunCheckpoint(every_n_steps=1)]).fit(module, dataset)
    return str(folder / "checkpoints" / "last.ckpt")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    """Of a conditional model of the digits."""
    return saved(tmp_path_factory.mktemp("model"), tiny_data(subset=150), conditional=True)


def results(out: Path) -> dict[str, dict]:
    """The records of results.json by metric."""
    records = json.loads((out / "results.json").read_text())
    assert len({record["metric"] for record in records}) == len(records)
    return {record["metric"]: record for record in records}


def evaluated(checkpoint: str, out: Path, *flags: str, n: int = 60) -> dict[str, dict]:
    main(["evaluate", f"--ckpt={checkpoint}", f"--out={out}", f"--n={n}", *FEW, *flags])
    return results(out)


def scored(samples: Path, out: Path, *flags: str) -> dict[str, dict]:
    main(["score", f"--samples={samples}", f"--out={out}", *flags])
    return results(out)


def drawn(out: Path) -> torch.Tensor:
    files = sorted((out / "samples").glob("*.png"))
    return torch.stack([torch.from_numpy(np.array(Image.open(file)))[None] for file in files])


def lenet(images: torch.Tensor) -> np.ndarray:
    return LeNet()(images).double().numpy()


def folder_of(images: torch.Tensor, folder: Path) -> Path:
    folder.mkdir()
    for k, image in enumerate(images):
        Image.fromarray(image[0].numpy()).save(folder / f"{k}.png")
    return folder


# ---------------------------------------------------------------------- what is measured


def test_the_distance_its_error_and_its_floor_are_those_of_the_images(checkpoint, tmp_path):
    score = evaluated(checkpoint, tmp_path / "out", "--seed=2")["fd_lenet"]
    real, labels = Digits(subset=150).images("train")
    module = DiffusionModule.load_from_checkpoint(checkpoint)
    a, b = lenet(to_uint8(module.sample(60, DDIM(3), labels.tolist(), seed=2))), lenet(real)
    assert score["value"] == pytest.approx(frechet(a, b), rel=1e-3)
    parts = shuffled(60, 2).tensor_split(20)
    left_out = np.array([frechet(np.delete(a, rows.numpy(), axis=0), b) for rows in parts])
    expected = np.sqrt(19 / 20 * np.square(left_out - left_out.mean()).sum())
    assert score["standard_error"] == pytest.approx(expected, rel=0.02)
    order = shuffled(150, 0).numpy()
    floor = score["floor"]
    assert floor.pop("value") == pytest.approx(frechet(b[order[:60]], b[order[60:]]), rel=1e-3)
    assert floor == {"n": 60, "reference_n": 90}


@pytest.mark.slow
def test_samples_are_those_of_the_module_under_the_same_settings(checkpoint, tmp_path):
    flags = ["--sampler=DDPM", "--sampler.steps=4", "--variance=FixedLarge", "--weights=raw"]
    flags += ["--guidance.scale=3", "--guidance.interval=[0, 0.8]", "--guidance.rescale=0.7"]
    evaluated(checkpoint, tmp_path, *flags, "--labels=[3, 7]", "--seed=5", n=20)
    module = DiffusionModule.load_from_checkpoint(checkpoint)
    asked = {"sampler": DDPM(4), "variance": FixedLarge(), "weights": "raw", "labels": [3, 7]}
    asked |= {"guidance": Guidance(3.0, (0.0, 0.8), 0.7), "seed": 5}

    def distance(settings: dict) -> torch.Tensor:
        x = module.generate(torch.arange(20), Request(**settings)).x
        return (drawn(tmp_path).int() - to_uint8(x).int()).abs().float()

    assert distance(asked).max() <= 1
    for left_out in asked:
        others = {name: value for name, value in asked.items() if name != left_out}
        assert distance(others).max() > 3, left_out


@pytest.mark.slow
def test_a_result_states_all_that_was_measured(checkpoint, tmp_path):
    flags = ["--guidance=2", "--weights=raw", "--seed=3"]
    result = evaluated(checkpoint, tmp_path / "out", *flags)["fd_lenet"]
    real, _ = Digits(subset=150).images("train")
    data = {"image_size": None, "resize": "pad", "subset": 150, "held_out": None, "seed": None}
    assert result["reference"] == {
        "data": {"class_path": "ddpm_lightning.data.Digits", "init_args": data},
        "split": "train",
        "count": 150,
        "sha256": hashlib.sha256(real.numpy().tobytes()).hexdigest(),
    }
    weights = Path(sys.modules[LeNet.__module__].__file__).with_name("lenet.safetensors")
    assert result["extractor"] == {
        "class_path": "ddpm_lightning.metrics.LeNet",
        "init_args": {},
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "resize": "bilinear-28",
    }
    module = DiffusionModule.load_from_checkpoint(checkpoint)
    samples = result["samples"]
    expected = {
        "n": 60,
        "checkpoint": checkpoint,
        "steps": 3,
        "sha256": hashlib.sha256(drawn(tmp_path / "out").numpy().tobytes()).hexdigest(),
        "network": weights_digest(module.net),
        "guidance": {"scale": 2.0, "interval": None, "rescale": 0.0},
        "weights": "raw",
        "seed": 3,
        "sampler": DDIM(3, clip=(-1.0, 1.0)).describe(),
        "variance": module.variance.describe(),
        "schedule": module.schedule.describe(),
    }
    assert {name: samples[name] for name in expected} == expected
    assert (result["format"], result["step"]) == (1, 1)
    assert result["versions"]["torch"] == version("torch")


@pytest.mark.slow
def test_each_score_states_its_error_its_settings_and_its_floor(checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    found = evaluated(checkpoint, out, "--metrics=fd,kid,is,pr,accuracy,bpd", n=100)
    written = {path.name for path in out.iterdir()}
    assert written == {"results.json", "grid.png", "neighbours.png", "bound.png", "samples"}
    assert found.pop("bpd")["floor"] is None
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
        assert math.isfinite(score["standard_error"])
        assert (score["floor"]["n"], score["floor"]["reference_n"]) == (75, 75)
    real, labels = Digits(subset=150).images("train")
    x, y = (torch.from_numpy(lenet(images)).float() for images in (drawn(out), real))

    def number(name: str) -> tuple[float, float]:
        return found[name]["value"], found[name]["standard_error"]

    score = KID()(Comparison(Features(x), Features(y), seed=1))["kid"]
    assert number("kd_lenet") == pytest.approx((score.value, score.standard_error), rel=1e-4)
    assert found["kd_lenet"]["spread"] is None  # each subset is the whole set
    mean, std = inception_score(LeNet().both(drawn(out)).logits, seed=1)
    assert number("is_lenet") == pytest.approx((mean, std / 3))
    assert found["is_lenet"]["spread"] == pytest.approx(std)
    right = LeNet().both(drawn(out)).logits.argmax(1) == labels[:100]
    share = float(right.double().mean())
    assert number("accuracy") == pytest.approx((share, (share * (1 - share) / 100) ** 0.5))
    for k, names in ((3, ("precision", "recall")), (5, ("density", "coverage"))):
        expected = manifold(x, y[shuffled(150, 0)[:100]], k, seed=1)
        for name in names:
            one = expected[name].value, expected[name].standard_error
            assert number(f"{name}_lenet") == pytest.approx(one, abs=1e-6)
    printed = " ".join(capsys.readouterr().out.split())
    assert "75 against the 75 others (fewer than the 100 samples" in printed
    assert f"(spread {found['is_lenet']['spread']:.2g})" in printed


@pytest.mark.slow
def test_what_is_stated_of_scores_tells_other_real_images_apart(checkpoint):
    loaded, samples = Loaded.read(checkpoint), SampleSet(60, sampler=DDIM(3))

    def stated(data):
        return Evaluation(loaded, "fd", RealImages(data=data), LeNet(), samples).stated(samples)

    ours, others = stated(Digits(subset=150)), stated(Digits(subset=149))
    differing = [name for name in ours if ours[name] != others[name]]
    assert differing == ["labels", "reference"]


def test_settings_of_a_metric_and_the_seed_reach_subsets_and_splits(tmp_path):
    images = folder_of(Digits().images("train")[0][1000:1060], tmp_path / "images")
    metrics = '["fd", "is", {class_path: KID, init_args: {subset_size: 50, subsets: 7}}]'
    flags = [DIGITS, f"--metrics={metrics}"]
    one, two = (scored(images, tmp_path / s, *flags, f"--seed={s}") for s in ("1", "2"))
    assert one["kd_lenet"]["settings"] == {"subset_size": 50, "subsets": 7}
    assert one["fd_lenet"]["value"] == two["fd_lenet"]["value"]
    assert one["kd_lenet"]["value"] != two["kd_lenet"]["value"]
    assert one["is_lenet"]["value"] != two["is_lenet"]["value"]


@pytest.mark.slow
def test_bits_per_dimension_are_those_of_the_test_command(checkpoint, tmp_path):
    # Alone they need neither samples nor the extractor.
    unused = ["--extractor=Inception", "--extractor.weights=none.pth"]
    flags = ["--metrics=bpd", "--seed=0", "--weights=raw", *unused]
    ours = evaluated(checkpoint, tmp_path / "out", *flags)["bpd"]
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"results.json", "bound.png"}
    assert "n" not in ours["samples"]
    assert (ours["samples"]["weights"], ours["step"]) == ("raw", 1)
    loaded = Loaded.read(checkpoint)
    run = trainer(tmp_path / "test", 1, callbacks=[Likelihood(weights="raw")])
    run.test(loaded.module, loaded.data.replace(global_batch_size=300), verbose=False)
    (theirs,) = json.loads((tmp_path / "test" / "metrics.json").read_text())
    assert ours["value"] == pytest.approx(theirs["value"], rel=1e-5)
    assert ours["standard_error"] == pytest.approx(theirs["standard_error"], rel=1e-4)
    assert ours["parts"]["terms"] == pytest.approx(theirs["parts"]["terms"], rel=1e-4)
    assert ours["parts"]["edges"] == theirs["parts"]["edges"]
    assert [ours["parts"]["edges"][k] for k in (0, 32)] == [0, 50]
    assert sum(ours["parts"]["terms"]) == pytest.approx(ours["value"])
    assert ours["settings"] == theirs["settings"]
    assert ours["settings"]["count"] == 297
    text = compare_results(tmp_path / "out", tmp_path / "test", step=None)
    assert "within the noise" in text


def test_images_from_anywhere_score_like_the_checkpoint_they_came_from(checkpoint, tmp_path):
    first = evaluated(checkpoint, tmp_path / "out")["fd_lenet"]
    flags = [DIGITS, "--reference.data.subset=150"]
    second = scored(tmp_path / "out" / "samples", tmp_path / "again", *flags)["fd_lenet"]
    for name in ("value", "standard_error", "floor", "settings", "reference", "extractor"):
        assert second[name] == first[name]


def test_a_folder_can_be_the_reference(tmp_path):
    real, _ = Digits().images("train")
    a, b = folder_of(real[:50], tmp_path / "a"), folder_of(real[:50], tmp_path / "b")
    result = scored(a, tmp_path / "out", f"--reference.folder={b}")["fd_lenet"]
    assert result["value"] == pytest.approx(0, abs=1e-6)
    ordered = real[sorted(range(50), key=str)]
    pixels = hashlib.sha256(ordered.numpy().tobytes()).hexdigest()
    assert result["reference"] == {"folder": str(b), "count": 50, "sha256": pixels}
    assert result["samples"] == {"n": 50, "folder": str(a), "sha256": pixels, "seed": 1}
    assert result["step"] is None


@pytest.mark.slow
def test_a_checkpoint_and_its_data_are_read_once(checkpoint, tmp_path, monkeypatch):
    read, load, parse = [], torch.load, Digits.read

    def loaded(path, **more):
        read.append(str(path))
        return load(path, **more)

    def parsed(self, split):
        read.append(split)
        return parse(self, split)

    monkeypatch.setattr(torch, "load", loaded)
    monkeypatch.setattr(Digits, "read", parsed)
    flags = ["--metrics=fd,accuracy,bpd", f"--data.root={tmp_path}"]
    evaluated(checkpoint, tmp_path / "out", *flags)
    assert read == [checkpoint, "train", "test"]


@pytest.mark.slow
def test_a_model_of_given_images_is_given_those_of_the_reference(tmp_path):
    data = Conditioned(tiny_data(subset=150), SuperResolution(2))
    spec = image_spec(num_classes=10, image_channels=1)
    checkpoint = saved(tmp_path / "run", data, data=spec)
    result = evaluated(checkpoint, tmp_path / "out", "--metrics=fd,bpd")
    assert result["bpd"]["value"] > 0
    module = DiffusionModule.load_from_checkpoint(checkpoint)
    given = data.finished("train", 60).condition
    x = to_uint8(module.sample(60, DDIM(3), seed=1, condition=Condition(image=given.image)))
    assert (drawn(tmp_path / "out")[59, 0].int() - x[59, 0].int()).abs().max() <= 1
    # The same data in another place is the same condition.
    again = evaluated(checkpoint, tmp_path / "out", f"--data.root={tmp_path}")["fd_lenet"]
    inner = again["samples"]["condition"]["data"]["init_args"]["data"]
    assert inner["init_args"]["subset"] == 150


@pytest.mark.slow
def test_the_floor_is_that_of_disjoint_real_images_and_its_limit_is_closer(tmp_path, capsys):
    main(["floor", DIGITS, "--sizes=[300, 600]", f"--out={tmp_path}", "--seed=4"])
    records = json.loads((tmp_path / "results.json").read_text())
    features = lenet(Digits().images("train")[0])
    order = shuffled(len(features), 4).numpy()
    for n, distance, limit in zip((300, 600), records[::2], records[1::2], strict=True):
        expected = frechet(features[order[:n]], features[order[n : 2 * n]])
        assert (distance["metric"], limit["metric"]) == ("fd_lenet", "fd_lenet_inf")
        assert distance["samples"] == limit["samples"] == {"n": n, "reference_n": n, "seed": 4}
        assert distance["value"] == pytest.approx(expected, rel=1e-3)
        assert abs(limit["value"]) < min(distance["value"], 3 * limit["standard_error"])
    assert f"{records[2]['value']:.4g}" in capsys.readouterr().out


def test_the_floor_may_be_of_the_data_of_a_checkpoint(checkpoint, tmp_path, capsys):
    args = ["floor", f"--ckpt={checkpoint}", f"--out={tmp_path / 'out'}"]
    assert "half of the 150 real images" in fail(capsys, *args, "--sizes=[700]")
    assert "give numbers from 120" in fail(capsys, *args, "--sizes=[100]")
    assert not (tmp_path / "out").exists()


# ----------------------------------------------------------------------------- stops


def test_a_stopped_evaluation_goes_on_and_gives_the_same(checkpoint, tmp_path, monkeypatch):
    whole = evaluated(checkpoint, tmp_path / "whole", "--batch_size=16")["fd_lenet"]
    write, written = sample_set.write_png, []

    def breaking(path, image, about):
        if len(written) == 35:
            raise KeyboardInterrupt
        written.append(path)
        write(path, image, about)

    monkeypatch.setattr(sample_set, "write_png", breaking)
    with pytest.raises(SystemExit, match="130"):
        evaluated(checkpoint, tmp_path / "stopped", "--batch_size=16")
    assert not (tmp_path / "stopped" / "results.json").exists()
    written.clear()
    stopped = evaluated(checkpoint, tmp_path / "stopped", "--batch_size=16")["fd_lenet"]
    assert len(written) == 60 - 32  # two whole batches were there
    assert stopped == whole


@pytest.mark.slow
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
    assert evaluated(checkpoint, tmp_path / "stopped", "--batch_size=16") == whole


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
    assert evaluated(checkpoint, tmp_path / "out", "--batch_size=8") == whole


def test_a_stop_while_the_settings_are_written_does_not_bar_the_folder(checkpoint, tmp_path):
    (tmp_path / "out" / "samples").mkdir(parents=True)
    (tmp_path / "out" / "samples" / "samples.json.part").write_text('{"netw')
    assert evaluated(checkpoint, tmp_path / "out")["fd_lenet"]["samples"]["n"] == 60


@pytest.mark.slow
@pytest.mark.parametrize("again", [40, 70])
def test_another_number_of_samples_goes_on_with_those_that_are_there(checkpoint, tmp_path, again):
    whole = evaluated(checkpoint, tmp_path / "whole", "--batch_size=20", n=again)
    evaluated(checkpoint, tmp_path / "out", "--batch_size=20", n=60)
    first = (tmp_path / "out" / "samples" / "000003.png").stat().st_mtime_ns
    result = evaluated(checkpoint, tmp_path / "out", "--batch_size=20", n=again)
    assert (tmp_path / "out" / "samples" / "000003.png").stat().st_mtime_ns == first
    assert result == whole


@pytest.mark.slow
def test_samples_of_other_settings_are_not_mixed(checkpoint, tmp_path, capsys):
    evaluated(checkpoint, tmp_path, n=20)
    flags = [f"--ckpt={checkpoint}", f"--out={tmp_path}", "--n=20", *FEW, "--guidance=3"]
    assert "drawn with another guidance" in fail(capsys, "evaluate", *flags)


# ---------------------------------------------------------------------------- sweeps


@pytest.mark.parametrize(
    ("sampler", "guidance", "count"),
    [
        (DDIM(10), Guidance(3.0, (0.5, 1.0)), 15),
        (Heun(10), Guidance(), 19),  # the step into level 0 takes one
        (DPMSolverPP(10), Guidance(), 10),
        (DDPM(), Guidance(), 100),
        (PredictorCorrector(10), Guidance(), 19),  # nothing is corrected at level 0
    ],
)
def test_network_evaluations_are_counted(sampler, guidance, count):
    assert evaluations(sampler, Linear(T=100), guidance) == count


def test_a_sweep_fits_as_many_steps_as_the_evaluations_allow():
    found = [
        (type(s.sampler).__name__, s.guidance.scale, s.sampler.steps, point.evaluations)
        for point in Sweep([12, 30], [DDIM(), Heun()], [1.0, 2.0]).points(Linear(T=100))
        for s in [point.samples]
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
    samplers, variances = [DDPM(), DDIM(eta=0.5)], [FixedSmall(), FixedLarge()]
    sweep = Sweep([5], samplers, spacings=[LogSNRSpacing()], variances=variances, n=7, seed=3)
    points = sweep.points(Cosine(T=100))
    small, large, ddim = (point.samples for point in points)
    assert all(isinstance(s.sampler.spacing, LogSNRSpacing) for s in (small, large, ddim))
    assert [type(s.variance) for s in (small, large)] == [FixedSmall, FixedLarge]
    assert ddim.variance is None
    assert ddim.sampler.eta == 0.5
    assert (ddim.n, ddim.seed) == (7, 3)
    assert len({point.name for point in points}) == 3


def test_combinations_are_named_by_what_is_not_the_default():
    spacings = [KarrasSpacing(3), KarrasSpacing(), UniformSpacing()]
    found = Sweep([5, 9], [DDIM()], spacings=spacings).points(Cosine(T=100))
    curves = ["DDIM, Karras, rho=3", "DDIM, Karras", "DDIM, Uniform"]
    assert [p.curve for p in found[::2]] == curves
    assert len({point.name for point in found}) == 6
    assert [p.samples.sampler.spacing.rho for p in found[:4]] == [3, 3, 7, 7]
    samplers = [DDIM(), DDIM(clip=(-2, 2)), DDIM(eta=1.0), DDIM(spacing=KarrasSpacing(3))]
    clipped = Sweep([5], samplers).points(Cosine(T=100))
    marks = ["", ", clip=[-2, 2]", ", eta=1", ", spacing=KarrasSpacing(3)"]
    assert [p.curve for p in clipped] == [f"DDIM{mark}" for mark in marks]
    tables = [AnalyticVariance([0.1 * k] * 101) for k in (1, 2)]
    measured = Sweep([5], [DDPM()], variances=tables).points(Cosine(T=100))
    assert len({p.name for p in measured}) == 2
    assert max(len(p.name) for p in measured) < 60
    assert not set("".join(p.name for p in [*found, *clipped, *measured])) & set('/\\"[] ')


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"samplers": [DDIM(), DDIM()]}, "2 combinations of the sweep are the same: DDIM_5"),
        ({"samplers": [DDIM()], "guidance": [2.0], "evaluations": [1]}, "needs more than 1 eval"),
        ({"evaluations": []}, "empty list"),
    ],
)
def test_sweeps_that_cannot_be_are_refused_before_any_work(axes, message):
    with pytest.raises(InputError, match=message):
        Sweep(**{"evaluations": [5]} | axes).points(Cosine(T=100))


def test_interval_and_rescale_apply_to_a_strength_of_a_sweep():
    sweep = Sweep([20], [DDIM()], [1.0, Guidance(3.0, (0.5, 1.0), 0.7)])
    plain, guided = sweep.points(Linear(T=100))
    assert plain.samples.guidance == Guidance()
    assert (guided.samples.sampler.steps, guided.evaluations) == (13, 20)
    assert guided.name == "DDIM_guidance3_interval0.5-1_rescale0.7_20"


def test_a_sampler_that_does_not_start_from_noise_is_refused_before_any_work():
    with pytest.raises(InputError, match="starts at level 50"):
        evaluations(DDIM(None, spacing=Levels([50, 20, 0])), Linear(T=100), Guidance())


def swept(checkpoint: str, out: Path, *flags: str) -> list[dict]:
    main(["sweep", f"--ckpt={checkpoint}", f"--out={out}", *flags])
    return json.loads((out / "sweep.json").read_text())


@pytest.mark.slow
def test_each_point_of_a_sweep_has_its_own_variance_or_the_checkpoint_s(checkpoint, tmp_path):
    flags = ["--metrics=bpd", "--batch_size=300"]
    plain = evaluated(checkpoint, tmp_path / "plain", *flags)["bpd"]["value"]
    ddpm = ["--sampler=DDPM", "--sampler.steps=3", "--variance=FixedLarge"]
    large = evaluated(checkpoint, tmp_path / "large", *flags, *ddpm)["bpd"]["value"]
    axes = ["--samplers=[DDPM, DDIM]", "--variances=[FixedLarge]", "--evaluations=[2]"]
    rows = swept(checkpoint, tmp_path / "sweep", *flags, *axes)
    values = [row["results"][0]["value"] for row in rows]
    assert values == pytest.approx([large, plain])
    assert values[0] != pytest.approx(plain, rel=1e-3)


@pytest.mark.slow
def test_a_sweep_leaves_a_table_its_numbers_and_curves(checkpoint, tmp_path, capsys):
    axes = ["--evaluations=[2, 4]", "--samplers=[DDIM, Heun]", "--n=60", "--metrics=fd,accuracy"]
    rows = swept(checkpoint, tmp_path, *axes)
    points = [(row["curve"], row["evaluations"]) for row in rows]
    assert points == [("DDIM", 2), ("DDIM", 4), ("Heun", 2), ("Heun", 4)]
    # Two evaluations are too far from noise for Heun's second order.
    assert [row["results"][0]["samples"]["steps"] for row in rows] == [2, 4, 2, 3]
    assert rows[0]["results"][0]["floor"]["n"] == 60
    assert rows[1]["results"] == list(results(tmp_path / "DDIM_4").values())
    for metric in ("fd_lenet", "accuracy"):
        assert Image.open(tmp_path / f"sweep_{metric}.png").size == (960, 540)
    table = capsys.readouterr().out
    assert f"{rows[1]['results'][0]['value']:.4g}" in table


# ------------------------------------------------------------------ results, comparisons


def result(value: float, error: float | None = 1.0, **other) -> Result:
    settings = other.pop("settings", {})
    score = Score(value, error, settings=settings, **other.pop("score", {}))
    parts = {"samples": {"n": 10}, "reference": {"sha256": "a"}, "extractor": {"name": "b"}}
    return Result("fd", score, **parts | other)


def file_of(path: Path, *args, **other) -> Path:
    write_results(path, [result(*args, **other)])
    return path


@pytest.mark.parametrize(
    ("value", "error", "smaller", "verdict"),
    [
        (12.0, 1.0, True, "within the noise (1.4 standard errors)"),
        (13.0, 1.0, True, "A is better (2.1 standard errors)"),
        (13.0, 1.0, False, "B is better (2.1 standard errors)"),
        (7.0, None, True, "its noise is not known"),
    ],
)
def test_a_difference_counts_from_two_of_its_standard_errors_on(
    tmp_path, value, error, smaller, verdict
):
    better = {"score": {"smaller_is_better": smaller}}
    a, b = file_of(tmp_path / "a", 10.0, **better), file_of(tmp_path / "b", value, error, **better)
    assert verdict in compare_results(a, b)


@pytest.mark.parametrize(
    "differing",
    [
        {"samples": {"n": 11}},
        {"reference": {"sha256": "other"}},
        {"extractor": {"name": "other"}},
        {"settings": {"subset_size": 7}},
    ],
)
def test_what_was_measured_in_other_ways_is_not_compared(tmp_path, differing):
    a, b = file_of(tmp_path / "a", 1.0), file_of(tmp_path / "b", 1.0, **differing)
    (value,) = next(iter(differing.values())).values()
    with pytest.raises(InputError, match=f"do not compare: .*{value}"):
        compare_results(a, b)


def test_numbers_that_are_not_finite_are_null_and_are_shown_as_such(tmp_path):
    nan = float("nan")
    a = file_of(tmp_path / "a", nan, nan, settings={"reach": math.inf})
    (record,) = json.loads(a.read_text(), parse_constant=pytest.fail)
    assert (record["value"], record["standard_error"]) == (None, None)
    assert record["settings"] == {"reach": "inf"}
    assert compare_results(a, a).count("not finite") == 2


@pytest.mark.parametrize("content", ["", "[1]", '{"metrics": {}}', '[{"format": 0}]'])
def test_what_holds_no_results_of_this_version_is_named(tmp_path, content):
    (tmp_path / "b").write_text(content)
    with pytest.raises(InputError, match="b is damaged, or holds no results of this version"):
        read_results(tmp_path / "b")
    with pytest.raises(InputError, match=r"no file .*results\.json"):
        read_results(tmp_path)


def test_a_run_is_compared_by_the_last_of_its_results_or_those_of_a_step(tmp_path):
    path = tmp_path / "metrics.json"
    for step, value, weights in ((1, 30.0, "ema"), (2, 20.0, "ema"), (2, 25.0, "raw")):
        append_result(path, result(value, samples={"n": 10, "weights": weights}, step=step))
    other = file_of(tmp_path / "results", 20.0)
    assert "+0 " in compare_results(tmp_path, other)
    assert "-10 " in compare_results(tmp_path, other, step=1)
    with pytest.raises(InputError, match="holds no result of step 7"):
        compare_results(tmp_path, other, step=7)


def test_the_reference_is_known_by_its_pixels_and_not_by_its_path(tmp_path, capsys):
    one, same, other = (
        str(file_of(tmp_path / name, 1.0, reference={"sha256": pixels, "folder": name}))
        for name, pixels in (("one", "x"), ("same", "x"), ("other", "y"))
    )
    main(["compare", one, same])
    assert "within the noise" in capsys.readouterr().out
    assert "do not compare: reference" in fail(capsys, "compare", one, other)


# -------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--metrics=fdd"], "did you mean fd?"),
        (["--n=1"], "n is at least 2"),
        (["--metrics=accuracy", "--extractor=Pixels"], "Pixels gives no logits"),
        (["--metrics=accuracy", "--labels=[-1, 3]"], "label -1 is asked for"),
        (["--extractor=Inception", "--extractor.weights=none.pth"], "cannot read the weights"),
        (["--reference.data=MNIST", "--reference.data.download=false"], "lacks"),
        ([DIGITS, "--reference.folder=."], "give one of them"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    checkpoint, tmp_path, capsys, flags, message, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    args = [f"--ckpt={checkpoint}", "--out=out", "--n=60", *FEW, *flags]
    assert message in fail(capsys, "evaluate", *args)
    assert not (tmp_path / "out").exists()


class FiveDigits(LeNet):
    """Says that it knows five classes."""

    classes = 5


@pytest.mark.parametrize(
    ("extractor", "data", "message"),
    [
        (LeNet(), FashionMNIST(), "LeNet tells the classes of MNIST, Digits apart, not those of"),
        (Inception("none"), CIFAR10(), "Inception tells the classes of no data set's apart"),
        (FiveDigits(), Digits(), r"label \d is asked for, which is none of FiveDigits's 5"),
    ],
)
def test_accuracy_is_refused_where_it_means_nothing(extractor, data, message):
    with pytest.raises(InputError, match=message):
        Accuracy().check_labels(extractor, data, torch.arange(10))
    for known in (MNIST(), Digits()):
        Accuracy().check_labels(LeNet(), known, torch.arange(10))
    with pytest.raises(InputError, match="the model takes no labels"):
        Accuracy().check_labels(LeNet(), Digits(), None)


def test_a_folder_that_cannot_hold_the_results_is_refused_first(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    read: list = []
    monkeypatch.setattr(UniformFolder, "read", lambda self, files: read.append(files))
    images = Digits().images("train")[0][:20]
    folder, more = (folder_of(images, tmp_path / name) for name in ("images", "more"))
    args = ["score", f"--samples={folder}", f"--reference.folder={more}"]
    for out, message in (
        (tmp_path / "file" / "deeper", "is a file"),
        ("/proc/x", "nothing can be written into"),
        (folder, "lies in --samples"),
        (folder / "scores", "lies in --samples"),
        (more, "lies in --reference.folder"),
    ):
        assert message in fail(capsys, *args, f"--out={out}")
    assert not read
    assert len(list(folder.iterdir())) == 20


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda file: file.write_bytes(b"\x89PNG"),
            "3.png is not a PNG, JPEG, WebP, BMP, TIFF or GIF image",
        ),
        (lambda file: Image.new("L", (9, 8)).save(file), "one size and kind"),
        (lambda file: Image.new("RGB", (8, 8)).save(file), "one size and kind"),
        (lambda file: Image.new("I;16", (8, 8)).save(file), "scale it to 8 bits"),
        (lambda file: file.unlink(), "holds 19 images, fewer than n = 20"),
        (lambda file: [other.unlink() for other in file.parent.iterdir()], "holds no PNG"),
    ],
)
def test_a_bad_folder_is_named_with_what_to_do(tmp_path, spoil, message):
    folder = folder_of(Digits().images("train")[0][:20], tmp_path / "images")
    spoil(folder / "3.png")
    with pytest.raises(InputError, match=message):
        UniformFolder(folder, 20)


def test_a_damaged_image_is_one_line_and_leaves_nothing(tmp_path, capsys):
    folder = folder_of(Digits().images("train")[0][:20], tmp_path / "images")
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:60])
    flags = [f"--samples={folder}", DIGITS, f"--out={tmp_path / 'out'}"]
    assert "is damaged" in fail(capsys, "score", *flags)
    assert not (tmp_path / "out").exists()


def test_grey_images_for_a_reference_in_colour_are_an_error(tmp_path, capsys):
    folder = folder_of(Digits().images("train")[0][:5], tmp_path / "grey")
    (tmp_path / "colour").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "colour" / "0.png")
    flags = [f"--samples={folder}", f"--reference.folder={tmp_path / 'colour'}"]
    message = fail(capsys, "score", *flags, "--extractor=LeNet", f"--out={tmp_path / 'out'}")
    assert "[1, 8, 8]" in message
    assert "[3, 8, 8]" in message
