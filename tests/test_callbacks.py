"""What the callbacks of a run draw, log and refuse."""

from __future__ import annotations

import math
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from PIL import Image, ImageSequence

from ddpm_lightning.callbacks import LossByTimestep, SampleGrid, TrainingMonitor
from ddpm_lightning.callbacks.loss_by_timestep import draw_losses, in_ranges
from ddpm_lightning.callbacks.sharing import share
from ddpm_lightning.diffusion import Cosine, Guidance
from ddpm_lightning.diffusion.samplers import DDIM, Levels
from ddpm_lightning.errors import InputError
from ddpm_lightning.images import write_gif
from ddpm_lightning.plots.strips import captioned
from tests.small import (
    assert_same_weights,
    conditional_fit,
    events,
    frames_in,
    logged_fit,
    tiny_module,
)

# ------------------------------------------------------------------------------ SampleGrid


@pytest.mark.slow
@pytest.mark.parametrize("micro_batches", [1, 4])
def test_a_grid_is_drawn_every_n_optimizer_steps_and_at_the_end(tmp_path, micro_batches):
    grid = SampleGrid(every_n_steps=2, n=6, columns=3, sampler=DDIM(2))
    logged_fit(tmp_path, 5, grid, accumulate_grad_batches=micro_batches)
    files = sorted((tmp_path / "samples").iterdir())
    assert [path.name for path in files] == [f"ddim2_ema_step_0000000{k}.png" for k in (2, 4, 5)]
    assert [e.step for e in events(tmp_path).Images("samples/ddim2_ema")] == [2, 4, 5]
    # 8×8 pixels are enlarged eight times; 2 rows of 3, a border of 2, a caption of 20 above.
    assert Image.open(files[0]).size == (3 * (64 + 2) + 2, 20 + 2 * (64 + 2) + 2)


def test_frames_are_a_strip_and_a_gif_that_ends_with_the_grid_and_moves_in_tensorboard(tmp_path):
    logged_fit(tmp_path, 1, SampleGrid(n=6, columns=3, sampler=DDIM(8), frames=4, fps=5))
    folder = tmp_path / "samples"
    gif = Image.open(folder / "ddim8_ema_step_00000001.gif")
    durations = [frame.info["duration"] for frame in ImageSequence.Iterator(gif)]
    assert durations == [200, 200, 200, 1000]
    png = Image.open(folder / "ddim8_ema_step_00000001.png").convert("L")
    assert np.array_equal(gif.convert("L"), png)  # now at its last frame
    assert (folder / "ddim8_ema_denoising_step_00000001.png").exists()
    (event,) = events(tmp_path).Images("samples/ddim8_ema_animated")
    moving = BytesIO(event.encoded_image_string)
    assert (event.step, frames_in(moving)) == (1, 4)
    assert (event.width, event.height) == Image.open(moving).size


def test_the_slowest_the_fastest_and_the_shortest_animation_are_written(tmp_path):
    # The largest seed works, too.
    logged_fit(tmp_path, 1, SampleGrid(n=1, sampler=DDIM(3), frames=2, fps=0.002, seed=2**64 - 1))
    gif = Image.open(tmp_path / "samples" / "ddim3_ema_step_00000001.gif")
    assert gif.info["duration"] == 500_000
    frames = list(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 1, 8, 8))
    write_gif(tmp_path / "fast.gif", frames, fps=50)
    assert Image.open(tmp_path / "fast.gif").info["duration"] == 20
    write_gif(tmp_path / "one.gif", frames[:1], fps=10)
    assert frames_in(tmp_path / "one.gif") == 1


@pytest.mark.slow
def test_drawing_leaves_training_as_it_was(tmp_path):
    grid = SampleGrid(every_n_steps=1, n=2, sampler=DDIM(2, eta=1.0))
    assert_same_weights(logged_fit(tmp_path / "a", 4, grid), logged_fit(tmp_path / "b", 4))


def test_a_grid_has_a_class_a_row_and_keeps_no_labels_for_the_next_model(tmp_path, requests):
    grid = SampleGrid(n=6, columns=3, sampler=DDIM(2))
    conditional_fit(tmp_path / "a", grid)
    assert requests[0][0].labels[:9] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    logged_fit(tmp_path / "b", 1, grid)  # of a model without labels
    assert requests[1][0].labels is None


@pytest.mark.slow
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
def test_captions_name_step_sampler_weights_and_classes(
    settings, rows, columns, tmp_path, monkeypatch
):
    captions = []

    def record(picture, columns=(), rows=(), title=""):
        captions.append((title, list(rows), list(columns)))
        return captioned(picture, columns, rows, title)

    monkeypatch.setattr("ddpm_lightning.callbacks.sample_grid.captioned", record)
    conditional_fit(tmp_path, SampleGrid(**settings, sampler=DDIM(2), guidance=1.5))
    assert captions == [("step 1 · ddim2 · guidance 1.5 · ema", rows, columns)]
    (file,) = (tmp_path / "samples").glob("*.png")
    (event,) = events(tmp_path).Images("samples/ddim2_guidance1.5_ema")
    assert Image.open(file).size == (event.width, event.height)


def test_a_grid_is_drawn_under_the_guidance_in_its_name(tmp_path, requests):
    guidance = Guidance(4.0, (0.5, 1), 0.7)
    conditional_fit(tmp_path, SampleGrid(n=3, columns=3, sampler=DDIM(3), guidance=guidance))
    assert requests[0][0].guidance == guidance
    name = "ddim3_guidance4_interval0.5-1_rescale0.7_ema_step_00000001.png"
    assert (tmp_path / "samples" / name).exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": 0}, "SampleGrid.*n=0"),
        ({"every_n_steps": 0}, "SampleGrid.*at least 1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"frames": -2}, "a trajectory has 2 or more"),
        ({"frames": 1}, "a trajectory has 2 or more"),
        ({"fps": 60}, "0.002 to 50"),
        ({"fps": math.nan}, "0.002 to 50"),
        ({"seed": -1}, "give 0 or more, below"),
    ],
)
def test_settings_of_a_grid_that_cannot_work_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        SampleGrid(**settings)


@pytest.mark.parametrize(
    ("grids", "message"),
    [
        ([{"labels": [1]}], "the model has none"),
        ([{"guidance": 2.0}], "needs a model with labels"),
        ([{"sampler": DDIM(None, spacing=Levels([500, 0]))}], "starts at level 500"),
        ([{"sampler": DDIM(2000)}], "takes 1 to 1000"),
    ],
)
def test_what_does_not_suit_the_model_is_refused_before_training(tmp_path, grids, message):
    class Start(Callback):
        def on_train_start(self, *args):
            pytest.fail("training began")

    with pytest.raises(InputError, match=message):
        logged_fit(tmp_path, 1, Start(), *(SampleGrid(**settings) for settings in grids))


# ---------------------------------------------------------------------- LossByTimestep


def test_the_loss_by_timestep_is_the_mean_over_a_range_of_levels():
    logged = {}

    run = SimpleNamespace(
        strategy=SimpleNamespace(reduce=lambda tensor, reduce_op: tensor),
        loggers=[SimpleNamespace(log_metrics=lambda metrics, step: logged.update(metrics))],
        sanity_checking=False,
        global_step=7,
    )
    outputs = {
        "t": torch.tensor([1, 250, 251, 1000]),
        "loss": torch.tensor([1.0, 3.0, 5.0, 7.0]),
        "loss_ema": torch.ones(4),
    }
    callback = LossByTimestep(bins=4, curve=0)
    callback.on_validation_batch_end(run, tiny_module(), outputs)
    callback.on_validation_epoch_end(run, tiny_module())
    raw = {k: v for k, v in logged.items() if "ema" not in k}
    assert raw == {"val/loss_q1": 2.0, "val/loss_q2": 5.0, "val/loss_q4": 7.0}


@pytest.mark.slow
def test_losses_by_timestep_reach_tensorboard_and_the_run_folder(tmp_path):
    logged_fit(tmp_path, 8, LossByTimestep(), log_every_n_steps=4, limit_val_batches=None)
    tags = events(tmp_path).Tags()
    for name in ("train/loss", "val/loss", "val/loss_ema"):
        assert {f"{name}_q{i}" for i in range(1, 5)} <= set(tags["scalars"])
    assert "val/loss_by_timestep" in tags["images"]
    assert Image.open(tmp_path / "loss_by_timestep.png").size == (900, 350)


def test_the_picture_of_losses_averages_each_range_of_levels():
    by_level = torch.stack([torch.arange(1.0, 11.0), torch.ones(10)])
    by_level[:, 0] = 0  # level 1 was never drawn
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


# --------------------------------------------------------------------- TrainingMonitor


def test_the_monitor_logs_the_gradient_norm_before_clipping(tmp_path):
    norms = []

    class Norms(Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            flat = [p.grad.double().flatten() for p in module.net.parameters()]
            norms.append(float(torch.cat(flat).norm()))

    clipping = {"log_every_n_steps": 1, "gradient_clip_val": 1e-3}
    logged_fit(tmp_path, 3, Norms(), TrainingMonitor(), **clipping)
    logged = [event.value for event in events(tmp_path).Scalars("train/grad_norm")]
    np.testing.assert_allclose(logged, norms, rtol=1e-5)
    assert min(norms) > 1e-2  # far above what clipping leaves


def test_the_monitor_logs_the_decay_that_the_average_moved_by(tmp_path):
    logged_fit(tmp_path, 3, TrainingMonitor(), log_every_n_steps=1)
    logged = [event.value for event in events(tmp_path).Scalars("train/ema_decay")]
    np.testing.assert_allclose(logged, [0.1, 2 / 11, 3 / 12], rtol=1e-6)


def test_the_final_loss_stands_beside_the_hyper_parameters(tmp_path):
    logged_fit(tmp_path, 8, TrainingMonitor(), limit_val_batches=None)
    logged = events(tmp_path)
    assert "final/val/loss_ema" in logged.Tags()["scalars"]
    plugin = logged.summary_metadata["_hparams_/experiment"].plugin_data
    assert plugin.plugin_name == "hparams"


# ------------------------------------------------------------------- shares of processes


@pytest.mark.parametrize(("n", "world"), [(7, 2), (50_000, 7), (3, 4)])
def test_shares_cover_every_index_once_and_are_equally_long(n, world):
    ranks = [SimpleNamespace(world_size=world, global_rank=rank) for rank in range(world)]
    shares = [share(n, rank) for rank in ranks]
    assert len({len(indices) for indices in shares}) == 1
    covered = torch.cat(shares)
    assert sorted(covered[covered < n].tolist()) == list(range(n))
