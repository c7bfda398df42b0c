"""The evaluate command: scores, their settings, stops, sweeps, comparisons and mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm

from ddpm_lightning import DiffusionModule
from ddpm_lightning.cli import main
from ddpm_lightning.data import Digits
from ddpm_lightning.diffusion.denoiser import Guidance
from ddpm_lightning.diffusion.samplers import DDIM, DDPM, DPMSolverPP, Heun, LogSNR
from ddpm_lightning.diffusion.schedules import Cosine, Linear
from ddpm_lightning.diffusion.variances import FixedLarge, FixedSmall
from ddpm_lightning.errors import InputError
from ddpm_lightning.evaluation import sample_folder
from ddpm_lightning.evaluation.compare import compare_results
from ddpm_lightning.evaluation.sweep import Sweep, evaluations, points
from ddpm_lightning.image_folder import ImageFolder
from ddpm_lightning.images import to_uint8
from ddpm_lightning.metrics import LeNet
from ddpm_lightning.pictures import draw_neighbours
from tests.test_cli import fail, randomised, tiny_run

FEW = ["--sampler=DDIM", "--sampler.steps=3"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    """A conditional model of the digits with random weights."""
    root = tmp_path_factory.mktemp("model")
    main(["fit", *tiny_run(root, "--model.conditional=true", "--data.subset=150")])
    return str(randomised(root / "checkpoints" / "last.ckpt"))


def evaluated(checkpoint: str, out: Path, *flags: str, n: int = 60) -> dict:
    main(["evaluate", f"--ckpt={checkpoint}", f"--out={out}", f"--n={n}", *FEW, *flags])
    return json.loads((out / "results.json").read_text())


def folder_of(images: torch.Tensor, folder: Path) -> Path:
    folder.mkdir()
    for k, image in enumerate(images):
        Image.fromarray(image[0].numpy()).save(folder / f"{k}.png")
    return folder


# ---------------------------------------------------------------------- what is measured


def test_the_distance_is_that_of_the_samples_to_the_training_images(checkpoint, tmp_path):
    result = evaluated(checkpoint, tmp_path / "out")
    real, labels = Digits(subset=150).images("train")
    module = DiffusionModule.load_from_checkpoint(checkpoint)
    x = module.sample(60, DDIM(3), labels, seed=1)
    a, b = (LeNet()(images).double().numpy() for images in (to_uint8(x), real))
    root = sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum()
    expected += np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert result["metrics"]["fd_lenet"]["value"] == pytest.approx(expected, rel=1e-3)


def test_a_result_states_all_that_was_measured(checkpoint, tmp_path):
    result = evaluated(checkpoint, tmp_path / "out", "--guidance=2", "--weights=raw", "--seed=3")
    samples = result["samples"]
    assert result["n"] == 60
    assert result["reference"]["count"] == 150
    assert result["reference"]["split"] == "train"
    assert result["reference"]["data"]["class_path"].endswith("Digits")
    assert result["extractor"]["sha256"] == LeNet().digest
    assert result["extractor"]["resize"] == LeNet().resize
    assert samples["checkpoint"] == checkpoint
    assert samples["step"] == 2
    assert samples["sampler"]["init_args"]["steps"] == 3
    assert (samples["guidance_scale"], samples["weights"], samples["seed"]) == (2, "raw", 3)
    assert result["metrics"]["fd_lenet"]["floor"] > 0
    assert result["metrics"]["fd_lenet"]["error"] > 0


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


def test_bits_per_dimension_are_those_of_the_test_command(checkpoint, tmp_path):
    ours = evaluated(checkpoint, tmp_path / "out", "--metrics=bpd", "--seed=0")["metrics"]["bpd"]
    flags = tiny_run(tmp_path / "test", "--model.conditional=true")
    main(["test", *flags, f"--ckpt_path={checkpoint}"])
    (theirs,) = json.loads((tmp_path / "test" / "metrics.json").read_text())
    assert ours["value"] == pytest.approx(theirs["value"], rel=1e-5)
    assert ours["error"] == pytest.approx(theirs["standard_error"], rel=1e-4)


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
    assert result["reference"] == {"folder": str(b), "count": 50}


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
    drawn = np.array(Image.open(tmp_path / "out" / "samples" / "000059.png"))
    assert abs(drawn.astype(int) - x[59, 0].numpy()).max() <= 1


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


def test_combinations_of_one_name_are_refused_before_any_work():
    with pytest.raises(InputError, match="2 combinations of the sweep are called DDIM_5"):
        points(Sweep([5], [DDIM(), DDIM(clip=(-2, 2))]), Cosine(T=100))


def test_too_few_evaluations_for_a_step_are_an_error():
    with pytest.raises(InputError, match="needs more than 1 evaluations"):
        points(Sweep([1], [DDIM()], [2.0]), Cosine(T=100))


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
    for metric in ("fd_lenet", "accuracy"):
        assert Image.open(tmp_path / f"sweep_{metric}.png").size == (960, 540)
    table = capsys.readouterr().out
    assert f"{rows[1]['metrics']['fd_lenet']['value']:.4g}" in table


# ----------------------------------------------------------------------- comparisons


def result_file(path: Path, value: float, error: float | None = 1.0, **other) -> Path:
    fd = {"value": value, "error": error, "floor": None}
    result = {"metrics": {"fd": fd}, "n": 10, "reference": "a", "extractor": "b"}
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


@pytest.mark.parametrize("differing", ["n", "reference", "extractor"])
def test_what_was_measured_in_other_ways_is_not_compared(tmp_path, differing, capsys):
    a = result_file(tmp_path / "a", 1.0)
    b = result_file(tmp_path / "b", 1.0, **{differing: "other"})
    message = fail(capsys, "evaluate", "--compare", str(a), str(b))
    assert f"do not compare: {differing}" in message


# -------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--metrics=fdd"], "did you mean fd?"),
        (["--metrics="], "no metrics"),
        (["--n=1"], "n is at least 2"),
        (["--metrics=fd_inf"], "fd_inf needs 120 or more samples"),
        (["--metrics=accuracy", "--extractor=Pixels"], "Pixels knows no classes"),
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
    args = [f"--ckpt={checkpoint}", "--out=out", "--n=60", *flags]
    assert message in fail(capsys, "evaluate", *args)
    assert not (tmp_path / "out").exists()


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
