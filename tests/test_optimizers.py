"""Parameter groups without decay, and Muon and AdamW as one optimizer."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from ddpm_lightning import AdamWNoBiasDecay, MuonAdamW
from ddpm_lightning.batch import DataSpec
from ddpm_lightning.checkpoint import read_checkpoint
from ddpm_lightning.errors import InputError
from ddpm_lightning.muon import orthogonal
from ddpm_lightning.networks import MLP, DiT, SmallUNet
from ddpm_lightning.optimization import NetworkParameters
from ddpm_lightning.run_folder import last_checkpoint
from tests.small import TinyUNet, assert_same_weights, fit, image_spec, shown


def step(parameter: nn.Parameter, optimizer: torch.optim.Optimizer, seed: int) -> None:
    """Step with a random gradient."""
    generator = torch.Generator().manual_seed(seed)
    parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


# ------------------------------------------------------------------------- which is which


@pytest.mark.parametrize(
    ("net", "first", "last"),
    [
        (TinyUNet(image_spec(), 1), "stem", "out"),
        (SmallUNet(image_spec(), 1, channels=8), "down0.conv", "out"),
        (DiT(image_spec(), 1, patch=4, width=16, depth=1, heads=2), "stem", "out"),
        (MLP(DataSpec((2,)), 2, width=8), "stem", "out"),
    ],
    ids=["UNet", "SmallUNet", "DiT", "MLP"],
)
def test_hidden_matrices_are_those_between_the_first_and_the_last_layer(net, first, last):
    hidden = {id(one) for one in NetworkParameters(net).hidden}
    others = [name for name, one in net.named_parameters() if id(one) not in hidden]
    assert hidden
    matrices = [one for one in others if net.get_parameter(one).ndim >= 2]
    assert {f"{first}.weight", f"{last}.weight"} <= {*matrices}
    rest = [name for name in matrices if name not in (f"{first}.weight", f"{last}.weight")]
    assert all(name.startswith("embed.") for name in rest)


def test_norms_and_biases_do_not_decay():
    net = TinyUNet(image_spec(), 1)
    optimizer = AdamWNoBiasDecay(NetworkParameters(net), lr=0.1, weight_decay=0.5)
    before = {name: one.detach().clone() for name, one in net.named_parameters()}
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in net.named_parameters():
        decay = 1 - 0.1 * 0.5 if parameter.ndim >= 2 else 1.0
        torch.testing.assert_close(parameter.detach(), decay * before[name])


# ------------------------------------------------------------------------- the steps


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9")
@pytest.mark.parametrize("shape", [(6, 4), (6, 2, 3, 3)], ids=["matrix", "kernel"])
def test_a_hidden_matrix_steps_as_torchs_muon_does_on_its_flat_view(shape, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)  # so that torch's is exact
    ours = nn.Parameter(torch.randn(shape))
    theirs = nn.Parameter(ours.detach().flatten(1).clone())
    optimizer = MuonAdamW([ours], lr=0.02, weight_decay=0.1, momentum=0.9)
    settings = {"weight_decay": 0.1, "momentum": 0.9, "adjust_lr_fn": "match_rms_adamw"}
    reference = torch.optim.Muon([theirs], lr=0.02, **settings)
    for seed in range(3):
        step(ours, optimizer, seed)
        generator = torch.Generator().manual_seed(seed)
        theirs.grad = torch.randn(shape, generator=generator).flatten(1)
        reference.step()
    torch.testing.assert_close(ours.detach().flatten(1), theirs.detach())


@pytest.mark.parametrize("shape", [(3, 5, 8), (2, 8, 5)], ids=["wide", "tall"])
def test_matrices_become_the_quintic_of_their_singular_values(shape):
    matrices = np.random.default_rng(0).standard_normal(shape)
    left, values, right = np.linalg.svd(matrices, full_matrices=False)
    values /= np.sqrt((values**2).sum(axis=1, keepdims=True))
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    expected = left @ (values[:, :, None] * right)
    found = orthogonal(torch.from_numpy(matrices))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-12)
    assert np.all((values > 0.68) & (values < 1.14))


def test_matrices_are_rounded_where_bfloat16_is_multiplied(monkeypatch):
    matrices = torch.randn(3, 8, 12, generator=torch.Generator().manual_seed(0))
    found = []
    for answer in (True, False):
        monkeypatch.setattr(
            "ddpm_lightning.muon._multiplies_bfloat16", lambda _, is_so=answer: is_so
        )
        found.append(orthogonal(matrices))
    exact = orthogonal(matrices.double())
    assert [one.dtype for one in found] == [torch.float32] * 2
    rounded, plain = (float((one - exact).abs().max()) for one in found)
    assert plain < 1e-5 < rounded < 0.1


@pytest.mark.parametrize("stack", [2**22, 48, 1])
def test_matrices_of_one_shape_step_as_each_alone(stack, monkeypatch):
    monkeypatch.setattr("ddpm_lightning.muon._multiplies_bfloat16", lambda _: False)
    monkeypatch.setattr("ddpm_lightning.muon.STACK", stack)
    torch.manual_seed(0)
    shapes = [(6, 4), (5, 4, 1, 1), (6, 2, 2, 1), (6, 4)]
    together, alone = ([nn.Parameter(torch.ones(shape)) for shape in shapes] for _ in range(2))
    for parameter in together:
        parameter.grad = torch.randn(parameter.shape)
    MuonAdamW(together, lr=0.1).step()
    for parameter, other in zip(alone, together, strict=True):
        parameter.grad = other.grad
        MuonAdamW([parameter], lr=0.1).step()
        torch.testing.assert_close(parameter, other)


def test_a_kernel_of_another_memory_format_steps_alike():
    torch.manual_seed(0)
    plain = nn.Parameter(torch.randn(6, 2, 3, 3))
    other = nn.Parameter(plain.detach().clone().to(memory_format=torch.channels_last))
    for parameter in (plain, other):
        step(parameter, MuonAdamW([parameter], lr=0.1), seed=0)
    torch.testing.assert_close(plain.detach(), other.detach().contiguous())


def test_a_vector_steps_as_torchs_adamw_does_without_decay():
    ours, theirs = (nn.Parameter(torch.ones(5)) for _ in range(2))
    optimizer = MuonAdamW([ours], lr=0.1, weight_decay=0.5)
    reference = torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.0)
    for seed in range(3):
        step(ours, optimizer, seed)
        step(theirs, reference, seed)
    assert torch.equal(ours, theirs)


# ------------------------------------------------------------------------- runs

RUN = {"optimizer": partial(MuonAdamW, lr=1e-2), "warmup_steps": 4}


@pytest.fixture(scope="module")
def three_steps(tmp_path_factory):
    """The folder of a run of three steps with Muon, in its warm-up."""
    folder = tmp_path_factory.mktemp("muon")
    fit(folder, 3, **RUN)
    return folder


@pytest.mark.slow
def test_a_resumed_run_equals_one_that_never_stopped(three_steps, tmp_path):
    whole = fit(tmp_path / "whole", 6, **RUN)
    resumed = fit(tmp_path / "resumed", 6, resume=last_checkpoint(three_steps), **RUN)
    assert_same_weights(whole, resumed)
    ends = [last_checkpoint(tmp_path / name) for name in ("whole", "resumed")]
    a, b = (read_checkpoint(end, weights=True)["optimizer_states"][0] for end in ends)
    assert a["param_groups"] == b["param_groups"]
    for number, state in a["state"].items():
        for key, value in state.items():
            assert torch.equal(value, b["state"][number][key])


def test_one_schedule_sets_the_rate_of_every_group(three_steps):
    state = read_checkpoint(last_checkpoint(three_steps), weights=True)["optimizer_states"][0]
    assert len(state["param_groups"]) == 3
    (rate,) = {group["lr"] for group in state["param_groups"]}
    assert rate == pytest.approx(1e-2)
    assert {group["muon"] for group in state["param_groups"]} == {True, False}


@pytest.mark.parametrize(
    ("muons", "key"), [(True, "momentum_buffer"), (False, "exp_avg")], ids=["Muon", "AdamW"]
)
def test_a_moment_that_is_missing_is_refused(muons, key, three_steps, tmp_path):
    checkpoint = torch.load(last_checkpoint(three_steps), weights_only=True)
    state = checkpoint["optimizer_states"][0]
    group = next(one for one in state["param_groups"] if one["muon"] is muons)
    del state["state"][group["params"][0]][key]
    checkpoint["ddpm_lightning"].pop("digests", None)
    torch.save(checkpoint, tmp_path / "cut.ckpt")
    with pytest.raises(InputError, match=f"lacks {key}"):
        fit(tmp_path / "run", 6, resume=tmp_path / "cut.ckpt", **RUN)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MuonAdamW", "AdamWNoBiasDecay"])
def test_the_command_line_takes_it_by_its_name(name, capsys):
    flags = ["--model.optimizer", name, "--model.optimizer.weight_decay", "0.1"]
    printed = shown(capsys, "fit", "--config", "digits", *flags, "--print_config")
    optimizer = yaml.safe_load(printed)["model"]["optimizer"]
    assert optimizer["class_path"] == f"ddpm_lightning.{name}"
    assert optimizer["init_args"]["weight_decay"] == 0.1
