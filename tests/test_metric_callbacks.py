"""What GenerativeMetrics and PointMetrics write, log and refuse."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from PIL import Image
from scipy.stats import wasserstein_distance

from ddpm_lightning import DiffusionModule
from ddpm_lightning.batch import Condition, DataSpec
from ddpm_lightning.callbacks import GenerativeMetrics, PointMetrics, SampleGrid, TrainingMonitor
from ddpm_lightning.data import Toy2D
from ddpm_lightning.diffusion import Cosine, FixedLarge, Guidance, V
from ddpm_lightning.diffusion.samplers import DDIM, Levels
from ddpm_lightning.errors import InputError
from ddpm_lightning.images import to_uint8
from ddpm_lightning.metrics import (
    KID,
    MMD,
    Inception,
    LeNet,
    Result,
    Score,
    SlicedWasserstein,
    Statistics,
    cache,
    frechet_distance,
    sliced_wasserstein,
)
from ddpm_lightning.metrics.frechet import distances_left_out
from ddpm_lightning.metrics.jackknife import jackknife, shuffled
from ddpm_lightning.metrics.metric import Floor
from ddpm_lightning.metrics.result import append_result
from ddpm_lightning.networks import MLP
from tests.small import (
    conditional_fit,
    events,
    lively,
    logged_fit,
    logging_trainer,
    tiny_data,
)


def kept(folder: Path) -> list[dict]:
    return json.loads((folder / "metrics.json").read_text())


def results(folder: Path) -> dict[tuple[str, str], dict]:
    return {(result["metric"], result["samples"]["weights"]): result for result in kept(folder)}


class Started(Callback):
    """Notes whether training began."""

    yet = False

    def on_train_start(self, *args):
        self.yet = True


def refused(folder: Path, message: str, callback, run=logged_fit) -> None:
    started = Started()
    with pytest.raises(InputError, match=message):
        run(folder, 1, callback, started)
    assert not started.yet


def test_frechet_distance_is_logged_with_what_was_measured_and_kept_in_a_file(tmp_path):
    logged_fit(tmp_path, 3, GenerativeMetrics(LeNet(), every_n_steps=2, n=20, sampler=DDIM(2)))
    logged = events(tmp_path).Scalars("fd_lenet/n20_ddim2_ema_train")
    assert [e.step for e in logged] == [2, 3]
    assert [e.value for e in events(tmp_path).Scalars("fd")] == [e.value for e in logged]
    first, second = kept(tmp_path)
    assert (first["step"], second["step"]) == (2, 3)
    assert first["value"] == pytest.approx(logged[0].value)
    assert first["floor"]["value"] < first["value"]
    assert first["reference"]["count"] == 64


def test_metric_can_be_monitored_under_its_alias(tmp_path):
    seen = []

    class _Look(SampleGrid):
        def run(self, trainer, module, step):
            seen.append(trainer.callback_metrics.get("fd"))

    metric = GenerativeMetrics(LeNet(), 1, 8, sampler=DDIM(2))
    module = logged_fit(tmp_path, 2, metric, _Look(every_n_steps=1))
    assert all(value is not None for value in seen)
    assert {name.split(".")[0] for name in module.state_dict()} == {"net", "ema"}  # no extractor


def appended(folder: Path, *numbers: tuple[int, float], fitting=True, **other) -> list[tuple]:
    for step, value in numbers:
        floor = Floor(1 + 1e-7 * value, 5, 7)
        score = Score(value, 0.1 * value, floor=floor, settings=other.get("settings", {}))
        samples = {"n": other.get("n", 10)}
        result = Result(other.get("metric", "fd"), score, samples, step=step)
        append_result(folder / "metrics.json", result, fitting)
    return [(result["metric"], result["step"], result["value"]) for result in kept(folder)]


def test_results_of_steps_that_a_resumed_run_repeats_are_replaced(tmp_path):
    appended(tmp_path, (1, 5.0), (2, 4.0), (3, 3.0))
    appended(tmp_path, (2, 4.5))
    appended(tmp_path, (1, 1.0), metric="fid")
    found = appended(tmp_path, (1, 7.0), n=20)
    assert found == [("fd", 1, 5.0), ("fd", 2, 4.5), ("fid", 1, 1.0), ("fd", 1, 7.0)]


def test_a_test_replaces_the_result_of_its_own_step_and_no_other(tmp_path):
    appended(tmp_path, (1, 5.0), (2, 4.0), (3, 3.0))
    found = appended(tmp_path, (2, 4.5), fitting=False)
    assert found == [("fd", 1, 5.0), ("fd", 3, 3.0), ("fd", 2, 4.5)]


def test_few_samples_for_the_dimension_are_warned_about(tmp_path):
    with pytest.warns(UserWarning, match="mostly bias"):
        logged_fit(tmp_path, 1, GenerativeMetrics(LeNet(), 1, 8, sampler=DDIM(2)))


class CalledFid(LeNet):
    """Has the name of Inception's distance."""

    name = alias = "fid"


@pytest.mark.slow
@pytest.mark.parametrize(("extractor", "alias"), [(LeNet(), "fd"), (CalledFid(), "fid")])
@pytest.mark.parametrize("every", [2, 5])
def test_the_final_metric_is_the_one_at_the_end_of_training(tmp_path, every, extractor, alias):
    metric = GenerativeMetrics(extractor, every, 8, sampler=DDIM(2))
    seen = []

    class Look(Callback):
        def on_fit_end(self, trainer, module):
            seen.append(float(trainer.callback_metrics[alias]))

    logged_fit(tmp_path, 3, metric, TrainingMonitor(), Look())
    found = kept(tmp_path)
    assert found[-1]["step"] == 3
    (final,) = events(tmp_path).Scalars(f"final/{alias}")
    assert final.value == pytest.approx(found[-1]["value"])
    assert seen == pytest.approx([found[-1]["value"]])
    assert len({one["value"] for one in found}) == len(found)


def test_all_metrics_of_both_weights_come_from_one_pass_each(tmp_path, monkeypatch):
    passes, both = [], LeNet.both
    monkeypatch.setattr(
        LeNet, "both", lambda self, images: passes.append(len(images)) or both(self, images)
    )
    settings = {"sampler": DDIM(2), "weights": "both", "batch_size": 10}
    settings |= {"metrics": ["fd", KID(20), "is", "pr"], "cache": str(tmp_path / "cache")}
    metric = GenerativeMetrics(LeNet(), every_n_steps=3, n=25, **settings)
    module = logged_fit(tmp_path, 3, metric)
    names = {"fd_lenet", "kd_lenet", "is_lenet"}
    names |= {f"{name}_lenet" for name in ("precision", "recall", "density", "coverage")}
    found = results(tmp_path)
    assert found.keys() == {(name, weights) for name in names for weights in ("ema", "raw")}
    assert passes == [10] * 6 + [4] + [10, 10, 5] * 2  # 64 real images, 25 samples twice
    assert found["kd_lenet", "raw"]["spread"] > 0  # of subsets of 20 out of 25
    assert found["fd_lenet", "ema"]["value"] != found["fd_lenet", "raw"]["value"]
    logged = events(tmp_path)
    for alias, weights in (("fd", "ema"), ("fd_raw", "raw")):
        (event,) = logged.Scalars(alias)
        assert event.value == pytest.approx(found["fd_lenet", weights]["value"])
    # The same by hand.
    samples = module.sample(25, DDIM(2), seed=1, weights="raw")
    reference, _ = tiny_data().images("train")
    x, y = LeNet()(to_uint8(samples)), LeNet()(reference)
    expected = frechet_distance(Statistics.of(x), Statistics.of(y))
    assert found["fd_lenet", "raw"]["value"] == pytest.approx(expected, rel=1e-4)
    assert found["precision_lenet", "raw"]["settings"] == {"k": 3, "real_images": 25}


def test_a_result_states_all_that_was_measured(tmp_path, capsys):
    guidance = Guidance(3.0, None, 0.5)
    request = {"sampler": DDIM(3), "guidance": guidance, "seed": 9, "weights": "raw"}
    metric = GenerativeMetrics(LeNet(), 2, 45, "fd,accuracy", **request)
    data = tiny_data(subset=80)
    module = conditional_fit(tmp_path, metric, data, variance=FixedLarge())
    found, share = kept(tmp_path)
    real, labels = data.images("train")
    images = to_uint8(module.sample(45, labels=labels.tolist(), **request))
    right = LeNet().both(images).logits.argmax(1) == labels[:45]
    assert share["value"] == pytest.approx(float(right.double().mean()))
    x, y = LeNet()(images), LeNet()(real)
    order, statistics = shuffled(80, 0), Statistics.of(y)
    floor = frechet_distance(Statistics.of(y[order[:40]]), Statistics.of(y[order[40:]]))
    distance = frechet_distance(Statistics.of(x), statistics)
    assert found["value"] == pytest.approx(distance, rel=1e-3)
    error = jackknife(distances_left_out(x, statistics, seed=9))
    assert found["standard_error"] == pytest.approx(error, rel=1e-2)
    assert found["floor"].pop("value") == pytest.approx(floor, rel=1e-4)
    assert found["floor"] == {"n": 40, "reference_n": 40}
    assert found["samples"] == {
        "labels": labels.tolist(),
        "n": 45,
        "steps": 3,
        "guidance": {"scale": 3.0, "interval": None, "rescale": 0.5},
        "weights": "raw",
        "precision": "32-true",
        "seed": 9,
        "sampler": DDIM(3, clip=(-1.0, 1.0)).describe(),
        "variance": FixedLarge().describe(),
        "schedule": module.schedule.describe(),
        "parameterization": module.parameterization.describe(),
    }
    reference = found["reference"]
    assert reference["data"]["init_args"]["subset"] == 80
    assert (reference["split"], reference["count"]) == ("train", 80)
    assert reference["sha256"] == cache.pixels_digest([real])
    assert found["extractor"]["sha256"] == LeNet().digest
    tag = "fd_lenet/n45_ddim3_guidance3_rescale0.5_raw_train"
    assert len(events(tmp_path).Scalars(tag)) == 1
    printed = capsys.readouterr().out
    assert "40 against the 40 others (fewer than the 45 samples" in printed


def test_a_second_run_finds_the_features_of_the_real_images(tmp_path, monkeypatch):
    values = []
    for run in ("one", "two"):
        metric = GenerativeMetrics(LeNet(), 1, 8, sampler=DDIM(2), cache=str(tmp_path / "cache"))
        logged_fit(tmp_path / run, 1, metric)
        values.append(results(tmp_path / run)["fd_lenet", "ema"])
        monkeypatch.setattr("ddpm_lightning.callbacks.generative_metrics.store", None)
    assert values[0] == values[1]
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metrics": [KID(50)], "n": 30}, "kid needs 50 or more samples"),
        ({"metrics": [KID(65)], "n": 70}, "kid needs 65 or more real data, not 64"),
        ({"metrics": ["accuracy"], "n": 9}, "the model takes no labels"),
        ({"extractor": Inception("none.pth")}, "cannot read the weights"),
        ({"sampler": DDIM(None, spacing=Levels([500, 0]))}, "starts at level 500"),
        ({"guidance": 2.0}, "needs a model with labels"),
    ],
)
def test_metrics_that_cannot_be_are_refused_before_training(tmp_path, arguments, message):
    settings = {"extractor": LeNet(), "sampler": DDIM(2)} | arguments
    refused(tmp_path, message, GenerativeMetrics(**settings))


def test_samples_are_shown_before_their_nearest_real_images(tmp_path):
    metrics = GenerativeMetrics(LeNet(), 1, 9, sampler=DDIM(2), neighbours=3, batch_size=4)
    module = logged_fit(tmp_path, 1, metrics)
    file = tmp_path / "samples" / "neighbours_ddim2_ema_step_00000001.png"
    panel = Image.open(file).convert("L")
    width, height = panel.size
    panel = panel.crop((0, height - (3 * 66 + 2), width, height))  # without its caption
    assert width == 8 * 66 + 2
    assert height > panel.size[1]
    x = to_uint8(module.sample(9, DDIM(2), seed=1))
    first = np.array(panel)[2 : 2 + 64 : 8, 2 : 2 + 64 : 8]
    assert abs(first.astype(int) - x[0, 0].numpy()).max() <= 1
    real, _ = tiny_data().images("train")
    third = np.linalg.norm(LeNet()(real).numpy() - LeNet()(x[2:3]).numpy(), axis=1).argmin()
    shown = np.array(panel)[2 + 2 * 66 : 130 + 66 : 8, 2 + 66 : 130 : 8][:8, :8]
    np.testing.assert_array_equal(shown, real[third, 0])
    assert "samples/neighbours_ddim2_ema" in events(tmp_path).Tags()["images"]


# ------------------------------------------------------------------ points in the plane


def toy_module(**facts) -> DiffusionModule:
    net, spec = partial(MLP, width=16, depth=1), {"shape": (2,), "data_range": None} | facts
    parts = {"net": net, "schedule": Cosine(), "parameterization": V()}
    conditional = spec.get("num_classes") is not None
    return DiffusionModule(data=DataSpec(**spec), conditional=conditional, **parts)


def fit_points(folder: Path, steps: int, *callbacks, n: int = 200, **facts) -> None:
    torch.manual_seed(0)
    run = logging_trainer(folder, steps, list(callbacks))
    run.fit(toy_module(**facts), Toy2D(n=n, global_batch_size=8))


def test_point_metrics_are_logged_and_kept_beside_real_against_real(tmp_path):
    metrics = [SlicedWasserstein(64), MMD([0.5]), "pr"]
    fit_points(tmp_path, 3, PointMetrics(2, n=50, metrics=metrics, sampler=DDIM(2)))
    names = ["swd", "mmd", "precision", "recall", "density", "coverage"]
    found = kept(tmp_path)
    assert [(r["metric"], r["step"]) for r in found] == [(n, s) for s in (2, 3) for n in names]
    logged = events(tmp_path)
    for name in names:
        values = [r["value"] for r in found if r["metric"] == name]
        for tag in (name, f"{name}/n50_ddim2_ema_val"):
            assert [e.value for e in logged.Scalars(tag)] == pytest.approx(values)
    settings = [{"projections": 64}, {"bandwidths": [0.5]}, {"k": 3, "real_images": 50}]
    assert [r["settings"] for r in found[:3]] == settings


def test_the_floor_is_the_mean_distance_of_two_real_sets(tmp_path):
    fit_points(tmp_path, 1, PointMetrics(1, n=60, sampler=DDIM(2)))
    x, _ = Toy2D(n=200).samples("val")
    a, b, c = x[:180].double().split(60)  # the 20 left over are no set
    angles = np.linspace(0, np.pi, 500, endpoint=False)
    directions = np.stack([np.cos(angles), np.sin(angles)])
    distances = []
    for pair in ((a, b), (a, c), (b, c)):
        rows = zip(*((points.numpy() @ directions).T for points in pair), strict=True)
        distances.append(np.mean([wasserstein_distance(*row) for row in rows]))
    swd, mmd_ = kept(tmp_path)
    assert swd["floor"]["value"] == pytest.approx(np.mean(distances), rel=0.05)
    assert mmd_["floor"]["value"] < 0.02 < mmd_["value"]


def test_point_metrics_are_of_guided_samples_and_say_so(tmp_path):
    guidance = Guidance(3.0, (0.2, 1.0), 0.5)
    request = {"sampler": DDIM(4), "seed": 7, "weights": "raw"}
    metric = PointMetrics(5, n=40, guidance=guidance, **request)
    module = lively(toy_module(num_classes=8))
    data = Toy2D("mixture", n=80, global_batch_size=8)
    logging_trainer(tmp_path, 2, [metric, TrainingMonitor()]).fit(module, data)
    swd, _ = kept(tmp_path)
    batch = data.finished("val")
    labels = Condition(batch.condition.label)
    x = module.sample(80, guidance=guidance, condition=labels, **request)
    parts = zip(x.split(40), batch.x0.split(40), strict=True)
    value = np.mean([sliced_wasserstein(a, b) for a, b in parts])
    assert swd["value"] == pytest.approx(value, rel=1e-4)
    other = module.sample(80, condition=labels, **request)
    assert abs(x - other).mean() > 0.01
    (final,) = events(tmp_path).Scalars("final/swd")
    assert final.value == pytest.approx(swd["value"])
    assert swd["reference"]["data"]["init_args"]["n"] == 80
    assert swd["reference"]["count"] == 80
    samples = swd["samples"]
    stated = ("n", "steps", "seed", "weights", "sets")
    assert [samples[name] for name in stated] == [40, 4, 7, "raw", 2]
    assert samples["variance"] == module.variance.describe()
    assert samples["guidance"] == {"scale": 3.0, "interval": [0.2, 1.0], "rescale": 0.5}
    assert samples["sampler"]["init_args"]["clip"] is None  # the data has no range
    assert (swd["floor"]["n"], swd["floor"]["reference_n"]) == (40, 40)


def test_metrics_of_points_state_the_range_that_samples_are_clipped_to(tmp_path):
    fit_points(tmp_path, 1, PointMetrics(1, n=4, sampler=DDIM(2)), data_range=(-2.0, 2.0))
    swd, mmd_ = kept(tmp_path)
    assert swd["samples"]["sampler"]["init_args"]["clip"] == [-2.0, 2.0]
    assert swd["samples"]["sets"] == mmd_["samples"]["sets"] == 5  # of a large split


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 200}, "needs 400 points"),
        ({"sampler": DDIM(None, spacing=Levels([500, 0]))}, "starts at level 500"),
        ({"metrics": "is"}, "gives no logits"),
    ],
)
def test_point_metrics_that_cannot_be_are_refused_before_training(tmp_path, arguments, message):
    metric = PointMetrics(**{"n": 20, "sampler": DDIM(2)} | arguments)
    refused(tmp_path, message, metric, fit_points)


def test_metrics_of_points_refuse_images_before_training(tmp_path):
    refused(tmp_path, "GenerativeMetrics", PointMetrics(n=2))
    with pytest.raises(InputError, match="n is at least 2"):
        PointMetrics(n=1)
