"""What a resumed run may change, what it may not, and what a stop must not lose."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    LambdaLR,
    OneCycleLR,
    StepLR,
)
from torch.utils.data import DataLoader

from ddpm_lightning import DiffusionModule
from ddpm_lightning.batch import Batch, Condition
from ddpm_lightning.callbacks import RunCheckpoint, SampleGrid
from ddpm_lightning.checkpoint import KEY, read_checkpoint
from ddpm_lightning.diffusion import Linear, LossSecondMoment
from ddpm_lightning.diffusion.samplers import DDIM
from ddpm_lightning.errors import InputError
from ddpm_lightning.run_folder import last_checkpoint
from tests.small import (
    Rates,
    TinyUNet,
    fit,
    image_spec,
    tiny_data,
    tiny_module,
    trainer,
)

Adam = torch.optim.Adam


# ------------------------------------------------------------------------ the optimizer


def halved(step: int) -> float:
    return 0.5**step


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"warmup_steps": 6}, [4 / 6, 5 / 6, 1, 1, 1]),
        # A schedule that counts from the first rate, which the checkpoint holds.
        ({"lr_schedule": partial(LambdaLR, lr_lambda=halved)}, [0.5**k for k in range(3, 8)]),
    ],
)
def test_a_new_learning_rate_holds_from_the_resume_on_at_its_place_in_the_schedule(
    tmp_path, settings, expected
):
    fit(tmp_path, 3, optimizer=partial(Adam, lr=1.0), **settings)
    rates, changed = Rates(), {"optimizer": partial(Adam, lr=0.1)} | settings
    fit(tmp_path, 6, rates, resume=True, **changed)
    fit(tmp_path, 8, rates, resume=True, **changed)  # nor does it shrink at each resume
    assert rates.seen == pytest.approx([0.1 * share for share in expected])


def test_other_settings_of_the_optimizer_hold_too_and_are_told(tmp_path, capsys):
    fit(tmp_path, 3, optimizer=partial(Adam, lr=1e-3, betas=(0.9, 0.999)))
    module = fit(tmp_path, 6, resume=True, optimizer=partial(Adam, lr=1e-3, betas=(0.8, 0.99)))
    group = module.trainer.optimizers[0].param_groups[0]
    assert (tuple(group["betas"]), group["lr"]) == ((0.8, 0.99), 1e-3)
    out = capsys.readouterr().out
    assert "from here on: optimizer betas [0.8, 0.99], was [0.9, 0.999]" in out
    assert "optimizer lr" not in out


SCHEDULES = {
    "one cycle": partial(OneCycleLR, max_lr=1e-2, total_steps=20),
    "cyclic": partial(CyclicLR, base_lr=1e-4, max_lr=1e-2, step_size_up=3),
    "warm restarts": partial(CosineAnnealingWarmRestarts, T_0=3, T_mult=2),
    "cosine": partial(CosineAnnealingLR, T_max=9, eta_min=1e-5),
}


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_a_schedule_goes_on_exactly_where_nothing_changes(tmp_path, schedule, capsys):
    seen = []
    for folder, stops in (("whole", [8]), ("parts", [3, 6, 8])):
        rates = Rates()
        for stop in stops:
            optimizer = {"optimizer": partial(Adam, lr=1e-3), "lr_schedule": schedule}
            fit(tmp_path / folder, stop, rates, resume=stop != stops[0], **optimizer)
        seen.append(rates.seen)
    assert seen[0] == seen[1]
    assert "from here on" not in capsys.readouterr().out


@pytest.mark.slow
def test_groups_of_parameters_keep_their_own_settings(tmp_path):
    class Grouped(DiffusionModule):
        def configure_optimizers(self):
            first, *rest = self.net.parameters()
            groups = [{"params": [first], "lr": 1e-5}, {"params": rest, "weight_decay": 0.1}]
            return torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.0)

    def run(steps, **more):
        module = Grouped(image_spec(), net=TinyUNet)
        trainer(tmp_path, steps).fit(module, tiny_data(), weights_only=True, **more)
        return module.trainer.optimizers[0].param_groups

    run(3)
    groups = run(6, ckpt_path=last_checkpoint(tmp_path))
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(1e-5, 0), (1e-3, 0.1)]


STEPS = partial(StepLR, step_size=5)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ({}, {"optimizer": torch.optim.SGD}, "optimizer Adam, whose state does not fit SGD"),
        ({}, {"lr_schedule": STEPS}, "lr_schedule none, whose state does not fit StepLR"),
        (
            {"lr_schedule": STEPS},
            {"lr_schedule": partial(CosineAnnealingLR, T_max=5)},
            "lr_schedule StepLR, whose state does not fit CosineAnnealingLR",
        ),
        (
            {"lr_schedule": partial(CosineAnnealingLR, T_max=5), "warmup_steps": 2},
            {"lr_schedule": partial(CosineAnnealingLR, T_max=9), "warmup_steps": 2},
            "T_max 5, not 9; resume with 5",
        ),
    ],
)
def test_an_optimizer_that_cannot_go_on_is_refused(tmp_path, before, after, message):
    optimizer = partial(Adam, lr=1e-3)
    fit(tmp_path, 3, **{"optimizer": optimizer} | before)
    with pytest.raises(InputError, match=message):
        fit(tmp_path, 6, resume=True, **{"optimizer": optimizer} | after)


# ---------------------------------------------------------------------- batches and data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"run": {"accumulate_grad_batches": 2}}, "3 micro-batches, no whole number of steps"),
        # It would show the same noise twice.
        ({"data": tiny_data(global_batch_size=4)}, "global_batch_size 8, not 4"),
    ],
)
def test_other_steps_than_the_checkpoints_are_refused(tmp_path, tiny_checkpoint, change, message):
    with pytest.raises(InputError, match=message):
        fit(tmp_path, 6, resume=tiny_checkpoint, **change)


@pytest.mark.slow
def test_a_save_after_the_short_last_step_of_an_epoch_is_resumed(tmp_path):
    # Lightning steps at the end of an epoch, too: 5 micro-batches make 3 steps of 2.
    pair = torch.arange(2)
    parts = [
        Batch(torch.zeros(2, 1, 8, 8), Condition(), pair, pair + 2 * (k % 2)) for k in range(5)
    ]
    loader = DataLoader(parts, batch_size=None)
    seen = []

    class Told(LossSecondMoment):
        def update(self, t, losses):
            seen.append(len(t))

    run = {"accumulate_grad_batches": 2}
    fit(tmp_path, 3, data=loader, run=run, timesteps=Told(history=1))
    module = fit(tmp_path, 6, resume=True, data=loader, run=run, timesteps=Told(history=1))
    assert module.trainer.global_step == 6
    assert seen == [4, 4, 2] * 2


def test_a_save_of_weights_alone_is_no_run_to_go_on_from(tmp_path):
    run, path = trainer(tmp_path, 1), tmp_path / "weights.ckpt"
    run.fit(tiny_module(), tiny_data())
    run.save_checkpoint(path, weights_only=True)
    with pytest.raises(InputError, match="weights only"):
        fit(tmp_path, 4, resume=path)


def test_other_data_is_told_and_another_place_of_it_is_not(tmp_path, tiny_checkpoint):
    with pytest.warns(UserWarning, match="other data: data.flip is True, was False"):
        fit(tmp_path, 4, resume=tiny_checkpoint, data=tiny_data(flip=True))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "resumed on other data")
        fit(tmp_path, 4, resume=tiny_checkpoint, data=tiny_data(root="elsewhere"))


@pytest.mark.slow
def test_levels_learned_from_losses_do_not_depend_on_accumulation(tmp_path):
    parts = {"net": partial(TinyUNet, dropout=0.0), "schedule": Linear(30)}
    parts |= {"timesteps": LossSecondMoment(history=1)}
    runs = [(tmp_path / str(k), {"accumulate_grad_batches": k}) for k in (1, 2)]
    one, two = (fit(root, 12, run=run, **parts).timesteps.state_dict() for root, run in runs)
    assert int(one["counts"].min()) > 0  # so that the losses have decided about levels
    assert torch.equal(one["counts"], two["counts"])
    torch.testing.assert_close(one["losses"], two["losses"], rtol=1e-3, atol=1e-5)


# ------------------------------------------------------------------------- after a stop


@contextmanager
def power_cut():
    with pytest.raises(RuntimeError, match="power cut"):
        yield


def grid(every_n_steps: int = 3) -> SampleGrid:
    return SampleGrid(every_n_steps, n=2, sampler=DDIM(2))


def drawn(folder: Path) -> list[int]:
    """The steps of which a run folder holds a grid."""
    return sorted(int(path.stem[-8:]) for path in (folder / "samples").glob("*_step_*.png"))


def test_a_resumed_run_draws_no_grid_of_a_saved_step_again(tmp_path):
    fit(tmp_path, 3, grid())
    for path in (tmp_path / "samples").glob("*.png"):
        path.unlink()
    fit(tmp_path, 4, grid(), resume=True)
    assert drawn(tmp_path) == [4]


@pytest.mark.slow
def test_every_save_is_kept_on_request_and_a_run_goes_back_to_an_earlier_one(tmp_path):
    keeping = {"callbacks": [RunCheckpoint(2, keep_all=True)]}
    fit(tmp_path, 4, run=keeping)
    folder = tmp_path / "checkpoints"
    steps = {path.name: read_checkpoint(path)["global_step"] for path in folder.glob("*.ckpt")}
    assert steps == {
        "step_00000002.ckpt": 2,
        "step_00000004.ckpt": 4,
        "previous.ckpt": 2,
        "last.ckpt": 4,
    }
    fit(tmp_path, 3, resume=folder / "step_00000002.ckpt")
    assert read_checkpoint(last_checkpoint(tmp_path))["global_step"] == 3


@pytest.mark.parametrize("part", ["hyper_parameters", "state_dict", "format", "net"])
def test_a_checkpoint_that_lacks_a_part_is_one_error(tmp_path, tiny_checkpoint, part):
    path = tmp_path / "part.ckpt"
    checkpoint = torch.load(tiny_checkpoint, weights_only=True)
    for holder in (checkpoint, checkpoint[KEY], checkpoint["hyper_parameters"]):
        holder.pop(part, None)
    torch.save(checkpoint, path)
    with pytest.raises(InputError, match=f"lacks {part}"):
        read_checkpoint(path)
