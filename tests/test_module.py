"""The LightningModule: noising, loss, EMA, resume and checkpoints."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from ddpm_lightning.diffusion.objectives import Hybrid, NoisedBatch
from lightning.pytorch import Callback
from torch import nn

from ddpm_lightning import DiffusionModule
from ddpm_lightning.diffusion.parameterizations import V
from ddpm_lightning.diffusion.samplers import DDIM
from ddpm_lightning.diffusion.schedules import Cosine, Linear
from ddpm_lightning.diffusion.timesteps import LossSecondMoment, Stratified
from ddpm_lightning.diffusion.variances import FixedLarge
from ddpm_lightning.errors import InputError
from ddpm_lightning.networks import Network
from ddpm_lightning.run_folder import last_checkpoint
from tests.small import TinyUNet, tiny_data, tiny_module, trainer


class Recorder(Callback):
    """Keeps what the objective was given, a batch an item."""

    def __init__(self) -> None:
        self.batches: list[NoisedBatch] = []
        self.recording = False

    def setup(self, trainer, pl_module, stage):
        if self.recording:
            return
        self.recording = True
        objective = pl_module.objective

        def record(denoiser, batch):
            self.batches.append(batch)
            return objective(denoiser, batch)

        pl_module.objective = record


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_equal_weights(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different


def fit(folder: Path, steps: int, ckpt_path: Path | None = None, data=None, **arguments):
    torch.manual_seed(0)
    module = tiny_module(ema_decay=0.9)
    run = trainer(folder, steps, **arguments)
    run.fit(module, data or tiny_data(), ckpt_path=ckpt_path, weights_only=True)
    return module


# ------------------------------------------------------------------------- training


def test_x_t_in_training_is_the_closed_form_noising_of_the_data(tmp_path):
    recorder = Recorder()
    fit(tmp_path, 2, callbacks=[recorder])
    batch = recorder.batches[0]
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alpha_bar = torch.cumprod(1 - betas, 0)[batch.t - 1].view(-1, 1, 1, 1)
    expected = alpha_bar.sqrt() * batch.x0 + (1 - alpha_bar).sqrt() * batch.eps
    torch.testing.assert_close(batch.x_t.double(), expected, rtol=0, atol=1e-6)


def test_two_steps_see_different_noise_and_two_runs_the_same(tmp_path):
    first, second = Recorder(), Recorder()
    fit(tmp_path / "a", 2, callbacks=[first])
    fit(tmp_path / "b", 2, callbacks=[second])
    assert not torch.equal(first.batches[0].eps, first.batches[1].eps)
    for a, b in zip(first.batches, second.batches, strict=True):
        assert torch.equal(a.eps, b.eps)
        assert torch.equal(a.t, b.t)
        assert torch.equal(a.x0, b.x0)


def test_accumulation_gives_the_rows_of_the_global_batch_the_same_noise(tmp_path):
    whole, halves = Recorder(), Recorder()
    fit(tmp_path / "a", 2, callbacks=[whole])
    fit(tmp_path / "b", 2, callbacks=[halves], accumulate_grad_batches=2)
    assert len(halves.batches) == 2 * len(whole.batches)
    for field in ("x0", "eps", "t"):
        together = torch.cat([getattr(batch, field) for batch in halves.batches])
        assert torch.equal(together, torch.cat([getattr(batch, field) for batch in whole.batches]))


def test_warm_up_raises_the_learning_rate_per_optimizer_step(tmp_path):
    rates = []

    class Rates(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            rates.append(optimizer.param_groups[0]["lr"])

    module = tiny_module(optimizer=partial(torch.optim.Adam, lr=1e-3), warmup_steps=4)
    trainer(tmp_path, 6, callbacks=[Rates()], accumulate_grad_batches=2).fit(module, tiny_data())
    assert rates == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3, 1e-3])


def test_a_schedule_after_the_warm_up_is_stepped_per_optimizer_step(tmp_path):
    rates = []

    class Rates(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            rates.append(optimizer.param_groups[0]["lr"])

    module = tiny_module(
        optimizer=partial(torch.optim.Adam, lr=1.0),
        warmup_steps=2,
        lr_schedule=partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5),
    )
    trainer(tmp_path, 5, callbacks=[Rates()]).fit(module, tiny_data())
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.5, 0.25])


def test_foreach_optimizer_clipping_and_bf16_work_together(tmp_path):
    module = tiny_module(optimizer=partial(torch.optim.AdamW, lr=1e-3, foreach=True))
    before = weights(module.net)
    run = trainer(tmp_path, 3, precision="bf16-mixed", gradient_clip_val=1.0)
    run.fit(module, tiny_data())
    moved = [name for name, value in weights(module.net).items() if not value.equal(before[name])]
    assert moved
    assert all(value.isfinite().all() for value in module.net.state_dict().values())


# ------------------------------------------------------------------------------ EMA


def test_ema_follows_once_per_optimizer_step_not_per_micro_batch(tmp_path):
    trail = []

    class Trail(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            trail.append((trainer.global_step, weights(pl_module.net), weights(pl_module.ema.net)))

    torch.manual_seed(0)
    module = tiny_module(ema_decay=0.9, optimizer=partial(torch.optim.SGD, lr=1.0))
    average = {name: value.double() for name, value in weights(module.net).items()}
    trainer(tmp_path, 3, callbacks=[Trail()], accumulate_grad_batches=2).fit(module, tiny_data())
    assert [step for step, _, _ in trail] == [0, 1, 1, 2, 2, 3]
    for n, (_, net, ema) in enumerate(trail[1::2]):
        decay = min(0.9, (1 + n) / (10 + n))
        for name, value in net.items():
            average[name] = decay * average[name] + (1 - decay) * value.double()
            torch.testing.assert_close(ema[name].double(), average[name], rtol=1e-5, atol=1e-6)


def test_half_precision_training_leaves_the_average_in_float32(tmp_path):
    module = fit(tmp_path, 2, precision="bf16-true")
    assert {p.dtype for p in module.net.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in module.ema.parameters()} == {torch.float32}


# --------------------------------------------------------------------------- resume


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("stop", [3, 6])  # within an epoch of 8 steps
def test_a_resumed_run_ends_bit_equal_to_an_uninterrupted_one(tmp_path, stop, accumulate):
    arguments = {"accumulate_grad_batches": accumulate}
    whole = fit(tmp_path / "whole", 10, **arguments)
    fit(tmp_path / "parts", stop, **arguments)
    resumed = fit(
        tmp_path / "parts", 10, ckpt_path=last_checkpoint(tmp_path / "parts"), **arguments
    )
    assert_equal_weights(weights(resumed), weights(whole))


def test_a_run_stopped_between_saves_resumes_from_its_last_save(tmp_path):
    class Crash(Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 5:
                raise RuntimeError("power cut")

    from ddpm_lightning.callbacks import RunCheckpoint

    with pytest.raises(RuntimeError, match="power cut"):
        fit(tmp_path / "parts", 8, callbacks=[RunCheckpoint(3), Crash()])
    path = last_checkpoint(tmp_path / "parts")
    assert torch.load(path, weights_only=True)["global_step"] == 3
    resumed = fit(tmp_path / "parts", 8, ckpt_path=path)
    assert_equal_weights(weights(resumed), weights(fit(tmp_path / "whole", 8)))


def test_a_finished_run_can_be_continued_exactly(tmp_path):
    fit(tmp_path / "parts", 8)  # the end of an epoch
    resumed = fit(tmp_path / "parts", 12, ckpt_path=last_checkpoint(tmp_path / "parts"))
    assert_equal_weights(weights(resumed), weights(fit(tmp_path / "whole", 12)))


# ----------------------------------------------------------------------- validation


def test_validation_scores_the_same_levels_and_noise_every_time_for_raw_and_ema(tmp_path):
    recorder = Recorder()
    module = tiny_module()
    run = trainer(tmp_path, 1, callbacks=[recorder], limit_val_batches=None)
    run.validate(module, tiny_data(), verbose=False)
    first = list(recorder.batches)
    recorder.batches.clear()
    metrics = run.validate(module, tiny_data(), verbose=False)[0]
    assert {"val/loss", "val/loss_ema"} <= metrics.keys()
    for a, b in zip(first, recorder.batches, strict=True):
        assert torch.equal(a.eps, b.eps)
        assert torch.equal(a.t, b.t)
    t = torch.cat([batch.t for batch in first[::2]])  # every second: raw, then EMA
    quartiles = torch.bincount((t - 1) * 4 // 1000, minlength=4)
    assert t.numel() == 150
    assert (quartiles - 150 / 4).abs().max() <= 2


def test_validation_does_not_depend_on_the_batch_size(tmp_path):
    torch.manual_seed(0)
    module = tiny_module()
    losses = [
        trainer(tmp_path, 1, limit_val_batches=None).validate(
            module, tiny_data(global_batch_size=size), verbose=False
        )[0]["val/loss"]
        for size in (7, 64)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


# ---------------------------------------------------------------------- checkpoints


def test_checkpoint_holds_the_two_networks_and_plain_data_only(tmp_path):
    fit(tmp_path, 1)
    checkpoint = torch.load(last_checkpoint(tmp_path), weights_only=True)
    assert {name.split(".")[0] for name in checkpoint["state_dict"]} == {"net", "ema"}
    net = [n.removeprefix("net.") for n in checkpoint["state_dict"] if n.startswith("net.")]
    ema = [n.removeprefix("ema.net.") for n in checkpoint["state_dict"] if n.startswith("ema.")]
    assert net == ema
    assert checkpoint["ddpm_lightning"]["format"] == 1
    assert checkpoint["ddpm_lightning"]["data"]["class_path"].endswith("Digits")


def test_module_built_in_python_is_rebuilt_from_its_path_alone(tmp_path):
    module = tiny_module(
        schedule=Cosine(T=200), parameterization=V(), variance=FixedLarge(), conditional=True
    )
    trainer(tmp_path, 2).fit(module, tiny_data())
    loaded = DiffusionModule.load_from_checkpoint(last_checkpoint(tmp_path))
    assert isinstance(loaded.schedule, Cosine)
    assert isinstance(loaded.parameterization, V)
    assert loaded.schedule.T == 200
    assert_equal_weights(weights(loaded), weights(module))
    x = loaded.sample(3, DDIM(4), labels=[1, 2, 3], guidance=2.0)
    assert torch.equal(x, module.sample(3, DDIM(4), labels=[1, 2, 3], guidance=2.0))


def test_checkpoint_loads_in_a_fresh_process(tmp_path):
    fit(tmp_path, 1)
    program = (
        "import sys; from ddpm_lightning import DiffusionModule\n"
        "from ddpm_lightning.diffusion.samplers import DDIM\n"
        "module = DiffusionModule.load_from_checkpoint(sys.argv[1])\n"
        "print(tuple(module.sample(2, DDIM(2)).shape))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(last_checkpoint(tmp_path))],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "(2, 1, 8, 8)"


class Subclass(DiffusionModule):
    """A researcher's variant with an argument of its own."""

    def __init__(self, *args, temperature: float = 1.0, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.temperature = temperature


def test_a_subclass_with_its_own_argument_comes_back_as_itself(tmp_path):
    module = Subclass(shape=[1, 8, 8], net=TinyUNet, temperature=0.7)
    trainer(tmp_path, 1).fit(module, tiny_data())
    loaded = DiffusionModule.load_from_checkpoint(last_checkpoint(tmp_path))
    assert type(loaded) is Subclass
    assert loaded.temperature == 0.7


def test_a_network_that_is_no_longer_finite_is_not_saved_over_a_good_one(tmp_path):
    class Poison(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            if trainer.global_step == 5:
                with torch.no_grad():
                    next(iter(pl_module.net.parameters())).fill_(float("nan"))

    from ddpm_lightning.callbacks import RunCheckpoint

    with pytest.raises(InputError, match=r"net\..* no longer finite at step 6"):
        fit(tmp_path, 8, callbacks=[Poison(), RunCheckpoint(3)])
    assert torch.load(last_checkpoint(tmp_path), weights_only=True)["global_step"] == 3


def test_compiling_leaves_the_names_of_the_weights_alone():
    module = tiny_module(compile=True)
    names = list(module.state_dict())
    module.setup("fit")
    assert list(module.state_dict()) == names


# ------------------------------------------------------------------------- sampling


def test_samples_do_not_depend_on_how_many_are_drawn():
    torch.manual_seed(0)
    module = tiny_module()
    torch.testing.assert_close(
        module.sample(5, DDIM(3, eta=1.0))[:2], module.sample(2, DDIM(3, eta=1.0))
    )


def test_samples_stay_in_the_data_range():
    module = tiny_module()
    for parameter in module.ema.parameters():
        nn.init.normal_(parameter)
    x = module.sample(4, DDIM(3))
    assert x.dtype == torch.float32
    assert x.min() >= -1
    assert x.max() <= 1


# ------------------------------------------------------------------- wrong arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"conditional": True, "num_classes": None}, "needs data with classes"),
        ({"label_dropout": 1.5}, "share in"),
        ({"shape": [1, 9, 9]}, "9"),
    ],
)
def test_parts_that_do_not_fit_are_refused_at_construction(arguments, message):
    with pytest.raises(InputError, match=message):
        tiny_module(**arguments)


@pytest.mark.parametrize(
    ("conditional", "labels", "message"),
    [(False, [1, 2], "the model has none"), (True, [], "one or more"), (True, [1, 10], "0…9")],
)
def test_labels_that_do_not_fit_are_refused(conditional, labels, message):
    with pytest.raises(InputError, match=message):
        tiny_module(conditional=conditional).sample(2, DDIM(1), labels=labels)


def test_two_modules_do_not_share_the_default_schedule():
    a, b = tiny_module(), tiny_module()
    a.schedule.to("meta")
    assert b.schedule._alpha32.device.type == "cpu"
    assert isinstance(b.schedule, Linear)


def test_user_network_is_injected_by_a_factory_and_described(tmp_path):
    module = tiny_module(net=partial(OneConvolution, kernel=5))
    trainer(tmp_path, 1).fit(module, tiny_data())
    loaded = DiffusionModule.load_from_checkpoint(last_checkpoint(tmp_path))
    assert loaded.net.convolution.kernel_size == (5, 5)


class OneConvolution(Network):
    """The smallest network of a user's own."""

    def __init__(self, in_channels, out_channels, num_classes=None, kernel: int = 3) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, out_channels, kernel, padding="same")

    def forward(self, x, c_noise, y=None):
        return self.convolution(x)


def test_order_of_the_data_follows_the_seed_of_the_run(tmp_path):
    orders = []
    for i, seed in enumerate((0, 0, 1)):
        recorder = Recorder()
        run = trainer(tmp_path / str(i), 1, callbacks=[recorder])
        run.fit(tiny_module(seed=seed), tiny_data())
        orders.append(recorder.batches[0].x0)
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])


def test_a_path_among_the_arguments_of_the_data_is_stated_as_text(tmp_path):
    trainer(tmp_path, 1).fit(tiny_module(), tiny_data(root=tmp_path))
    checkpoint = torch.load(last_checkpoint(tmp_path), weights_only=True)
    assert checkpoint["ddpm_lightning"]["data"]["init_args"]["root"] == str(tmp_path)


def test_positional_arguments_that_cannot_be_stated_are_refused_before_training():
    with pytest.raises(InputError, match="by keyword"):
        Subclass([1, 8, 8], net=TinyUNet)


def test_a_loss_that_is_no_longer_finite_stops_the_run(tmp_path):
    class Poison(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            with torch.no_grad():
                next(iter(pl_module.net.parameters())).fill_(float("nan"))

    with pytest.raises(InputError, match=r"no longer finite at step 4.*embed\.linear1\.weight"):
        fit(tmp_path, 8, callbacks=[Poison()], log_every_n_steps=4)


def test_samples_of_a_diverged_network_are_refused():
    module = tiny_module()
    with torch.no_grad():
        next(iter(module.ema.parameters())).fill_(float("nan"))
    with pytest.raises(InputError, match="not finite"):
        module.sample(1, DDIM(2))


def test_fused_optimizer_with_clipping_in_mixed_precision_is_refused_with_the_fix(tmp_path):
    module = tiny_module(optimizer=partial(torch.optim.Adam, lr=1e-3, fused=True))
    run = trainer(tmp_path, 1, precision="bf16-mixed", gradient_clip_val=1.0)
    with pytest.raises(InputError, match="fused: false"):
        run.fit(module, tiny_data())


def test_stratified_levels_fall_one_into_each_part_of_the_range(tmp_path):
    recorder = Recorder()
    module = tiny_module(timesteps=Stratified())
    run = trainer(tmp_path, 3, callbacks=[recorder], accumulate_grad_batches=2)
    run.fit(module, tiny_data(global_batch_size=20))
    for k in range(3):
        t = torch.cat([batch.t for batch in recorder.batches[2 * k : 2 * k + 2]])
        assert torch.bincount((t - 1) // 50, minlength=20).max() <= 2
        assert ((t - 1) // 250).bincount(minlength=4).tolist() in ([5, 5, 5, 5], *_near([5] * 4))


def _near(counts):
    """Counts of four ranges when the strata are rotated across their edges by one."""
    return [
        [c + up * (i == a) - up * (i == b) for i, c in enumerate(counts)]
        for a in range(4)
        for b in range(4)
        for up in (0, 1)
    ]


def test_what_a_timestep_distribution_has_learned_survives_a_resume(tmp_path):
    def run(folder, steps, ckpt_path=None):
        torch.manual_seed(0)
        module = tiny_module(schedule=Linear(T=25), timesteps=LossSecondMoment(history=1))
        data = tiny_data(global_batch_size=32)
        trainer(folder, steps).fit(module, data, ckpt_path=ckpt_path, weights_only=True)
        return module

    whole = run(tmp_path / "whole", 9)
    run(tmp_path / "parts", 6)
    resumed = run(tmp_path / "parts", 9, last_checkpoint(tmp_path / "parts"))
    state = whole.timesteps.state_dict()
    assert state["counts"].sum() == 9 * 32
    for name, value in resumed.timesteps.state_dict().items():
        assert torch.equal(value, state[name])
    assert_equal_weights(weights(resumed), weights(whole))


def test_hybrid_loss_without_a_learned_variance_is_refused_at_construction():
    with pytest.raises(InputError, match="LearnedRange"):
        tiny_module(objective=Hybrid())
