"""The LightningModule: noising, loss, EMA, precision, resume and checkpoints."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.utils.data import DataLoader

from ddpm_lightning import DiffusionModule
from ddpm_lightning.batch import Batch, Condition
from ddpm_lightning.callbacks import GenerativeMetrics, Likelihood, PointMetrics, SampleGrid
from ddpm_lightning.data import Toy2D
from ddpm_lightning.diffusion import (
    Cosine,
    FixedLarge,
    Hybrid,
    LabelDropout,
    Linear,
    LossSecondMoment,
    Stratified,
    V,
)
from ddpm_lightning.diffusion.losses import NoisedBatch
from ddpm_lightning.diffusion.samplers import DDIM
from ddpm_lightning.errors import InputError
from ddpm_lightning.metrics import LeNet
from ddpm_lightning.networks import MLP
from ddpm_lightning.run_folder import last_checkpoint
from tests.small import (
    Rates,
    TinyUNet,
    assert_same_weights,
    fit,
    image_spec,
    tiny_data,
    tiny_module,
    trainer,
    weights,
)

Adam = torch.optim.Adam


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

    def all(self, field: str) -> torch.Tensor:
        """One field of every batch, one below the other."""
        return torch.cat([getattr(batch, field) for batch in self.batches])

    @property
    def labels(self) -> torch.Tensor:
        return torch.cat([batch.condition.label for batch in self.batches])


class Poison(Callback):
    """Makes the network diverge at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.global_step == self.step:
            with torch.no_grad():
                next(iter(pl_module.net.parameters())).fill_(float("nan"))


# ------------------------------------------------------------------------- training


def test_x_t_in_training_is_the_closed_form_noising_of_the_data(tmp_path):
    recorder = Recorder()
    fit(tmp_path, 1, recorder)
    (batch,) = recorder.batches
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alpha_bar = torch.cumprod(1 - betas, 0)[batch.t - 1].view(-1, 1, 1, 1)
    expected = alpha_bar.sqrt() * batch.x0 + (1 - alpha_bar).sqrt() * batch.eps
    torch.testing.assert_close(batch.x_t.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_order_levels_and_noise_are_those_of_the_seed_and_new_in_every_step(tmp_path):
    first, again, other = Recorder(), Recorder(), Recorder()
    for recorder, seed in ((first, 0), (again, 0), (other, 1)):
        fit(tmp_path / str(id(recorder)), 2, recorder, seed=seed)
    for field in ("x0", "t", "eps"):
        assert torch.equal(first.all(field), again.all(field))
        assert not torch.equal(first.all(field), other.all(field))
        assert not torch.equal(*(getattr(batch, field) for batch in first.batches))


def test_accumulation_trains_as_one_batch_on_the_same_rows_noise_and_dropped_labels(tmp_path):
    whole, halves = Recorder(), Recorder()
    parts = {"net": partial(TinyUNet, dropout=0.0), "optimizer": partial(torch.optim.SGD, lr=0.1)}
    parts |= {"conditional": True, "label_dropout": LabelDropout(0.5)}
    modules = [
        fit(tmp_path / str(k), 3, recorder, run={"accumulate_grad_batches": k}, **parts)
        for k, recorder in ((1, whole), (2, halves))
    ]
    assert len(halves.batches) == 2 * len(whole.batches)
    for field in ("x0", "eps", "t"):
        assert torch.equal(halves.all(field), whole.all(field))
    assert torch.equal(halves.labels, whole.labels)
    assert 0 < (whole.labels == -1).sum() < len(whole.labels)
    for name, value in modules[0].state_dict().items():
        torch.testing.assert_close(modules[1].state_dict()[name], value, rtol=1e-4, atol=1e-6)


def test_the_noise_belongs_to_the_row_that_the_batch_states(tmp_path):
    order = torch.tensor([3, 1, 0, 2])
    seen = []
    for i, row in enumerate((torch.arange(4), order)):
        recorder = Recorder()
        batch = Batch(torch.zeros(4, 1, 8, 8), Condition(), torch.arange(4), row)
        fit(tmp_path / str(i), 1, recorder, data=DataLoader([batch], batch_size=None))
        seen.append(recorder)
    for field in ("eps", "t"):
        assert torch.equal(seen[1].all(field), seen[0].all(field)[order])
    with pytest.raises(InputError, match="does not state its rows"):
        fit(tmp_path, 1, data=DataLoader([batch._replace(row=None)], batch_size=None))


class OddRows(LabelDropout):
    """Every second row of the global batch forgets its label."""

    def __call__(self, condition, noise):
        return condition.null((noise.rows % 2 == 1).to(condition.label.device))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_another_rule_of_label_dropout_is_a_subclass(tmp_path, accumulate):
    recorder = Recorder()
    run = {"accumulate_grad_batches": accumulate}
    fit(tmp_path, 2, recorder, run=run, conditional=True, label_dropout=OddRows())
    assert (recorder.labels == -1).tolist() == [False, True] * 8


@pytest.mark.parametrize(
    ("warmup", "after", "expected"),
    [
        (4, None, [0.25, 0.5, 0.75, 1, 1, 1]),
        (2, partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5), [0.5, 1, 1, 0.5, 0.25]),
    ],
)
def test_warm_up_and_schedule_move_the_learning_rate_per_optimizer_step(
    tmp_path, warmup, after, expected
):
    rates = Rates()
    module = {"optimizer": partial(Adam, lr=1e-3), "warmup_steps": warmup, "lr_schedule": after}
    fit(tmp_path, len(expected), rates, run={"accumulate_grad_batches": 2}, **module)
    assert rates.seen == pytest.approx([1e-3 * rate for rate in expected])


def test_stratified_levels_fall_one_into_each_part_of_the_range(tmp_path):
    recorder = Recorder()
    run, data = {"accumulate_grad_batches": 2}, tiny_data(global_batch_size=20)
    fit(tmp_path, 3, recorder, data=data, run=run, timesteps=Stratified())
    for t in recorder.all("t").split(20):
        assert torch.bincount((t - 1) // 50, minlength=20).max() <= 2
        # One a stratum; a common rotation carries at most one across the edges of a quarter.
        quarters = torch.bincount((t - 1) // 250, minlength=4) - 5
        assert sorted(quarters.tolist()) in ([0, 0, 0, 0], [-1, 0, 0, 1])


def test_weights_that_are_no_longer_finite_stop_the_run_at_the_next_step(tmp_path):
    with pytest.raises(InputError, match=r"gradients of step 3 .*net\.embed\.linear1\.weight"):
        fit(tmp_path, 8, run={"callbacks": [Poison(2)]})


# ------------------------------------------------------------------------------ EMA


def test_ema_follows_once_per_optimizer_step_not_per_micro_batch(tmp_path):
    trail = []

    class Trail(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            trail.append((trainer.global_step, weights(pl_module.net), weights(pl_module.ema.net)))

    optimizer, run = partial(torch.optim.SGD, lr=1.0), {"accumulate_grad_batches": 2}
    torch.manual_seed(0)
    average = {name: value.double() for name, value in weights(tiny_module().net).items()}
    fit(tmp_path, 3, Trail(), run=run, optimizer=optimizer)
    assert [step for step, _, _ in trail] == [0, 1, 1, 2, 2, 3]
    for n, (_, net, ema) in enumerate(trail[1::2]):
        decay = min(0.9, (1 + n) / (10 + n))
        for name, value in net.items():
            average[name] = decay * average[name] + (1 - decay) * value.double()
            torch.testing.assert_close(ema[name].double(), average[name], rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------ precision

DTYPES = {
    "32-true": torch.float32,
    "bf16-mixed": torch.float32,
    "16-mixed": torch.float32,  # on the CPU Lightning makes it bf16-mixed
    "bf16-true": torch.bfloat16,
    "64-true": torch.float64,
}


@pytest.mark.slow
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("what", ["images", "points"])
@pytest.mark.filterwarnings("ignore:.*AMP with fp16 is not supported")
def test_every_precision_steps_validates_and_draws(tmp_path, precision, what):
    data, net = {
        "images": (tiny_data(flip=True), TinyUNet),
        "points": (Toy2D("moons", n=64, global_batch_size=8), partial(MLP, width=8)),
    }[what]
    optimizer = partial(torch.optim.AdamW, lr=1e-2, foreach=True)
    module = tiny_module(data=data.spec, net=net, conditional=True, optimizer=optimizer)
    before = weights(module.net)
    settings = {"precision": precision, "gradient_clip_val": 1.0, "limit_val_batches": 2}
    run = trainer(tmp_path, 2, callbacks=[SampleGrid(n=2, sampler=DDIM(1))], **settings)
    run.fit(module, data)
    assert not torch.equal(module.net.out.weight.float(), before["out.weight"])
    (metrics,) = run.validate(module, data, verbose=False)
    assert all(math.isfinite(value) for value in metrics.values())
    assert {p.dtype for p in module.net.parameters()} == {DTYPES[precision]}
    assert {p.dtype for p in module.ema.parameters()} == {torch.float32}


@contextmanager
def first_layer(net: nn.Module) -> Iterator[set[torch.dtype]]:
    """The dtypes that the network's first layer, a convolution for images, computes in."""
    seen: set[torch.dtype] = set()
    hook = net.stem.register_forward_hook(lambda _, __, output: seen.add(output.dtype))
    yield seen
    hook.remove()


def test_autocast_acts_in_training_and_validation(tmp_path):
    module = tiny_module()
    run = trainer(tmp_path, 1, precision="bf16-mixed", limit_val_batches=1)
    with first_layer(module.net) as training:
        run.fit(module, tiny_data())
    with first_layer(module.net) as raw, first_layer(module.ema.net) as averaged:
        run.validate(module, tiny_data(), verbose=False)
    assert training == raw == averaged == {torch.bfloat16}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("callback", "dtype"),
    [
        (SampleGrid(n=2, sampler=DDIM(1)), torch.bfloat16),
        (GenerativeMetrics(LeNet(), n=86, sampler=DDIM(1), neighbours=0), torch.bfloat16),
        (PointMetrics(n=16, sampler=DDIM(1)), torch.bfloat16),
        (Likelihood(2, flow_n=1, flow_steps=1), torch.float32),  # in full precision on purpose
    ],
    ids=lambda value: type(value).__name__,
)
def test_callbacks_run_the_network_in_the_precision_meant(tmp_path, callback, dtype):
    # The averaged network, which training never runs; of evaluation steps only what is theirs.
    points = isinstance(callback, PointMetrics)
    data = Toy2D(n=64, global_batch_size=8) if points else tiny_data()
    net = partial(MLP, width=8) if points else TinyUNet
    module = tiny_module(data=data.spec, net=net, schedule=Linear(25))
    module.test_step = lambda *_: None
    run = trainer(tmp_path, 1, precision="bf16-mixed", callbacks=[callback], limit_test_batches=1)
    with first_layer(module.ema.net) as seen:
        run.fit(module, data)
        run.test(module, data, verbose=False)
    assert seen == {dtype}


def test_fused_optimizer_with_clipping_in_mixed_precision_is_refused_with_the_fix(tmp_path):
    optimizer = partial(Adam, lr=1e-3, fused=True)
    run = {"precision": "bf16-mixed", "gradient_clip_val": 1.0}
    with pytest.raises(InputError, match="fused: false"):
        fit(tmp_path, 1, run=run, optimizer=optimizer)


# --------------------------------------------------------------------------- resume


@pytest.fixture(scope="module", params=[pytest.param(1, marks=pytest.mark.slow), 2])
def uninterrupted(request, tmp_path_factory):
    """A run of 10 steps without a stop, and the trainer's arguments."""
    run = {"accumulate_grad_batches": request.param}
    return fit(tmp_path_factory.mktemp("whole"), 10, run=run), run


@pytest.mark.parametrize(
    "stop",
    [
        3,  # within an epoch
        pytest.param(8, marks=pytest.mark.slow),  # at the end of one
    ],
)
def test_a_resumed_run_ends_bit_equal_to_an_uninterrupted_one(tmp_path, uninterrupted, stop):
    whole, run = uninterrupted
    fit(tmp_path, stop, run=run)
    assert_same_weights(fit(tmp_path, 10, resume=True, run=run), whole)


@pytest.mark.slow
def test_what_a_timestep_distribution_has_learned_survives_a_resume(tmp_path):
    def run(folder, steps, resume=False):
        parts = {"schedule": Linear(T=25), "timesteps": LossSecondMoment(history=1)}
        data = tiny_data(global_batch_size=32)
        return fit(tmp_path / folder, steps, data=data, resume=resume, **parts)

    whole = run("whole", 9)
    run("parts", 6)
    resumed = run("parts", 9, resume=True)
    state = whole.timesteps.state_dict()
    assert state["counts"].sum() == 9 * 32
    for name, value in resumed.timesteps.state_dict().items():
        assert torch.equal(value, state[name])
    assert_same_weights(resumed, whole)


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
    module, run = tiny_module(), trainer(tmp_path, 1, limit_val_batches=None)
    one, other = (
        run.validate(module, tiny_data(global_batch_size=size), verbose=False)[0]["val/loss"]
        for size in (7, 64)
    )
    assert one == pytest.approx(other, rel=1e-5)


# ---------------------------------------------------------------------- checkpoints


def test_checkpoint_holds_the_two_networks_and_plain_data_only(tiny_checkpoint):
    checkpoint = torch.load(tiny_checkpoint, weights_only=True)
    names = checkpoint["state_dict"]
    assert {name.split(".")[0] for name in names} == {"net", "ema"}
    net = [n.removeprefix("net.") for n in names if n.startswith("net.")]
    assert net == [n.removeprefix("ema.net.") for n in names if n.startswith("ema.")]
    assert checkpoint["ddpm_lightning"]["format"] == 3
    assert checkpoint["ddpm_lightning"]["data"]["class_path"] == "ddpm_lightning.data.Digits"
    stated = checkpoint["hyper_parameters"]
    assert stated["data"]["shape"] == [1, 8, 8]
    assert stated["ema"] == {
        "class_path": "ddpm_lightning.EMA",
        "init_args": {"decay": 0.9, "warmup": True, "start": 0},
    }


def test_module_built_in_python_is_rebuilt_from_its_path_alone(tmp_path):
    module = tiny_module(
        schedule=Cosine(T=200), parameterization=V(), variance=FixedLarge(), conditional=True
    )
    trainer(tmp_path, 2).fit(module, tiny_data())
    loaded = DiffusionModule.load_from_checkpoint(last_checkpoint(tmp_path))
    assert_same_weights(loaded, module)
    assert loaded.hparams == module.hparams
    x = loaded.sample(3, DDIM(4), labels=[1, 2, 3], guidance=2.0)
    assert torch.equal(x, module.sample(3, DDIM(4), labels=[1, 2, 3], guidance=2.0))


class Subclass(DiffusionModule):
    """A researcher's variant with an argument of its own."""

    def __init__(self, *args, temperature: float = 1.0, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.temperature = temperature


def test_a_users_own_module_comes_back_as_itself(tmp_path):
    spec = image_spec(num_classes=10)
    parts = {"net": TinyUNet, "conditional": True, "label_dropout": OddRows(0.3)}
    trainer(tmp_path, 1).fit(Subclass(data=spec, temperature=0.7, **parts), tiny_data())
    loaded = DiffusionModule.load_from_checkpoint(last_checkpoint(tmp_path))
    assert (type(loaded), loaded.temperature) == (Subclass, 0.7)
    assert (type(loaded.label_dropout), loaded.label_dropout.share) == (OddRows, 0.3)


@pytest.mark.slow
def test_checkpoint_loads_in_a_fresh_process(tiny_checkpoint):
    program = (
        "import sys; from ddpm_lightning import DiffusionModule\n"
        "from ddpm_lightning.diffusion.samplers import DDIM\n"
        "module = DiffusionModule.load_from_checkpoint(sys.argv[1])\n"
        "assert module.sample(2, DDIM(2)).shape == (2, 1, 8, 8)"
    )
    subprocess.run([sys.executable, "-c", program, str(tiny_checkpoint)], check=True)


def test_a_network_that_is_no_longer_finite_is_not_saved_over_a_good_one(tmp_path):
    with pytest.raises(InputError, match=r"step 6 .* net\..*\. Step 3 is saved"):
        fit(tmp_path, 8, Poison(5))
    assert torch.load(last_checkpoint(tmp_path), weights_only=True)["global_step"] == 3


@pytest.mark.slow
def test_compiling_leaves_the_names_of_the_weights_alone(tmp_path):
    module = tiny_module(compile=True)
    names = list(module.state_dict())
    module.trainer = trainer(tmp_path, 1)
    module.setup("fit")
    assert list(module.state_dict()) == names


# ------------------------------------------------------------------------- sampling


def test_samples_stay_in_the_data_range_and_those_of_a_diverged_network_are_refused():
    module = tiny_module()
    for parameter in module.ema.parameters():
        nn.init.normal_(parameter)
    x = module.sample(4, DDIM(3))
    assert x.dtype == torch.float32
    assert (x.min(), x.max()) == (-1, 1)
    next(iter(module.ema.parameters())).fill_(float("nan"))
    with pytest.raises(InputError, match="not finite"):
        module.sample(1, DDIM(2))


# ------------------------------------------------------------------- wrong arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"conditional": True, "data": image_spec()}, "needs data with classes"),
        ({"warmup_steps": -1}, "0 or more optimizer steps"),
        ({"data": image_spec(size=9)}, "9"),
        ({"objective": Hybrid()}, "LearnedRange"),
    ],
)
def test_parts_that_do_not_fit_are_refused_at_construction(arguments, message):
    with pytest.raises(InputError, match=message):
        tiny_module(**arguments)


def test_two_modules_share_no_schedule_average_or_statistics_of_timesteps():
    timesteps = LossSecondMoment()
    a, b = tiny_module(timesteps=timesteps), tiny_module(timesteps=timesteps)
    a.schedule.to("meta")
    assert next(b.schedule.buffers()).device.type == "cpu"
    assert a.ema.net is not b.ema.net
    a.timesteps.update(torch.tensor([3]), torch.tensor([1.0]))
    assert [len(one.timesteps.state_dict()["counts"]) for one in (a, b)] == [3, 0]


def test_a_part_that_is_replaced_is_in_the_next_denoiser():
    module = tiny_module()
    module.denoiser()
    module.variance = FixedLarge()
    assert module.denoiser().variance is module.variance


def test_positional_arguments_that_cannot_be_stated_are_refused_before_training():
    with pytest.raises(InputError, match="by keyword"):
        Subclass(image_spec(), net=TinyUNet)
