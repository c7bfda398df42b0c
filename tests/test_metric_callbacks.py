"""What GenerativeMetrics and PointMetrics write, log and refuse."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from scipy.stats import wasserstein_distance
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ddpm_lightning import DiffusionModule
from ddpm_lightning.callbacks import (
    GenerativeMetrics,
    LossByTimestep,
    PointMetrics,
    SampleGrid,
    TrainingMonitor,
)
from ddpm_lightning.callbacks.results import append_result
from ddpm_lightning.data import Toy2D
from ddpm_lightning.diffusion.denoiser import Guidance
from ddpm_lightning.diffusion.parameterizations import V
from ddpm_lightning.diffusion.samplers import DDIM, Levels
from ddpm_lightning.diffusion.schedules import Cosine
from ddpm_lightning.diffusion.variances import FixedLarge
from ddpm_lightning.errors import InputError
from ddpm_lightning.images import to_uint8
from ddpm_lightning.metrics import (
    Features,
    Inception,
    LeNet,
    Pixels,
    Statistics,
    frechet_distance,
    frechet_spread,
    manifold,
    sliced_wasserstein,
)
from ddpm_lightning.networks import MLP
from tests.small import tiny_data, tiny_module, trainer


def fit(folder: Path, steps: int, callbacks: list, **arguments):
    torch.manual_seed(0)
    module = tiny_module()
    logger = TensorBoardLogger(folder, name="", version="")
    run = trainer(folder, steps, callbacks=callbacks, logger=logger, **arguments)
    run.fit(module, tiny_data())
    return module


def events(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    accumulator.Reload()
    return accumulator


def conditional_fit(folder: Path, callback) -> None:
    """Fit a conditional model whose random weights make labels and guidance matter."""
    torch.manual_seed(0)
    module = tiny_module(conditional=True)
    for parameter in [*module.net.parameters(), *module.ema.net.parameters()]:
        parameter.data.normal_(std=0.2)
    module.optimizer = partial(torch.optim.SGD, lr=0.0)
    logger = TensorBoardLogger(folder, name="", version="")
    trainer(folder, 1, callbacks=[callback], logger=logger).fit(module, tiny_data())


def test_a_metrics_guidance_changes_it_and_stands_beside_it(tmp_path):
    plain, guided = (
        GenerativeMetrics(LeNet(), n=20, sampler=DDIM(2), **settings)
        for settings in ({}, {"guidance": 3.0, "guidance_interval": (0.2, 1.0)})
    )
    conditional_fit(tmp_path / "plain", plain)
    conditional_fit(tmp_path / "guided", guided)
    (one,) = json.loads((tmp_path / "plain" / "metrics.json").read_text())
    (other,) = json.loads((tmp_path / "guided" / "metrics.json").read_text())
    assert (one["guidance"], one["guidance_interval"]) == (1.0, None)
    assert (other["guidance"], other["guidance_interval"]) == (3.0, [0.2, 1.0])
    assert one["value"] != other["value"]
    tag = "fd_lenet/n20_ddim2_guidance3_interval0.2-1_ema_train"
    assert len(events(tmp_path / "guided").Scalars(tag)) == 1


def test_frechet_distance_is_logged_with_what_was_measured_and_kept_in_a_file(tmp_path):
    metric = GenerativeMetrics(LeNet(), every_n_steps=2, n=20, sampler=DDIM(2))
    fit(tmp_path, 3, [metric])
    tag = "fd_lenet/n20_ddim2_ema_train"
    logged = events(tmp_path).Scalars(tag)
    assert [e.step for e in logged] == [2, 3]
    assert [e.value for e in events(tmp_path).Scalars("fd")] == [e.value for e in logged]
    results = json.loads((tmp_path / "metrics.json").read_text())
    assert [r["step"] for r in results] == [2, 3]
    assert results[0]["value"] == pytest.approx(logged[0].value)
    assert results[0]["floor"] < results[0]["value"]
    assert results[0]["reference_count"] == 64
    assert len(results[0]["extractor_sha256"]) == 64


def test_metric_can_be_monitored_under_its_alias(tmp_path):
    seen = []

    class Look(SampleGrid):
        def run(self, trainer, module, step):
            seen.append(trainer.callback_metrics.get("fd"))

    fit(tmp_path, 2, [GenerativeMetrics(LeNet(), 1, 8, DDIM(2)), Look(every_n_steps=1)])
    assert all(value is not None for value in seen)


def test_metric_leaves_no_trace_in_the_checkpoint_or_the_module(tmp_path):
    module = fit(tmp_path, 1, [GenerativeMetrics(LeNet(), 1, 8, DDIM(2))])
    assert {name.split(".")[0] for name in module.state_dict()} == {"net", "ema"}


def test_missing_inception_weights_stop_the_run_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    stepped = []

    class Steps(LossByTimestep):
        def on_train_batch_end(self, *args):
            stepped.append(1)

    with pytest.raises(InputError, match="weights"):
        fit(
            tmp_path,
            1,
            [GenerativeMetrics(Inception(weights=str(tmp_path / "none.pth"))), Steps()],
        )
    assert not stepped


def appended(folder: Path, *results: dict, **options) -> list[tuple]:
    for result in results:
        append_result(folder, {"metric": "fd", "n": 10} | result, **options)
    kept = json.loads((folder / "metrics.json").read_text())
    return [(result["metric"], result["step"], result["value"]) for result in kept]


def test_results_of_steps_that_a_resumed_run_repeats_are_replaced(tmp_path):
    steps = [{"step": step, "value": 6.0 - step} for step in (1, 2, 3)]
    appended(tmp_path, *steps, fitting=True)
    kept = appended(
        tmp_path,
        {"step": 2, "value": 4.5},
        {"step": 1, "value": 1.0, "metric": "fid"},
        {"step": 1, "value": 7.0, "n": 20},
        fitting=True,
    )
    assert kept == [("fd", 1, 5.0), ("fd", 2, 4.5), ("fid", 1, 1.0), ("fd", 1, 7.0)]


def test_a_test_replaces_the_result_of_its_own_step_and_no_other(tmp_path):
    steps = [{"step": step, "value": 6.0 - step} for step in (1, 2, 3)]
    kept = appended(tmp_path, *steps, {"step": 2, "value": 4.5})
    assert kept == [("fd", 1, 5.0), ("fd", 3, 3.0), ("fd", 2, 4.5)]


def test_what_was_found_is_no_setting_that_keeps_a_result_apart(tmp_path):
    found = {"floor": 1.0, "floor_n": 5, "floor_reference_n": 7, "standard_error": 0.1}
    wobbled = {"floor": 1.0000001, "floor_n": 6, "floor_reference_n": 8, "standard_error": 0.2}
    first, second = ({"step": 2, "value": value} for value in (4.0, 4.1))
    kept = appended(tmp_path, first | found, second | wobbled, fitting=True)
    assert kept == [("fd", 2, 4.1)]


def test_reference_statistics_are_those_of_the_images_as_they_are(tmp_path):
    metric = GenerativeMetrics(LeNet(), 1, 8, DDIM(2), batch_size=7)
    fit(tmp_path, 1, [metric])
    images, _ = tiny_data().images("train")
    features = LeNet()(images).double().numpy()
    assert metric._reference.n == 64
    assert abs(metric._reference.mean.numpy() - features.mean(0)).max() < 1e-5


def test_few_samples_for_the_dimension_are_warned_about(tmp_path):
    with pytest.warns(UserWarning, match="mostly bias"):
        fit(tmp_path, 1, [GenerativeMetrics(LeNet(), 1, 8, DDIM(2))])


class CalledFid(LeNet):
    """Has the name of Inception's distance."""

    name = alias = "fid"


@pytest.mark.parametrize("every", [2, 5])
@pytest.mark.parametrize(("extractor", "alias"), [(LeNet(), "fd"), (CalledFid(), "fid")])
def test_the_final_metric_is_the_one_at_the_end_of_training(tmp_path, every, extractor, alias):
    metric = GenerativeMetrics(extractor, every, 8, DDIM(2))
    seen = []

    class Look(Callback):
        def on_fit_end(self, trainer, module):
            seen.append(float(trainer.callback_metrics[alias]))

    fit(tmp_path, 3, [metric, TrainingMonitor(), Look()])
    kept = json.loads((tmp_path / "metrics.json").read_text())
    assert kept[-1]["step"] == 3
    (final,) = events(tmp_path).Scalars(f"final/{alias}")
    assert final.value == pytest.approx(kept[-1]["value"])
    assert seen == pytest.approx([kept[-1]["value"]])
    assert len({one["value"] for one in kept}) == len(kept)


def results(folder: Path) -> dict[tuple[str, str], dict]:
    kept = json.loads((folder / "metrics.json").read_text())
    return {(result["metric"], result["weights"]): result for result in kept}


def test_all_metrics_of_both_weights_come_from_one_pass_each(tmp_path, monkeypatch):
    passes = []
    both = LeNet.both
    monkeypatch.setattr(
        LeNet, "both", lambda self, images: passes.append(len(images)) or both(self, images)
    )
    metric = GenerativeMetrics(
        LeNet(),
        every_n_steps=3,
        n=25,
        sampler=DDIM(2),
        ema="both",
        batch_size=10,
        metrics=["fd", "kid", "is", "pr"],
        kid_subset_size=20,
        cache=str(tmp_path / "cache"),
    )
    module = fit(tmp_path, 3, [metric])
    names = {"fd_lenet", "kd_lenet", "is_lenet"}
    names |= {f"{name}_lenet" for name in ("precision", "recall", "density", "coverage")}
    found = results(tmp_path)
    assert found.keys() == {(name, weights) for name in names for weights in ("ema", "raw")}
    assert passes == [10] * 6 + [4] + [10, 10, 5] * 2  # 64 real images, 25 samples twice
    assert found["kd_lenet", "raw"]["spread"] > 0  # of subsets of 20 out of 25
    assert found["fd_lenet", "raw"]["spread"] is None
    assert found["kd_lenet", "raw"]["resize"] == "bilinear-28"
    assert 1 <= found["is_lenet", "ema"]["value"] <= 10
    assert found["fd_lenet", "ema"]["value"] != found["fd_lenet", "raw"]["value"]
    logged = events(tmp_path)
    for alias, weights in (("fd", "ema"), ("fd_raw", "raw")):
        (event,) = logged.Scalars(alias)
        assert event.value == pytest.approx(found["fd_lenet", weights]["value"])
    # The same by hand.
    samples = module.sample(25, DDIM(2), seed=1, ema=False)
    reference, _ = tiny_data().images("train")
    x, y = LeNet()(to_uint8(samples)), LeNet()(reference)
    expected = frechet_distance(Statistics.of(x), Statistics.of(y))
    assert found["fd_lenet", "raw"]["value"] == pytest.approx(expected, rel=1e-4)
    some = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))[:25]
    for k, names in ((3, ("precision", "recall")), (5, ("density", "coverage"))):
        expected = manifold(x, y[some], k)
        for name in names:
            one = found[f"{name}_lenet", "raw"]
            assert one["value"] == pytest.approx(expected[name].value)
            assert (one["k"], one["real_images"]) == (k, 25)


def test_a_result_states_all_that_was_measured(tmp_path, capsys):
    torch.manual_seed(0)
    metric = GenerativeMetrics(
        LeNet(), 2, 45, DDIM(3), guidance=3.0, guidance_rescale=0.5, seed=9, ema=False
    )
    module = tiny_module(conditional=True, variance=FixedLarge())
    for parameter in [*module.net.parameters(), *module.ema.net.parameters()]:
        parameter.data.normal_(std=0.2)
    data = tiny_data(subset=80)
    trainer(tmp_path, 2, callbacks=[metric]).fit(module, data)
    (found,) = json.loads((tmp_path / "metrics.json").read_text())
    real, labels = data.images("train")
    samples = module.sample(45, DDIM(3), labels, Guidance(3.0, None, 0.5), seed=9, ema=False)
    x, y = LeNet()(to_uint8(samples)), LeNet()(real)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(0))
    statistics = Statistics.of(y)
    floor = frechet_distance(Statistics.of(y[order[:40]]), Statistics.of(y[order[40:]]))
    assert found.pop("value") == pytest.approx(
        frechet_distance(Statistics.of(x), statistics), rel=1e-3
    )
    assert found.pop("standard_error") == pytest.approx(
        frechet_spread(x, statistics, seed=9), rel=1e-2
    )
    assert found.pop("floor") == pytest.approx(floor, rel=1e-4)
    sampler = found.pop("sampler")
    assert sampler["class_path"].endswith("DDIM")
    assert (sampler["init_args"]["steps"], sampler["init_args"]["clip"]) == (3, [-1.0, 1.0])
    assert found.pop("variance")["class_path"].endswith("FixedLarge")
    assert found.pop("data") == {
        "class_path": "ddpm_lightning.data.digits.Digits",
        "init_args": {
            "image_size": None,
            "resize": "pad",
            "subset": 80,
            "held_out": None,
            "seed": None,
        },
    }
    assert found == {
        "step": 2,
        "metric": "fd_lenet",
        "spread": None,
        "n": 45,
        "steps": 3,
        "guidance": 3.0,
        "guidance_interval": None,
        "guidance_rescale": 0.5,
        "weights": "raw",
        "precision": "32-true",
        "seed": 9,
        "reference": "train",
        "reference_count": 80,
        "floor_n": 40,
        "floor_reference_n": 40,
        "extractor": {"class_path": "ddpm_lightning.metrics.lenet.LeNet", "init_args": {}},
        "extractor_sha256": LeNet().digest,
        "resize": "bilinear-28",
    }
    printed = capsys.readouterr().out
    assert "40 against the 40 others (fewer than the 45 samples" in printed


def test_the_limit_and_the_accuracy_come_from_the_same_pass(tmp_path):
    metric = GenerativeMetrics(LeNet(), 1, 130, DDIM(2), metrics=["fd", "fd_inf", "accuracy"])
    conditional_fit(tmp_path, metric)
    found = results(tmp_path)
    assert {name for name, _ in found} == {"fd_lenet", "fd_lenet_inf", "accuracy"}
    limit = found["fd_lenet_inf", "ema"]
    assert limit["sizes"] == [130, 65, 43]
    assert limit["value"] < found["fd_lenet", "ema"]["value"]
    assert limit["standard_error"] > 0
    assert limit["floor"] is limit["floor_n"] is None  # of 32 real images against 32
    share = found["accuracy", "ema"]
    assert share["standard_error"] == pytest.approx(
        (share["value"] * (1 - share["value"]) / 130) ** 0.5
    )
    assert share["floor"] > 0.8
    assert events(tmp_path).Scalars("fd_inf")[0].value == pytest.approx(limit["value"])


def test_a_sampler_that_does_not_start_from_noise_is_refused_before_training(tmp_path):
    sampler = DDIM(None, spacing=Levels([500, 200, 0]))
    started = []

    class Start(Callback):
        def on_train_start(self, *args):
            started.append(1)

    with pytest.raises(InputError, match="starts at level 500"):
        fit(tmp_path, 1, [GenerativeMetrics(LeNet(), 1, 8, sampler), Start()])
    assert not started


def test_a_second_run_finds_the_features_of_the_real_images(tmp_path, monkeypatch):
    values = []
    for run in ("one", "two"):
        metric = GenerativeMetrics(LeNet(), 1, 8, DDIM(2), cache=str(tmp_path / "cache"))
        fit(tmp_path / run, 1, [metric])
        values.append(results(tmp_path / run)["fd_lenet", "ema"])
        monkeypatch.setattr(Features, "save", None)
    assert values[0] == values[1]
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metrics": ["kid"], "n": 30, "kid_subset_size": 50}, "kid_subset_size: 30"),
        ({"metrics": ["kid"], "n": 70, "kid_subset_size": 65}, "64 real images.*: 64"),
        ({"metrics": ["is"], "n": 9}, "is needs 10 or more"),
        ({"metrics": ["fd_inf"], "n": 119}, "fd_inf needs 120 or more"),
        ({"metrics": ["accuracy"], "n": 9}, "the model takes no labels"),
        ({"metrics": ["is"], "extractor": Pixels()}, "Pixels gives no logits"),
        ({"metrics": ["pr"], "n": 5}, "need 6 or more"),
        ({"metrics": []}, "one or more"),
        ({"metrics": ["fd", "fd"]}, "each once"),
    ],
)
def test_metrics_that_cannot_be_are_refused_before_training(tmp_path, arguments, message):
    stepped = []

    class Steps(LossByTimestep):
        def on_train_batch_end(self, *args):
            stepped.append(1)

    metric = GenerativeMetrics(**{"extractor": LeNet(), "sampler": DDIM(2)} | arguments)
    with pytest.raises(InputError, match=message):
        fit(tmp_path, 1, [metric, Steps()])
    assert not stepped


def test_samples_are_shown_before_their_nearest_real_images(tmp_path):
    metrics = GenerativeMetrics(LeNet(), 1, 9, DDIM(2), neighbours=3, batch_size=4)
    module = fit(tmp_path, 1, [metrics])
    panel = Image.open(tmp_path / "samples" / "neighbours_ddim2_ema_step_00000001.png").convert(
        "L"
    )
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


def toy_module(**arguments) -> DiffusionModule:
    net = partial(MLP, width=16, depth=1)
    parts = {"net": net, "schedule": Cosine(), "parameterization": V()}
    return DiffusionModule(**{"shape": [2], "data_range": None} | parts | arguments)


def fit_points(
    folder: Path, steps: int, callbacks: list, data: Toy2D | None = None, **arguments
) -> None:
    torch.manual_seed(0)
    logger = TensorBoardLogger(folder, name="", version="")
    run = trainer(folder, steps, callbacks=callbacks, logger=logger)
    run.fit(toy_module(**arguments), data or Toy2D(n=200, global_batch_size=8))


def test_point_metrics_are_logged_and_kept_beside_real_against_real(tmp_path):
    fit_points(tmp_path, 3, [PointMetrics(2, n=50, sampler=DDIM(2), bandwidths=[0.5])])
    results = json.loads((tmp_path / "metrics.json").read_text())
    assert [(r["metric"], r["step"]) for r in results] == [
        ("swd", 2),
        ("mmd", 2),
        ("swd", 3),
        ("mmd", 3),
    ]
    logged = events(tmp_path)
    for name in ("swd", "mmd"):
        kept = [r["value"] for r in results if r["metric"] == name]
        for tag in (name, f"{name}/n50_ddim2_ema_val"):
            assert [e.value for e in logged.Scalars(tag)] == pytest.approx(kept)
    assert results[0]["projections"] == 256
    assert results[1]["bandwidths"] == [0.5]


def test_the_floor_is_the_mean_distance_of_two_real_sets(tmp_path):
    fit_points(tmp_path, 1, [PointMetrics(1, n=60, sampler=DDIM(2))])
    x, _ = Toy2D(n=200).samples("val")
    a, b, c = x[:180].double().split(60)  # the 20 left over are no set
    angles = np.linspace(0, np.pi, 500, endpoint=False)
    directions = np.stack([np.cos(angles), np.sin(angles)])
    pairs = [
        np.mean([wasserstein_distance(*rows) for rows in zip(*projected, strict=True)])
        for projected in (
            [(points.numpy() @ directions).T for points in pair]
            for pair in ((a, b), (a, c), (b, c))
        )
    ]
    swd, mmd_ = json.loads((tmp_path / "metrics.json").read_text())
    assert swd["floor"] == pytest.approx(np.mean(pairs), rel=0.05)
    assert mmd_["floor"] < 0.02 < mmd_["value"]


def test_samples_of_the_data_itself_reach_the_floor(tmp_path, monkeypatch):
    real, _ = Toy2D(n=5000, seed=9).samples("train")
    monkeypatch.setattr(
        DiffusionModule,
        "generate",
        lambda self, indices, *args, **options: type("S", (), {"x": real[indices]}),
    )
    data = Toy2D(n=5000, global_batch_size=8)
    fit_points(tmp_path, 1, [PointMetrics(1, n=1000, sampler=DDIM(2))], data)
    swd, _ = json.loads((tmp_path / "metrics.json").read_text())
    assert swd["value"] == pytest.approx(swd["floor"], rel=0.35)


def test_point_metrics_are_of_guided_samples_and_say_so(tmp_path):
    torch.manual_seed(0)
    settings = {"guidance": 3.0, "guidance_interval": (0.2, 1.0), "guidance_rescale": 0.5}
    metric = PointMetrics(5, n=40, sampler=DDIM(4), seed=7, ema=False, **settings)
    module = toy_module(num_classes=8, conditional=True)
    for parameter in [*module.net.parameters(), *module.ema.net.parameters()]:
        parameter.data.normal_(std=0.5)
    data = Toy2D("mixture", n=80, global_batch_size=8)
    logger = TensorBoardLogger(tmp_path, name="", version="")
    callbacks = [metric, TrainingMonitor()]
    trainer(tmp_path, 2, callbacks=callbacks, logger=logger).fit(module, data)
    swd, _ = json.loads((tmp_path / "metrics.json").read_text())
    real, labels = data.finished("val")
    guidance = Guidance(3.0, (0.2, 1.0), 0.5)
    x = module.sample(80, DDIM(4), labels, guidance, seed=7, ema=False)
    parts = zip(x.split(40), real.split(40), strict=True)
    value = np.mean([sliced_wasserstein(a, b) for a, b in parts])
    assert swd["value"] == pytest.approx(value, rel=1e-4)
    other = module.sample(80, DDIM(4), labels, seed=7, ema=False)
    assert abs(x - other).mean() > 0.05
    (final,) = events(tmp_path).Scalars("final/swd")
    assert final.value == pytest.approx(swd["value"])
    assert swd["data"]["class_path"].endswith("Toy2D")
    assert swd["data"]["init_args"]["n"] == 80
    assert swd["variance"] == module.variance.describe()
    assert swd["sampler"]["init_args"]["clip"] is None  # the data has no range
    stated = ("step", "n", "steps", "seed", "weights", "sets", "floor_n", "floor_reference_n")
    assert [swd[name] for name in stated] == [2, 40, 4, 7, "raw", 2, 40, 40]
    stated = ("guidance", "guidance_interval", "guidance_rescale")
    assert [swd[name] for name in stated] == [3.0, [0.2, 1.0], 0.5]


def test_metrics_of_points_state_the_range_that_samples_are_clipped_to(tmp_path):
    fit_points(tmp_path, 1, [PointMetrics(1, n=20, sampler=DDIM(2))], data_range=(-2.0, 2.0))
    swd, _ = json.loads((tmp_path / "metrics.json").read_text())
    assert swd["sampler"]["init_args"]["clip"] == [-2.0, 2.0]


def test_points_that_do_not_start_from_noise_are_refused_before_training(tmp_path):
    metric = PointMetrics(1, n=20, sampler=DDIM(None, spacing=Levels([500, 200, 0])))
    started = []

    class Start(Callback):
        def on_train_start(self, *args):
            started.append(1)

    with pytest.raises(InputError, match="starts at level 500"):
        fit_points(tmp_path, 1, [metric, Start()])
    assert not started


def test_five_sets_of_a_large_split_are_compared(tmp_path):
    fit_points(tmp_path, 1, [PointMetrics(1, n=4, sampler=DDIM(2))])
    results = json.loads((tmp_path / "metrics.json").read_text())
    assert [r["sets"] for r in results] == [5, 5]


def test_metrics_of_points_refuse_images_before_training(tmp_path):
    run = trainer(tmp_path, 1, callbacks=[PointMetrics(n=2)])
    with pytest.raises(InputError, match="GenerativeMetrics"):
        run.fit(tiny_module(), tiny_data())


def test_too_few_points_for_two_real_sets_are_refused_before_training(tmp_path):
    with pytest.raises(InputError, match="needs 400 points"):
        fit_points(tmp_path, 1, [PointMetrics(n=200, sampler=DDIM(2))])


@pytest.mark.parametrize("arguments", [{"n": 1}, {"projections": 0}, {"bandwidths": []}])
def test_impossible_point_metrics_are_refused(arguments):
    with pytest.raises(InputError, match="PointMetrics"):
        PointMetrics(**arguments)
