"""What a resumed run may change, what it may not, and what a stop must not lose."""

from __future__ import annotations

import json
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    LambdaLR,
    OneCycleLR,
    StepLR,
)
from torch.utils.data import DataLoader, TensorDataset

from ddpm_lightning import DiffusionModule
from ddpm_lightning.callbacks import GenerativeMetrics, RunCheckpoint, SampleGrid
from ddpm_lightning.checkpoint import KEY, read_checkpoint
from ddpm_lightning.cli import main
from ddpm_lightning.diffusion.samplers import DDIM
from ddpm_lightning.diffusion.schedules import Linear
from ddpm_lightning.diffusion.timesteps import LossSecondMoment
from ddpm_lightning.errors import InputError
from ddpm_lightning.metrics import LeNet
from ddpm_lightning.run_folder import last_checkpoint
from tests.small import TinyUNet, tiny_data, tiny_module, trainer

Adam = torch.optim.Adam


def fit(folder: Path, steps: int, resume: bool = False, data=None, run=None, **arguments):
    """Train a tiny module up to a step, from the folder's last save or from nothing."""
    torch.manual_seed(0)
    module = tiny_module(**arguments)
    one = trainer(folder, steps, **run or {})
    one.callbacks.sort(key=lambda callback: not isinstance(callback, RunCheckpoint))  # as the CLI
    path = last_checkpoint(folder) if resume else None
    one.fit(module, data or tiny_data(), ckpt_path=path, weights_only=True)
    return module


class Rates(Callback):
    """Keeps the learning rate of each optimizer step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.seen.append(optimizer.param_groups[0]["lr"])


class Stop(Callback):
    """Ends a run like a power cut: no callback hears of what comes after."""

    def __init__(self, hook: str, step: int) -> None:
        def stop(trainer, *_):
            if trainer.global_step == step and not trainer.sanity_checking:
                raise RuntimeError("power cut")

        setattr(self, hook, stop)


# ------------------------------------------------------------------------ the optimizer


def test_a_new_learning_rate_holds_from_the_resume_on_at_its_place_in_the_schedule(tmp_path):
    fit(tmp_path, 3, optimizer=partial(Adam, lr=1.0), warmup_steps=6)
    rates = Rates()
    run = {"callbacks": [rates, RunCheckpoint(3)]}
    fit(tmp_path, 8, True, run=run, optimizer=partial(Adam, lr=0.1), warmup_steps=6)
    assert rates.seen == pytest.approx([0.1 * 4 / 6, 0.1 * 5 / 6, 0.1, 0.1, 0.1])
    rates.seen.clear()
    fit(tmp_path, 10, True, run=run, optimizer=partial(Adam, lr=0.1), warmup_steps=6)
    assert rates.seen == pytest.approx([0.1, 0.1])


def test_other_settings_of_the_optimizer_hold_too_and_are_told(tmp_path, capsys):
    fit(tmp_path, 3, optimizer=partial(Adam, lr=1e-3, betas=(0.9, 0.999)))
    module = fit(tmp_path, 6, True, optimizer=partial(Adam, lr=1e-3, betas=(0.8, 0.99)))
    group = module.trainer.optimizers[0].param_groups[0]
    assert tuple(group["betas"]) == (0.8, 0.99)
    assert group["lr"] == 1e-3
    out = capsys.readouterr().out
    assert "from here on: optimizer betas [0.8, 0.99], was [0.9, 0.999]" in out
    assert "optimizer lr" not in out


def test_a_new_learning_rate_holds_under_a_schedule_that_counts_from_the_first(tmp_path):
    halving = partial(LambdaLR, lr_lambda=halved)
    fit(tmp_path, 3, optimizer=partial(Adam, lr=1.0), lr_schedule=halving)
    rates = Rates()
    run = {"callbacks": [rates, RunCheckpoint(3)]}
    fit(tmp_path, 6, True, run=run, optimizer=partial(Adam, lr=0.1), lr_schedule=halving)
    assert rates.seen == pytest.approx([0.1 * 0.5**step for step in (3, 4, 5)])


def halved(step: int) -> float:
    return 0.5**step


SCHEDULES = {
    "one cycle": partial(OneCycleLR, max_lr=1e-2, total_steps=20),
    "cyclic": partial(CyclicLR, base_lr=1e-4, max_lr=1e-2, step_size_up=3),
    "warm restarts": partial(CosineAnnealingWarmRestarts, T_0=3, T_mult=2),
    "cosine": partial(CosineAnnealingLR, T_max=9, eta_min=1e-5),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_goes_on_exactly_where_nothing_changes(tmp_path, name, capsys):
    rates = {}
    for folder, stops in (("whole", [8]), ("parts", [3, 6, 8])):
        seen = []
        for k, stop in enumerate(stops):
            callback = Rates()
            run = {"callbacks": [callback, RunCheckpoint(3)]}
            optimizer = {"optimizer": partial(Adam, lr=1e-3), "lr_schedule": SCHEDULES[name]}
            fit(tmp_path / folder, stop, k > 0, run=run, **optimizer)
            seen += callback.seen
        rates[folder] = seen
    assert rates["parts"] == rates["whole"]
    assert "from here on" not in capsys.readouterr().out


def test_groups_of_parameters_keep_their_own_settings(tmp_path):
    class Grouped(DiffusionModule):
        def configure_optimizers(self):
            first, *rest = self.net.parameters()
            groups = [{"params": [first], "lr": 1e-5}, {"params": rest, "weight_decay": 0.1}]
            return torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.0)

    def run(steps, **more):
        module = Grouped([1, 8, 8], net=TinyUNet)
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
        fit(tmp_path, 6, True, **{"optimizer": optimizer} | after)


# ---------------------------------------------------------------------- batches and data


def test_a_checkpoint_within_an_accumulated_step_is_refused(tmp_path):
    fit(tmp_path, 3)
    with pytest.raises(InputError, match="3 micro-batches, no whole number of steps"):
        fit(tmp_path, 6, True, run={"accumulate_grad_batches": 2})


def test_a_save_after_the_short_last_step_of_an_epoch_is_resumed(tmp_path):
    # Lightning steps at the end of an epoch, too: 5 micro-batches make 3 steps of 2.
    loader = DataLoader(TensorDataset(torch.zeros(10, 1, 8, 8), torch.zeros(10).long()), 2)
    module = tiny_module(timesteps=LossSecondMoment(history=1))
    seen = []
    module.timesteps.update = lambda t, losses: seen.append(len(t))
    run = trainer(tmp_path, 3, accumulate_grad_batches=2)
    run.fit(module, loader, weights_only=True)
    run = trainer(tmp_path, 6, accumulate_grad_batches=2)
    run.fit(tiny_module(), loader, ckpt_path=last_checkpoint(tmp_path), weights_only=True)
    assert run.global_step == 6
    assert seen == [4, 4, 2]


def test_a_save_of_weights_alone_is_no_run_to_go_on_from(tmp_path):
    run = trainer(tmp_path, 2)
    run.fit(tiny_module(), tiny_data())
    run.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    with pytest.raises(InputError, match="weights only"):
        trainer(tmp_path, 4).fit(
            tiny_module(), tiny_data(), ckpt_path=tmp_path / "weights.ckpt", weights_only=True
        )


def test_another_batch_size_is_refused_for_it_would_show_the_same_noise_twice(tmp_path):
    fit(tmp_path, 3)
    with pytest.raises(InputError, match="global_batch_size 8, not 4"):
        fit(tmp_path, 6, True, data=tiny_data(global_batch_size=4))


def test_other_data_is_told_and_another_place_of_it_is_not(tmp_path):
    fit(tmp_path, 3)
    with pytest.warns(UserWarning, match="other data: data.flip is True, was False"):
        fit(tmp_path, 6, True, data=tiny_data(flip=True))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "resumed on other data")
        fit(tmp_path, 9, True, data=tiny_data(flip=True, root="elsewhere"))


def test_levels_learned_from_losses_do_not_depend_on_accumulation(tmp_path):
    seen = []
    for accumulate in (1, 2):
        module = fit(
            tmp_path / str(accumulate),
            12,
            run={"accumulate_grad_batches": accumulate},
            net=partial(TinyUNet, dropout=0.0),
            schedule=Linear(30),
            timesteps=LossSecondMoment(history=1),
        )
        seen.append(module.timesteps.state_dict())
    assert int(seen[0]["counts"].min()) > 0  # so that the losses have decided about levels
    assert torch.equal(seen[0]["counts"], seen[1]["counts"])
    torch.testing.assert_close(seen[0]["losses"], seen[1]["losses"], rtol=1e-3, atol=1e-5)


# ------------------------------------------------------------------------- after a stop


class Validations(Callback):
    """Keeps the steps at which validation was finished."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_validation_end(self, trainer, *_):
        if not trainer.sanity_checking:
            self.steps.append(trainer.global_step)


VALIDATING = {"limit_val_batches": 2, "val_check_interval": 3, "check_val_every_n_epoch": None}


@pytest.mark.parametrize("hook", ["on_validation_batch_start", "on_train_batch_start"])
def test_a_validation_that_a_stop_cut_off_is_made_up_for_and_no_other(tmp_path, hook):
    first, second = Validations(), Validations()
    callbacks = [RunCheckpoint(3), first, Stop(hook, 3)]
    with pytest.raises(RuntimeError, match="power cut"):
        fit(tmp_path, 9, run=VALIDATING | {"callbacks": callbacks})
    fit(tmp_path, 9, True, run=VALIDATING | {"callbacks": [RunCheckpoint(3), second]})
    assert first.steps + second.steps == [3, 6, 9]


def test_a_grid_that_a_stop_cut_off_is_drawn_after_all(tmp_path):
    grid = SampleGrid(every_n_steps=3, n=2, sampler=DDIM(2))
    stop = Stop("on_train_batch_end", 3)
    with pytest.raises(RuntimeError, match="power cut"):
        fit(tmp_path, 6, run={"callbacks": [RunCheckpoint(3), stop, grid]})
    fit(
        tmp_path, 6, True, run={"callbacks": [RunCheckpoint(3), SampleGrid(3, 2, sampler=DDIM(2))]}
    )
    drawn = sorted(path.stem[-1] for path in (tmp_path / "samples").glob("*_step_*.png"))
    assert drawn == ["3", "6"]


def test_a_metric_that_a_stop_cut_off_is_measured_after_all(tmp_path):
    def metrics():
        return GenerativeMetrics(LeNet(), every_n_steps=3, n=8, sampler=DDIM(2), neighbours=0)

    stop = Stop("on_train_batch_end", 3)
    with pytest.raises(RuntimeError, match="power cut"):
        fit(tmp_path, 6, run={"callbacks": [RunCheckpoint(3), stop, metrics()]})
    module = fit(tmp_path, 6, True, run={"callbacks": [RunCheckpoint(3), metrics()]})
    results = json.loads((tmp_path / "metrics.json").read_text())
    assert [result["step"] for result in results] == [3, 6]
    assert float(module.trainer.callback_metrics["fd"]) == pytest.approx(results[-1]["value"])


def test_a_run_that_was_not_cut_off_draws_no_grid_again(tmp_path):
    def grid():
        return SampleGrid(every_n_steps=2, n=2, sampler=DDIM(2))

    fit(tmp_path, 4, run={"callbacks": [RunCheckpoint(4), grid()]})
    for path in (tmp_path / "samples").glob("*.png"):
        path.unlink()
    fit(tmp_path, 5, True, run={"callbacks": [RunCheckpoint(4), grid()]})
    drawn = sorted(path.stem[-1] for path in (tmp_path / "samples").glob("*_step_*.png"))
    assert drawn == ["5"]


def test_a_save_that_is_not_the_run_s_last_owes_nothing(tmp_path):
    stop = Stop("on_train_batch_end", 3)
    grid = SampleGrid(every_n_steps=3, n=2, sampler=DDIM(2))
    with pytest.raises(RuntimeError, match="power cut"):
        fit(tmp_path / "a", 6, run={"callbacks": [RunCheckpoint(3), stop, grid]})
    again = SampleGrid(every_n_steps=3, n=2, sampler=DDIM(2))
    module, run = tiny_module(), trainer(tmp_path / "b", 4, callbacks=[again])
    run.fit(module, tiny_data(), ckpt_path=last_checkpoint(tmp_path / "a"), weights_only=True)
    drawn = sorted(path.stem[-1] for path in (tmp_path / "b" / "samples").glob("*_step_*.png"))
    assert drawn == ["4"]


def test_a_grid_whose_interval_the_step_is_none_of_is_not_made_up_for(tmp_path):
    stop = Stop("on_train_batch_end", 3)
    with pytest.raises(RuntimeError, match="power cut"):
        fit(tmp_path, 6, run={"callbacks": [RunCheckpoint(3), stop]})
    grid = SampleGrid(every_n_steps=2, n=2, sampler=DDIM(2))
    fit(tmp_path, 4, True, run={"callbacks": [RunCheckpoint(3), grid]})
    drawn = sorted(path.stem[-1] for path in (tmp_path / "samples").glob("*_step_*.png"))
    assert drawn == ["4"]


def test_the_weights_do_not_depend_on_what_a_resumed_run_made_up_for(tmp_path):
    whole = fit(tmp_path / "whole", 9, run=VALIDATING)
    stop = Stop("on_validation_batch_start", 3)
    with pytest.raises(RuntimeError, match="power cut"):
        fit(tmp_path / "parts", 9, run=VALIDATING | {"callbacks": [RunCheckpoint(3), stop]})
    resumed = fit(tmp_path / "parts", 9, True, run=VALIDATING)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_stop_in_the_middle_of_a_save_leaves_the_save_before(tmp_path, monkeypatch):
    fit(tmp_path, 3)
    before = last_checkpoint(tmp_path).read_bytes()

    def cut(self, path, *_, **__):
        Path(path).write_bytes(before[:1000])
        raise RuntimeError("power cut")

    monkeypatch.setattr(Trainer, "save_checkpoint", cut)
    with pytest.raises(RuntimeError, match="power cut"):
        fit(tmp_path, 6, True)
    assert last_checkpoint(tmp_path).read_bytes() == before


def test_every_save_is_kept_on_request(tmp_path):
    fit(tmp_path, 6, run={"callbacks": [RunCheckpoint(3, keep_all=True)]})
    steps = {
        path.name: read_checkpoint(path)["global_step"]
        for path in (tmp_path / "checkpoints").glob("*.ckpt")
    }
    assert steps == {"step_00000003.ckpt": 3, "step_00000006.ckpt": 6, "last.ckpt": 6}


# ---------------------------------------------------------------------- the command line


def command(folder: Path, steps: int, *more: str) -> None:
    """Fit the digits with a tiny network."""
    config = Path(__file__).parent.parent / "configs" / "digits.yaml"
    callbacks = json.dumps([])
    main(
        [
            *("fit", f"--config={config}", f"--trainer.default_root_dir={folder}"),
            *("--model.net.channels=8", "--model.net.groups=4", "--model.net.blocks=1"),
            *("--data.global_batch_size=8", f"--trainer.max_steps={steps}"),
            *("--trainer.accelerator=cpu", "--trainer.limit_val_batches=0"),
            *(f"--trainer.callbacks={callbacks}", "--trainer.enable_progress_bar=false"),
            *("--checkpoint.every_n_steps=2", "--checkpoint.keep_all=true", *more),
        ]
    )


def test_a_run_goes_back_to_an_earlier_save_of_its_own(tmp_path):
    command(tmp_path, 4)
    command(tmp_path, 3, f"--ckpt_path={tmp_path}/checkpoints/step_00000002.ckpt")
    assert read_checkpoint(last_checkpoint(tmp_path))["global_step"] == 3


def test_the_command_s_learning_rate_is_the_one_that_trains(tmp_path, capsys):
    command(tmp_path, 2)
    command(tmp_path, 4, "--ckpt_path=last", "--model.optimizer.lr=1e-5")
    state = read_checkpoint(last_checkpoint(tmp_path))["optimizer_states"][0]
    assert state["param_groups"][0]["initial_lr"] == pytest.approx(1e-5)
    assert "optimizer lr 1e-05, was 0.002" in capsys.readouterr().out


def test_a_refused_optimizer_is_one_line_on_the_command_line(tmp_path, capsys):
    command(tmp_path, 2)
    with pytest.raises(SystemExit):
        command(tmp_path, 4, "--ckpt_path=last", "--model.optimizer=SGD")
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: the checkpoint was trained with optimizer Adam")


@pytest.mark.parametrize("part", ["hyper_parameters", "state_dict", "format", "net"])
def test_a_checkpoint_that_lacks_a_part_is_one_error(tmp_path, part):
    fit(tmp_path, 1)
    path = last_checkpoint(tmp_path)
    checkpoint = torch.load(path, weights_only=True)
    for holder in (checkpoint, checkpoint[KEY], checkpoint["hyper_parameters"]):
        holder.pop(part, None)
    torch.save(checkpoint, path)
    with pytest.raises(InputError, match=f"lacks {part}"):
        read_checkpoint(path)
