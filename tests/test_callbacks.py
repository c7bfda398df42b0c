"""What callbacks write, log and refuse."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image, ImageSequence
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ddpm_lightning import DiffusionModule
from ddpm_lightning.callbacks import GenerativeMetrics, LossByTimestep, SampleGrid, TrainingMonitor
from ddpm_lightning.callbacks.loss_by_timestep import draw_losses, in_ranges
from ddpm_lightning.callbacks.results import append_result
from ddpm_lightning.callbacks.sharing import share
from ddpm_lightning.diffusion.denoiser import Guidance
from ddpm_lightning.diffusion.samplers import DDIM, Levels
from ddpm_lightning.diffusion.schedules import Cosine
from ddpm_lightning.diffusion.variances import FixedLarge
from ddpm_lightning.ema import EMA
from ddpm_lightning.errors import InputError
from ddpm_lightning.images import to_uint8, write_gif
from ddpm_lightning.metrics import (
    Features,
    Inception,
    LeNet,
    Pixels,
    Statistics,
    frechet_distance,
    frechet_spread,
    manifold,
)
from ddpm_lightning.plots.strips import captioned
from ddpm_lightning.randomness import IndexedNoise
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


def test_grid_is_drawn_every_n_steps_and_at_the_end_as_png_and_in_tensorboard(tmp_path):
    fit(tmp_path, 5, [SampleGrid(every_n_steps=2, n=6, columns=3, sampler=DDIM(2))])
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert names == [f"ddim2_ema_step_0000000{step}.png" for step in (2, 4, 5)]
    assert [e.step for e in events(tmp_path).Images("samples/ddim2_ema")] == [2, 4, 5]


def test_small_images_are_enlarged_by_a_whole_factor(tmp_path):
    fit(tmp_path, 1, [SampleGrid(n=6, columns=3, sampler=DDIM(2))])
    picture = Image.open(tmp_path / "samples" / "ddim2_ema_step_00000001.png")
    assert picture.size == (3 * (64 + 2) + 2, 20 + 2 * (64 + 2) + 2)  # a caption above


def test_accumulation_draws_one_grid_an_optimizer_step(tmp_path):
    fit(
        tmp_path,
        2,
        [SampleGrid(every_n_steps=1, n=2, sampler=DDIM(2))],
        accumulate_grad_batches=4,
    )
    assert [e.step for e in events(tmp_path).Images("samples/ddim2_ema")] == [1, 2]


def test_trajectory_is_a_strip_and_a_gif_that_ends_with_the_grid(tmp_path):
    fit(tmp_path, 1, [SampleGrid(n=6, columns=3, sampler=DDIM(8), frames=4, fps=5)])
    folder = tmp_path / "samples"
    gif = Image.open(folder / "ddim8_ema_step_00000001.gif")
    assert gif.n_frames == 4
    durations = [frame.info["duration"] for frame in ImageSequence.Iterator(gif)]
    assert durations == [200, 200, 200, 1000]
    gif.seek(3)
    png = Image.open(folder / "ddim8_ema_step_00000001.png").convert("L")
    assert list(gif.convert("L").getdata()) == list(png.getdata())
    assert (folder / "ddim8_ema_denoising_step_00000001.png").exists()


def test_the_trajectory_moves_in_tensorboard(tmp_path):
    fit(tmp_path, 1, [SampleGrid(n=6, columns=3, sampler=DDIM(8), frames=4)])
    (event,) = events(tmp_path).Images("samples/ddim8_ema_animated")
    gif = Image.open(BytesIO(event.encoded_image_string))
    assert (event.step, gif.format, gif.n_frames) == (1, "GIF", 4)
    assert (event.width, event.height) == gif.size


def test_gif_of_one_frame_is_written(tmp_path):
    write_gif(tmp_path / "one.gif", [torch.zeros(1, 8, 8, dtype=torch.uint8)], fps=10)
    assert Image.open(tmp_path / "one.gif").n_frames == 1


def test_sampling_leaves_training_as_it_was(tmp_path):
    with_grid = fit(
        tmp_path / "a", 4, [SampleGrid(every_n_steps=1, n=2, sampler=DDIM(2, eta=1.0))]
    )
    without = fit(tmp_path / "b", 4, [])
    for name, value in without.state_dict().items():
        assert torch.equal(value, with_grid.state_dict()[name]), name


def test_wrong_labels_are_refused_before_training(tmp_path):
    with pytest.raises(InputError, match="the model has none"):
        fit(tmp_path, 1, [SampleGrid(labels=[1])])


def conditional_fit(folder: Path, callback) -> None:
    """Fit a conditional model whose random weights make labels and guidance matter."""
    torch.manual_seed(0)
    module = tiny_module(conditional=True)
    for parameter in [*module.net.parameters(), *module.ema.net.parameters()]:
        parameter.data.normal_(std=0.2)
    module.optimizer = partial(torch.optim.SGD, lr=0.0)
    logger = TensorBoardLogger(folder, name="", version="")
    trainer(folder, 1, callbacks=[callback], logger=logger).fit(module, tiny_data())


@pytest.fixture
def asked(monkeypatch) -> list[tuple]:
    """Labels and guidance of every sampling."""
    seen, generate = [], DiffusionModule.generate

    def record(self, indices, sampler, labels, guidance, *args, **kwargs):
        seen.append((labels, guidance))
        return generate(self, indices, sampler, labels, guidance, *args, **kwargs)

    monkeypatch.setattr(DiffusionModule, "generate", record)
    return seen


def test_a_grid_shows_a_class_a_row(tmp_path, asked):
    conditional_fit(tmp_path, SampleGrid(n=6, columns=3, sampler=DDIM(2)))
    assert asked[0][0][:9] == [0, 0, 0, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize(
    ("settings", "rows", "columns"),
    [
        ({"n": 6, "columns": 3}, ["0", "1"], []),
        ({"n": 6, "columns": 3, "labels": [5]}, ["5", "5"], []),
        ({"n": 6, "columns": 3, "labels": [7, 8, -1]}, [], ["7", "8", "none"]),
        ({"n": 6, "columns": 3, "labels": [7, 8]}, [], []),
        ({"n": 2, "columns": 4, "labels": [7, 8]}, [], ["7", "8"]),
    ],
)
def test_a_grid_names_step_sampler_weights_and_classes(
    settings, rows, columns, tmp_path, monkeypatch
):
    said = []

    def record(picture, columns=(), rows=(), title=""):
        said.append((title, list(rows), list(columns)))
        return captioned(picture, columns, rows, title)

    monkeypatch.setattr("ddpm_lightning.callbacks.sample_grid.captioned", record)
    conditional_fit(tmp_path, SampleGrid(**settings, sampler=DDIM(2), guidance=1.5))
    assert said == [("step 1 · ddim2 · guidance 1.5 · ema", rows, columns)]
    (file,) = (tmp_path / "samples").glob("*.png")
    (event,) = events(tmp_path).Images("samples/ddim2_guidance1.5_ema")
    assert Image.open(file).size == (event.width, event.height)


def test_captions_leave_the_picture_as_it_is():
    for channels in (1, 3, 4):
        picture = torch.randint(256, (channels, 40, 60), dtype=torch.uint8)
        drawn = captioned(picture, ["a", "b"], ["c"], "a title that takes two lines")
        assert drawn.shape[0] == max(3, channels)
        assert drawn.shape[2] == 34 + 60
        assert torch.equal(drawn[:, -40:, 34:], picture.expand(drawn.shape[0], -1, -1))
        assert bool((drawn[:, :-40] < 255).any())
        assert channels < 4 or bool((drawn[3, :-40] == 255).all())


def test_a_grid_of_a_second_model_has_that_models_labels(tmp_path, asked):
    grid = SampleGrid(n=4, columns=2, sampler=DDIM(2))
    conditional_fit(tmp_path / "a", grid)
    assert grid.labels is None
    fit(tmp_path / "b", 1, [grid])
    assert [labels is None for labels, _ in asked] == [False, True]


def test_a_grid_is_drawn_under_the_guidance_in_its_name(tmp_path, asked):
    settings = {"guidance": 4.0, "guidance_interval": (0.5, 1), "guidance_rescale": 0.7}
    conditional_fit(tmp_path, SampleGrid(n=3, columns=3, sampler=DDIM(3), **settings))
    assert asked[0][1] == Guidance(4.0, (0.5, 1), 0.7)
    name = "ddim3_guidance4_interval0.5-1_rescale0.7_ema_step_00000001.png"
    assert (tmp_path / "samples" / name).exists()


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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": 0}, "each is at least 1"),
        ({"frames": -2}, "a trajectory has 2 or more"),
        ({"frames": 1}, "a trajectory has 2 or more"),
        ({"fps": 0.001}, "0.002 to 50"),
        ({"fps": 60}, "0.002 to 50"),
        ({"fps": math.nan}, "0.002 to 50"),
        ({"seed": -1}, "not negative and below"),
        ({"seed": 2**64}, "not negative and below"),
        ({"name": "../../evil"}, "name a folder inside the run folder"),
        ({"name": "/evil"}, "name a folder inside the run folder"),
        ({"name": ""}, "name a folder inside the run folder"),
    ],
)
def test_settings_of_a_grid_that_cannot_work_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        SampleGrid(**settings)


def test_the_slowest_and_the_fastest_animation_and_the_largest_seed_work(tmp_path):
    grid = SampleGrid(n=1, sampler=DDIM(3), frames=2, fps=0.002, seed=2**64 - 1)
    fit(tmp_path, 1, [grid])
    gif = Image.open(tmp_path / "samples" / "ddim3_ema_step_00000001.gif")
    assert gif.info["duration"] == 500_000
    frames = list(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 1, 8, 8))
    write_gif(tmp_path / "fast.gif", frames, fps=50)
    assert Image.open(tmp_path / "fast.gif").info["duration"] == 20


def test_a_spacing_that_does_not_start_in_noise_is_refused_before_training(tmp_path):
    with pytest.raises(InputError, match="starts at level 500"):
        fit(tmp_path, 1, [SampleGrid(sampler=DDIM(None, spacing=Levels([500, 0])))])


def test_more_steps_than_levels_are_refused_before_training(tmp_path):
    with pytest.raises(InputError, match="takes 1 to 1000"):
        fit(tmp_path, 1, [SampleGrid(sampler=DDIM(2000))])


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


def test_loss_by_timestep_is_the_mean_over_its_range_of_levels(tmp_path):
    callback = LossByTimestep(bins=4, curve=0)
    logged = {}

    class Run:
        class strategy:
            reduce = staticmethod(lambda tensor, reduce_op: tensor)

        sanity_checking = False
        global_step = 7
        loggers = (
            type("L", (), {"log_metrics": staticmethod(lambda m, step: logged.update(m))})(),
        )

    t = torch.tensor([1, 250, 251, 1000])
    outputs = {
        "t": t,
        "loss": torch.tensor([1.0, 3.0, 5.0, 7.0]),
        "loss_ema": torch.tensor([1.0, 1.0, 1.0, 1.0]),
    }
    module = tiny_module()
    callback.on_validation_batch_end(Run, module, outputs)
    callback.on_validation_epoch_end(Run, module)
    raw = {k: v for k, v in logged.items() if "ema" not in k}
    assert raw == {"val/loss_q1": 2.0, "val/loss_q2": 5.0, "val/loss_q4": 7.0}


def test_training_and_validation_losses_by_timestep_reach_tensorboard(tmp_path):
    fit(tmp_path, 8, [LossByTimestep()], log_every_n_steps=4, limit_val_batches=None)
    tags = events(tmp_path).Tags()["scalars"]
    assert {f"train/loss_q{i}" for i in range(1, 5)} <= set(tags)
    assert {f"val/loss_ema_q{i}" for i in range(1, 5)} <= set(tags)


@pytest.mark.parametrize(("n", "world"), [(7, 2), (50_000, 7), (3, 4)])
def test_shares_cover_every_index_once_and_are_equally_long(n, world):
    ranks = [type("T", (), {"world_size": world, "global_rank": rank}) for rank in range(world)]
    shares = [share(n, rank) for rank in ranks]
    assert len({len(indices) for indices in shares}) == 1
    covered = torch.cat(shares)
    assert sorted(covered[covered < n].tolist()) == list(range(n))


@pytest.mark.parametrize(
    "arguments",
    [{"n": 0}, {"columns": 0}, {"batch_size": 0}, {"fps": 0}, {"frames": 1}, {"every_n_steps": 0}],
)
def test_impossible_grids_are_refused_at_construction(arguments):
    with pytest.raises(InputError, match="SampleGrid"):
        SampleGrid(**arguments)


def test_guidance_without_labels_is_refused_before_training(tmp_path):
    with pytest.raises(InputError, match="needs a model with labels"):
        fit(tmp_path, 1, [SampleGrid(guidance=2.0)])


def test_two_grids_need_two_names(tmp_path):
    with pytest.raises(InputError, match="two SampleGrids"):
        fit(tmp_path, 1, [SampleGrid(), SampleGrid()])


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


def test_the_picture_of_losses_averages_each_range_of_levels():
    by_level = torch.stack([torch.arange(1.0, 11.0), torch.ones(10)])
    by_level[1, 0] = 0  # level 1 was never drawn
    by_level[0, 0] = 0
    np.testing.assert_allclose(in_ranges(by_level, 5), [2.0, 3.5, 5.5, 7.5, 9.5])
    assert math.isnan(in_ranges(by_level, 10)[0])


def test_losses_are_drawn_over_t_and_log_snr():
    schedule = Cosine(T=100)
    figure = draw_losses({"raw": [1.0, 2.0], "ema": [3.0, 4.0]}, schedule)
    over_t, over_snr = figure.axes
    assert [line.get_label() for line in over_t.lines] == ["raw", "ema"]
    np.testing.assert_allclose(over_t.lines[0].get_xdata(), [0.25, 0.75])
    alpha_bar = schedule.alpha.numpy()[[25, 75]] ** 2
    expected = np.log(alpha_bar / (1 - alpha_bar))
    np.testing.assert_allclose(over_snr.lines[1].get_xdata(), expected)
    np.testing.assert_allclose(over_snr.lines[1].get_ydata(), [3.0, 4.0])


def test_validation_draws_the_losses_for_the_run_folder_and_tensorboard(tmp_path):
    fit(tmp_path, 8, [LossByTimestep()], limit_val_batches=None)
    assert Image.open(tmp_path / "loss_by_timestep.png").size == (900, 350)
    assert "val/loss_by_timestep" in events(tmp_path).Tags()["images"]


def test_the_monitor_logs_the_gradient_norm_before_clipping(tmp_path):
    norms = []

    class Norms(Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            flat = [p.grad.double().flatten() for p in module.net.parameters()]
            norms.append(float(torch.cat(flat).norm()))

    monitor = TrainingMonitor()
    fit(tmp_path, 3, [Norms(), monitor], log_every_n_steps=1, gradient_clip_val=1e-3)
    logged = [event.value for event in events(tmp_path).Scalars("train/grad_norm")]
    np.testing.assert_allclose(logged, norms, rtol=1e-5)
    assert min(norms) > 1e-2  # far above what clipping leaves


def test_the_monitor_logs_the_decay_that_the_average_moved_by(tmp_path):
    applied, update = [], EMA.update

    def recorded(self, net, step):
        applied.append(self.decay_at(step))
        update(self, net, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EMA, "update", recorded)
        fit(tmp_path, 3, [TrainingMonitor()], log_every_n_steps=1)
    logged = [event.value for event in events(tmp_path).Scalars("train/ema_decay")]
    np.testing.assert_allclose(logged, [0.1, 2 / 11, 3 / 12], rtol=1e-6)
    np.testing.assert_allclose(logged, applied, rtol=1e-6)


def test_the_final_metric_stands_beside_the_hyper_parameters(tmp_path):
    fit(tmp_path, 8, [TrainingMonitor()], limit_val_batches=None)
    assert "final/val/loss_ema" in events(tmp_path).Tags()["scalars"]
    plugin = events(tmp_path).summary_metadata["_hparams_/experiment"].plugin_data
    assert plugin.plugin_name == "hparams"


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


def test_noise_is_bit_equal_whatever_the_processes():
    whole = IndexedNoise(3, torch.arange(12))(0, (1, 4, 4))
    for world in (2, 3):
        ranks = [type("T", (), {"world_size": world, "global_rank": k}) for k in range(world)]
        parts = [IndexedNoise(3, share(12, rank))(0, (1, 4, 4)) for rank in ranks]
        assert torch.equal(torch.stack(parts, dim=1).flatten(0, 1), whole)


@pytest.mark.slow
def test_noise_is_bit_equal_in_another_process():
    program = (
        "import torch, hashlib; from ddpm_lightning.randomness import IndexedNoise; "
        "noise = IndexedNoise(3, torch.arange(1, 12, 2))(0, (1, 4, 4)); "
        "print(hashlib.sha256(noise.numpy().tobytes()).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    ours = IndexedNoise(3, torch.arange(12))(0, (1, 4, 4))[1::2].contiguous()
    assert done.stdout.strip() == hashlib.sha256(ours.numpy().tobytes()).hexdigest()


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
