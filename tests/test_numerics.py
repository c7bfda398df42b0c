"""Precision: which dtype every operation computes in; steps whose gradients are not finite."""

from __future__ import annotations

import math
import subprocess
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ddpm_lightning import DiffusionModule
from ddpm_lightning.batch import Batch, Condition
from ddpm_lightning.callbacks import RunCheckpoint
from ddpm_lightning.data import Toy2D
from ddpm_lightning.diffusion import (
    L1,
    MSE,
    DiscretizedGaussian,
    FixedLarge,
    Huber,
    Hybrid,
    LearnedRange,
    Linear,
    MinSNR,
    VariationalBound,
)
from ddpm_lightning.diffusion.samplers import DDIM, DDPM, LMS, DPMSolverPP, Euler, Heun, UniPC
from ddpm_lightning.errors import InputError
from ddpm_lightning.finite import GradientCheck
from ddpm_lightning.networks import MLP
from ddpm_lightning.networks.layers import Attention
from ddpm_lightning.run_folder import last_checkpoint
from ddpm_lightning.sampling import Request
from tests.dtypes import LOW, lively_module, record_sampling, record_training, small_networks
from tests.small import events, trainer, weights

# What must not round to 8 bits, in the forward and the backward pass.
SENSITIVE = ("norm", "softmax", "var_mean", "sin", "cos", "pow", "exp", "rsqrt", "arange")
HUGE = partial(torch.optim.SGD, lr=3e38)
NORMED = [name for name in small_networks() if name not in ("MLP", "SimpleUNet")]
WITHOUT_SINES = ("SimpleUNet",)  # the level is a number of its own


def low(found: dict[str, set[torch.dtype]], *words: str) -> list[str]:
    """The operations, of names with one of these words, that compute in half precision."""
    named = [op for op in found if any(word in op for word in words)]
    return [op for op in named if found[op] & set(LOW)]


# ----------------------------------------------------------------- dtypes under autocast


@pytest.mark.slow
@pytest.mark.parametrize("name", small_networks())
def test_norms_softmax_and_tables_of_a_network_compute_in_float32_under_autocast(name):
    inside = record_training(lively_module(name)).inside
    assert ("sin" in inside) is (name not in WITHOUT_SINES)
    assert low(inside, *SENSITIVE) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", NORMED)
def test_the_record_holds_the_norm_of_every_network_with_one(name):
    assert any("norm" in op for op in record_training(lively_module(name)).inside)


def test_the_record_holds_the_softmax_of_linear_attention_and_standardized_weights():
    assert "_softmax" in record_training(lively_module("UNet, linear attention")).inside
    assert "var_mean" in record_training(lively_module("UNet, weight_standardized")).inside


@pytest.mark.slow
@pytest.mark.parametrize("name", small_networks())
def test_autocast_still_computes_the_products_of_a_network_in_bfloat16(name):
    inside = record_training(lively_module(name)).inside
    products = {op: found for op, found in inside.items() if op in ("addmm", "convolution", "mm")}
    assert all(found == {torch.bfloat16} for found in products.values())
    assert products


@pytest.mark.parametrize("name", small_networks())
def test_nothing_of_a_network_computes_in_half_precision_at_32_true(name):
    inside = record_training(lively_module(name), dtype=None).inside
    assert set().union(*inside.values()) == {torch.float32}


@pytest.mark.parametrize(
    "objective", [MSE(MinSNR()), L1(), Huber(), Hybrid(), VariationalBound(DiscretizedGaussian())]
)
def test_noising_coefficients_and_loss_compute_in_float32_under_autocast(objective):
    learned = isinstance(objective, Hybrid | VariationalBound)
    variance = {"variance": LearnedRange()} if learned else {}
    outside = record_training(lively_module("SmallUNet", objective=objective, **variance)).outside
    assert low(outside, "") == []
    assert torch.float32 in outside["mul"]


@pytest.mark.parametrize(
    "sampler",
    [DDPM(3), DDIM(3, eta=1.0), Euler(3), Heun(3), DPMSolverPP(4), UniPC(4), LMS(4)],
    ids=lambda sampler: type(sampler).__name__,
)
def test_the_sampler_computes_in_float32_under_autocast(sampler):
    module = lively_module("MLP", schedule=Linear(50))
    recorded = record_sampling(module, sampler)
    assert low(recorded.outside, "") == []
    assert torch.float32 in recorded.outside["mul"]
    assert recorded.inside["addmm"] == {torch.bfloat16}


def test_attention_in_bfloat16_takes_its_softmax_in_float32():
    # Scores 256 and 257 are one number in bfloat16, whose softmax would weigh both alike.
    q = torch.full((1, 1, 1, 4), 16.0).bfloat16()
    k = torch.tensor([[8.0, 8, 8, 8], [8, 8, 8, 8.125]]).bfloat16().view(1, 1, 2, 4)
    v = torch.tensor([[0.0, 0, 0, 0], [1, 1, 1, 1]]).bfloat16().view(1, 1, 2, 4)
    mixed = Attention.mix(None, q, k, v)
    assert float(mixed[0, 0, 0, 0]) == pytest.approx(1 / (1 + math.exp(-1)), abs=4e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", small_networks())
def test_norms_softmax_tables_and_loss_compute_in_float32_on_a_gpu(name, dtype, device):
    recorded = record_training(lively_module(name), dtype, device.type)
    assert low(recorded.inside, *SENSITIVE) == []
    assert low(recorded.outside, "") == []


# --------------------------------------------------------- gradients that are not finite


class Faulty(Toy2D):
    """Points of which some, in these splits, are NaN."""

    def __init__(self, broken=(), splits=("train",), **arguments):
        super().__init__("moons", **{"n": 64, "global_batch_size": 8} | arguments)
        self.broken = list(broken)
        self.splits = splits

    def samples(self, split):
        points, labels = super().samples(split)
        if split in self.splits:
            points[self.broken] = float("nan")
        return points, labels


class Scaled(MSE):
    """The squared error times a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def error(self, output, target):
        half = self.factor**0.5  # because torch takes no factor beyond float32
        return super().error(output, target) * half * half


class Infinite(nn.Linear):
    """A layer that gives infinity."""

    def forward(self, x):
        return super().forward(x) / 0


class Root(nn.Linear):
    """A layer whose derivative is NaN where its values are finite."""

    def forward(self, x):
        return super().forward(x) + (0 * x).sqrt().mean()


class Trail(Callback):
    """Keeps weights, average and optimizer state after every step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        moments = trainer.optimizers[0].state_dict()["state"].items()
        state = {f"{i} {key}": value.clone() for i, one in moments for key, value in one.items()}
        self.seen.append(weights(pl_module) | state)


def points_module(data: Toy2D, width: int = 8, **arguments) -> DiffusionModule:
    torch.manual_seed(0)
    return DiffusionModule(data.spec, net=partial(MLP, width=width, depth=2), **arguments)


def fit_points(folder, steps, data=None, module=None, callbacks=(), **run) -> str:
    """Train on points; the message of the InputError that ended the run, or nothing."""
    data = data or Faulty()
    module = module or points_module(data)
    saves = RunCheckpoint(every_n_steps=2)
    one = trainer(folder, steps, **{"callbacks": [saves, *callbacks]} | run)
    try:
        one.fit(module, data)
    except InputError as error:
        return str(error)
    return ""


def test_a_sample_that_is_nan_ends_the_run_and_is_named(tmp_path):
    message = fit_points(tmp_path, 8, Faulty([57]))
    assert "the data: x0 of sample 57 of the training split is not finite" in message


def test_a_sample_that_is_nan_in_a_later_micro_batch_is_named(tmp_path):
    message = fit_points(tmp_path, 8, Faulty([57]), accumulate_grad_batches=4)
    assert "the data: x0 of sample 57 of the training split" in message


def test_the_step_in_the_message_is_the_one_that_meets_the_sample(tmp_path):
    data = Faulty()
    met = []

    class Look(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if 57 in batch.index.tolist():
                met.append(trainer.global_step + 1)

    fit_points(tmp_path / "sound", 8, data, callbacks=[Look()])
    assert met
    assert f"gradients of step {met[0]} " in fit_points(tmp_path / "faulty", 8, Faulty([57]))


def test_weights_average_and_optimizer_are_those_before_a_step_that_is_not_finite(tmp_path):
    sound, faulty = Trail(), Trail()
    fit_points(tmp_path / "sound", 8, callbacks=[sound])
    fit_points(tmp_path / "faulty", 8, Faulty([57]), callbacks=[faulty])
    last = len(faulty.seen) - 1
    assert last >= 0
    assert all(torch.equal(faulty.seen[last][k], v) for k, v in sound.seen[last].items())


def test_the_message_names_the_last_save_only_where_there_is_one(tmp_path):
    everything, late = Faulty([*range(64)]), Faulty([57])
    assert "Nothing is saved yet" in fit_points(tmp_path / "first", 8, everything)
    message = fit_points(tmp_path / "later", 8, late)
    assert message.startswith("the gradients of step 5 ")
    assert "Step 4 is saved" in message


def test_a_loss_that_overflows_is_named_with_samples_and_levels(tmp_path):
    data = Faulty()
    module = points_module(data, objective=Scaled(1e60))
    message = fit_points(tmp_path, 2, data, module)
    assert "the loss: its term 'loss' is not finite for sample" in message
    assert "at level" in message


def test_gradients_of_which_only_the_norm_overflows_are_named(tmp_path):
    data = Faulty()
    message = fit_points(tmp_path, 2, data, points_module(data, objective=Scaled(1e30)))
    assert "their norm: every gradient is finite, the largest" in message


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_first_module_that_gives_infinity_is_named(tmp_path, compiled):
    data = Faulty()
    module = points_module(data)
    module.net.blocks[1].linear1 = Infinite(8, 8)
    if compiled:
        module.net.compile(backend="eager")
    message = fit_points(tmp_path, 2, data, module)
    assert "net.blocks.1.linear1 (Infinite) is the first module to return" in message


def test_a_gradient_that_is_nan_is_named_by_where_it_arises(tmp_path):
    data = Faulty()
    module = points_module(data, variance=FixedLarge())
    module.net.out = Root(8, 2)
    message = fit_points(tmp_path, 2, data, module)
    assert "the backward pass: the gradient at the output of net.blocks.1" in message


def test_a_bad_initialisation_is_named_without_advice_that_the_run_follows(tmp_path):
    data = Faulty()
    module = points_module(data)
    with torch.no_grad():
        module.net.stem.weight.fill_(3e38)
    run = {"precision": "bf16-mixed", "gradient_clip_val": 1.0}
    message = fit_points(tmp_path, 2, data, module, **run)
    assert "net.stem (Linear) is the first module to return" in message
    advice = message.partition("Nothing is saved yet; ")[2]
    assert advice == "skip such steps, 1 in a row at most (--model.skip_nonfinite 1)"


def test_clipping_is_advised_only_to_a_run_that_does_not_clip(tmp_path):
    class Grow(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            with torch.no_grad():
                pl_module.net.stem.weight.fill_(3e38)

    plain = fit_points(tmp_path / "plain", 4, callbacks=[Grow()])
    clips = fit_points(tmp_path / "clips", 4, callbacks=[Grow()], gradient_clip_val=1.0)
    assert "step 2 " in plain
    assert "step 2 " in clips
    assert "gradient_clip_val" in plain
    assert "clip" not in clips


def test_weights_that_an_optimizer_makes_infinite_are_not_saved(tmp_path):
    data = Faulty()
    module = points_module(data, objective=Scaled(1e3), optimizer=HUGE)
    message = fit_points(tmp_path, 1, data, module)
    assert "is not finite after step 1, though the gradients were" in message
    assert "nothing is saved" in message
    assert not last_checkpoint(tmp_path).exists()


# ----------------------------------------------------------------------- skipped steps


@pytest.mark.filterwarnings("ignore:step . is skipped")
def test_a_skipped_step_leaves_weights_average_and_optimizer_alone(tmp_path):
    data, trail = Faulty([57]), Trail()
    assert fit_points(tmp_path, 8, data, points_module(data, skip_nonfinite=1), [trail]) == ""
    same = [
        all(torch.equal(after[name], before[name]) for name in before)
        for before, after in pairwise(trail.seen)
    ]
    assert same.count(True) == 1
    assert len(same) == 7


def test_a_skipped_step_is_said_with_its_cause(tmp_path):
    data = Faulty([57])
    with pytest.warns(UserWarning, match=r"^step \d is skipped, 1 in a row .*sample 57"):
        fit_points(tmp_path, 8, data, points_module(data, skip_nonfinite=1))


@pytest.mark.filterwarnings("ignore:step . is skipped")
def test_the_bound_holds_for_steps_in_a_row(tmp_path):
    data = Faulty([*range(64)])
    message = fit_points(tmp_path, 8, data, points_module(data, skip_nonfinite=2))
    assert message.startswith("the gradients of step 3 after 2 skipped in a row are not finite")


@pytest.mark.filterwarnings("ignore:step . is skipped")
def test_a_finite_step_between_two_skipped_ones_ends_the_row(tmp_path):
    data = Faulty([57, 42])  # of steps 5 and 7
    module = points_module(data, skip_nonfinite=1)
    assert fit_points(tmp_path, 8, data, module) == ""
    assert module.gradients.total == 2


@pytest.mark.filterwarnings("ignore:step . is skipped")
def test_skipped_steps_are_counted_in_the_log_and_go_on_counting_after_a_resume(tmp_path):
    data = Faulty([*range(64)])
    parts = {"callbacks": [RunCheckpoint(every_n_steps=2)]}
    logger = TensorBoardLogger(tmp_path, name="", version="")
    for steps in (2, 4):
        module = points_module(data, skip_nonfinite=3)
        one = trainer(tmp_path, steps, logger=logger, **parts)
        path = last_checkpoint(tmp_path) if steps > 2 else None
        if steps == 2:
            one.fit(module, data)
            continue
        with pytest.raises(InputError, match="step 4 after 3 skipped in a row"):
            one.fit(module, data, ckpt_path=path, weights_only=True)
    logged = events(tmp_path).Scalars("train/skipped_steps")
    assert [(event.step, event.value) for event in logged] == [(1, 1), (2, 2), (3, 3)]


def test_a_negative_bound_is_refused():
    with pytest.raises(InputError, match="skip_nonfinite=-1"):
        points_module(Faulty(), skip_nonfinite=-1)


def test_the_bound_does_not_belong_to_the_model_and_may_change_at_a_resume():
    assert "skip_nonfinite" not in points_module(Faulty(), skip_nonfinite=3).hparams


def test_the_check_reads_one_number_a_step(tmp_path):
    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    module = points_module(Faulty())
    for parameter in module.net.parameters():
        parameter.grad = torch.ones_like(parameter)
    module.trainer = one = trainer(tmp_path, 1)
    with Reads() as reads:
        module.gradients.before_step(module, one, module.configure_optimizers())
    assert reads.count == 1


@pytest.mark.gpu
def test_of_the_micro_batches_of_a_step_the_last_alone_stays_on_the_gpu(device):
    check, condition = GradientCheck(), Condition(image=torch.ones(2, 1, 8, 8, device=device))
    for k in range(3):
        check.keep(Batch(torch.full((2,), float(k), device=device), condition, torch.arange(2)), k)
    torch.cuda.synchronize()
    places = [(b.x0.device.type, b.condition.image.device.type) for b, _ in check._batches]
    assert places == [("cpu", "cpu"), ("cpu", "cpu"), ("cuda", "cuda")]
    assert [float(b.x0[0]) for b, _ in check._batches] == [0, 1, 2]


# ------------------------------------------------------------------- 16-mixed, by GradScaler


def scaled(start: float) -> MixedPrecision:
    """16-mixed with its GradScaler, which Lightning by itself has on CUDA only."""
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=start))


@pytest.mark.slow
def test_steps_that_a_grad_scaler_skips_are_no_failures(tmp_path, recwarn):
    trail, plugin = Trail(), scaled(2.0**60)
    assert fit_points(tmp_path, 60, callbacks=[trail], plugins=[plugin]) == ""
    assert not [w for w in recwarn if "skipped" in str(w.message)]
    same = [all(torch.equal(b[k], a[k]) for k in b) for b, a in pairwise(trail.seen)]
    assert same[0]  # weights, average and optimizer
    assert not same[-1]
    assert 1 < plugin.scaler.get_scale() < 2.0**60


def test_a_scale_that_collapses_is_said(tmp_path):
    data = Faulty()
    module = points_module(data)
    module.net.blocks[0].linear1 = Infinite(8, 8)
    message = fit_points(tmp_path, 8, data, module, plugins=[scaled(1.0)])
    assert message.startswith("the gradients of step 1 are not finite")
    assert "net.blocks.0.linear1 (Infinite)" in message
    assert "the loss scale of 16-mixed has fallen to 1" in message


@pytest.mark.parametrize(
    ("broken", "layer", "cause"),
    [
        ([*range(64)], None, "the data: x0 of samples"),
        ([], Infinite, "net.blocks.0.linear1 (Infinite)"),
    ],
)
def test_what_no_scale_mends_is_no_search_for_one(tmp_path, broken, layer, cause):
    data = Faulty(broken)
    module = points_module(data)
    if layer:
        module.net.blocks[0].linear1 = layer(8, 8)
    message = fit_points(tmp_path, 2, data, module, plugins=[scaled(2.0**16)])
    assert message.startswith("the gradients of step 1 are not finite")
    assert cause in message
    assert "has fallen" not in message


def test_the_norm_is_that_of_the_gradients_without_their_scale(tmp_path):
    norms = {}
    for fused in (False, True):
        for start in (1.0, 64.0):
            data = Faulty()
            optimizer = partial(torch.optim.Adam, lr=1e-3, fused=fused)
            module = points_module(data, optimizer=optimizer)
            fit_points(tmp_path / f"{fused}{start}", 1, data, module, plugins=[scaled(start)])
            norms[fused, start] = module.gradients.norm
    assert 1e-2 < norms[False, 1.0] < 1e2
    assert list(norms.values()) == pytest.approx([norms[False, 1.0]] * 4, rel=1e-2)


@pytest.mark.filterwarnings("ignore:step . is skipped")
@pytest.mark.parametrize("fused", [False, True])
def test_a_step_is_skipped_at_any_scale(tmp_path, fused):
    data, trail = Faulty([*range(64)]), Trail()
    optimizer = partial(torch.optim.Adam, lr=1e-3, fused=fused)
    module = points_module(data, optimizer=optimizer, skip_nonfinite=5)
    assert fit_points(tmp_path, 4, data, module, [trail], plugins=[scaled(2.0)]) == ""
    assert module.gradients.total == 4
    assert all(torch.equal(trail.seen[0][name], v) for name, v in trail.seen[-1].items())


def test_16_mixed_on_the_cpu_says_that_it_became_bf16_mixed(tmp_path):
    with pytest.warns(UserWarning, match="Using `precision='bf16-mixed'` instead"):
        assert trainer(tmp_path, 1, precision="16-mixed").precision == "bf16-mixed"


@pytest.mark.gpu
def test_16_mixed_on_a_gpu_trains_with_finite_weights(tmp_path):
    trail = Trail()
    run = {"accelerator": "gpu", "devices": 1, "precision": "16-mixed"}
    assert fit_points(tmp_path, 40, callbacks=[trail], **run) == ""
    assert all(v.isfinite().all() for name, v in trail.seen[-1].items() if "_float32" not in name)
    assert not torch.equal(trail.seen[0]["net.out.weight"], trail.seen[-1]["net.out.weight"])


# -------------------------------------------------------------------------- validation


@pytest.mark.parametrize("weights", ["raw", "EMA"])
def test_nan_in_validation_is_said_with_the_weights_and_the_step(tmp_path, weights):
    data = Faulty([3], splits=("val",))
    with pytest.warns(UserWarning, match=f"the loss of the {weights} weights, is nan at step 4"):
        fit_points(tmp_path, 4, data, limit_val_batches=1.0, val_check_interval=4)


def test_only_the_average_is_blamed_where_it_alone_is_nan(tmp_path, recwarn):
    class Spoil(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            with torch.no_grad():
                pl_module.ema.net.out.bias.fill_(float("nan"))

    saved = {"limit_val_batches": 1.0, "val_check_interval": 1}
    data = Faulty()
    one = trainer(tmp_path, 1, callbacks=[Spoil()], enable_checkpointing=False, **saved)
    one.fit(points_module(data), data)
    said = [str(w.message) for w in recwarn if "val/loss" in str(w.message)]
    assert said == ["val/loss_ema, the loss of the EMA weights, is nan at step 1"]


# ---------------------------------------------------------------------------- sampling


def test_samples_that_are_not_finite_name_their_indices_and_the_level():
    module = points_module(Faulty(), schedule=Linear(50))

    class Late(DDIM):
        def step(self, prediction, s, noise):
            x = super().step(prediction, s, noise)
            return torch.where(torch.tensor([[True], [s > 20]]), x, torch.nan)

    with pytest.raises(InputError, match=r"1 of 2 samples .*index 8\): the sampler's step to"):
        module.generate(torch.tensor([3, 8]), Request(Late(5)))
    nn.init.constant_(module.ema.net.out.bias, math.inf)
    with pytest.raises(InputError, match=r"index 3, 8\): the model's prediction at level 50 "):
        module.generate(torch.tensor([3, 8]), Request(DDIM(5)))


# ---------------------------------------------------------------------- two processes


class NaNOnOne(Callback):
    """Gives one process, in one step, a gradient of NaN, before the processes' are averaged.

    Args:
        buffers: Likewise its buffers.
    """

    def __init__(self, buffers: bool = False) -> None:
        self.buffers = buffers

    def on_train_batch_start(self, trainer, pl_module, *_):
        if trainer.global_rank == 1 and trainer.global_step == 2:
            buffers = [*pl_module.net.buffers()] if self.buffers else []

            def spoil(gradient):
                for buffer in buffers:
                    buffer.fill_(math.nan)
                return gradient * math.nan

            self.handle = pl_module.net.blocks[0].linear1.weight.register_hook(spoil)

    def on_train_batch_end(self, *_):
        if hasattr(self, "handle"):
            self.handle.remove()


def run_on_two(folder: Path, fault: str, skip: int) -> None:
    """Train four steps on two processes, with a fault on one; keep what each has seen."""
    data = Faulty([57] if fault == "data" else [])
    module = points_module(data, skip_nonfinite=skip)
    trail = Trail()
    if fault == "buffer":
        module.net.register_buffer("running", torch.zeros(1))
        module.ema.follow(module.net)
    callbacks = [trail] if fault == "data" else [trail, NaNOnOne(fault == "buffer")]
    run = {"devices": 2, "strategy": "ddp"}
    message = fit_points(folder, 6, data, module, callbacks, **run)
    torch.save(trail.seen, folder / f"trail_{module.global_rank}.pt")
    (folder / f"message_{module.global_rank}.txt").write_text(message)


def start_two(folder: Path, fault: str, skip: int = 0) -> tuple[list[str], list[list]]:
    """The messages and the trails of both processes."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "tests.test_numerics", str(folder), fault, str(skip)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    messages = [(folder / f"message_{rank}.txt").read_text() for rank in (0, 1)]
    trails = [torch.load(folder / f"trail_{r}.pt", weights_only=True) for r in (0, 1)]
    return messages, trails


@pytest.mark.slow
def test_two_processes_end_at_once_and_name_the_one_whose_gradient_is_nan(tmp_path):
    messages, trails = start_two(tmp_path, "gradient")
    assert messages[0] == messages[1]
    assert messages[0].startswith("the gradients of step 3 are not finite; the backward pass: the")
    assert "gradient of net.blocks.0.linear1.weight is the first" in messages[0]
    assert "(process 1)" in messages[0]
    assert [len(trail) for trail in trails] == [2, 2]


@pytest.mark.long
def test_two_processes_end_at_once_where_a_buffer_of_one_is_nan(tmp_path):
    messages, _ = start_two(tmp_path, "buffer", skip=3)
    assert messages[0] == messages[1]
    assert messages[0].startswith("step 3 cannot be skipped: net.running (process 1) is not")
    assert "holds NaN since this step's forward pass, or longer (process 1)" in messages[0]


@pytest.mark.long
def test_two_processes_name_the_sample_that_one_of_them_met(tmp_path):
    messages, _ = start_two(tmp_path, "data")
    assert messages[0] == messages[1]
    assert "the gradients of step 5 are not finite; the data: x0 of sample 57" in messages[0]


@pytest.mark.long
def test_two_processes_skip_the_same_step_and_keep_the_same_weights(tmp_path):
    messages, trails = start_two(tmp_path, "gradient", skip=1)
    assert messages == ["", ""]
    for one, two in zip(*trails, strict=True):
        assert all(torch.equal(one[name], two[name]) for name in one)
    for name, value in trails[0][1].items():
        assert torch.equal(trails[0][2][name], value), name
    assert not torch.equal(trails[0][5]["net.out.weight"], trails[0][2]["net.out.weight"])


if __name__ == "__main__":
    run_on_two(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
