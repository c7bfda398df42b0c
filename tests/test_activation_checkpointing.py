"""Activation checkpointing: the same losses, gradients and averages, with less memory."""

from __future__ import annotations

import pytest
import torch

from ddpm_lightning import EMA
from ddpm_lightning.batch import Condition, DataSpec
from ddpm_lightning.cli import main
from ddpm_lightning.networks import DiT, UNet
from ddpm_lightning.run_folder import last_checkpoint
from tests.small import TinyUNet, tiny_data, tiny_module, trainer
from tests.test_cli import tiny_run

SPEC = DataSpec((1, 8, 8), (-1.0, 1.0), num_classes=10, token_width=6)
UNET = {"channels": 8, "multipliers": [1, 2], "blocks": 1, "attention_levels": [1], "groups": 4}
NETWORKS = {
    "UNet": (UNet, {**UNET, "cross_attention_levels": [1], "dropout": 0.5}),
    "UNet of ConvNeXt blocks": (UNet, {**UNET, "block": "convnext", "dropout": 0.5}),
    "DiT": (DiT, {"patch": 2, "width": 16, "depth": 3, "heads": 2, "cross_attention": True}),
}


def network(name: str, **settings):
    """A network whose every weight matters, and so does every dropout mask."""
    cls, own = NETWORKS[name]
    torch.manual_seed(0)
    net = cls(SPEC, 1, **own, **settings)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net.train()


def losses_and_gradients(net):
    """Two passes one after the other, because the second shows where the generator was left."""
    torch.manual_seed(1)
    x, tokens = torch.randn(4, 1, 8, 8), torch.randn(4, 3, 6)
    mask = torch.ones(4, 3, dtype=torch.bool)
    if not net.takes_tokens:
        tokens = mask = None
    condition = Condition(torch.tensor([0, 1, 2, -1]), None, tokens, mask)
    losses = []
    for _ in range(2):
        losses.append(net(x, torch.full((4,), 7.0), condition).square().mean())
        losses[-1].backward()
    return torch.stack(losses).detach(), [p.grad for p in net.parameters()]


@pytest.mark.parametrize("name", NETWORKS)
def test_losses_and_gradients_are_those_of_a_plain_network(name):
    plain, saving = network(name), network(name, activation_checkpointing=True)
    (losses, gradients), (others, their) = map(losses_and_gradients, (plain, saving))
    torch.testing.assert_close(others, losses, rtol=0, atol=0)
    assert all(gradient is not None for gradient in gradients)
    for one, other in zip(gradients, their, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-7)


def bytes_kept(net) -> int:
    """Memory of all that the backward pass keeps, without the weights."""
    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = net(torch.randn(4, 1, 8, 8), torch.ones(4), Condition(torch.zeros(4).long()))
    assert output.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("name", NETWORKS)
def test_less_than_half_of_the_activations_are_kept(name):
    plain, saving = network(name), network(name, activation_checkpointing=True)
    assert bytes_kept(saving) < 0.5 * bytes_kept(plain)


@pytest.mark.slow
def test_a_run_ends_with_the_same_weights_and_averages(tmp_path):
    states = []
    for saving in (False, True):
        torch.manual_seed(0)
        module = tiny_module(
            net=lambda *spec, on=saving: TinyUNet(*spec, activation_checkpointing=on),
            ema=EMA(0.5),
        )
        trainer(tmp_path / str(saving), 2, callbacks=[]).fit(module, tiny_data())
        states.append(module.state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-5, atol=1e-7)


def saved_network(run):
    return torch.load(last_checkpoint(run), weights_only=True)["hyper_parameters"]["net"]


@pytest.mark.slow
def test_a_run_that_goes_on_may_switch_it_on_and_keeps_it(tmp_path):
    main(["fit", *tiny_run(tmp_path, max_steps=1)])
    assert saved_network(tmp_path)["init_args"]["activation_checkpointing"] is False
    going_on = ["fit", f"--ckpt_path={last_checkpoint(tmp_path)}"]
    main([*going_on, "--trainer.max_steps=2", "--model.net.activation_checkpointing=true"])
    on = saved_network(tmp_path)
    assert on["init_args"]["activation_checkpointing"] is True
    assert on["init_args"]["channels"] == 8
    main([*going_on, "--trainer.max_steps=3"])
    assert saved_network(tmp_path) == on


@pytest.mark.slow
@pytest.mark.parametrize("name", ["UNet", "DiT"])
def test_a_compiled_network_gives_the_same_gradients(name):
    plain, saving = (network(name, activation_checkpointing=on) for on in (False, True))
    for net in (plain, saving):
        for module in net.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0  # a compiled dropout draws other numbers
    compiled = torch.compile(saving._call_impl, backend="aot_eager")
    saving._compiled_call_impl = compiled
    (losses, gradients), (others, their) = map(losses_and_gradients, (plain, saving))
    torch.testing.assert_close(others, losses, rtol=1e-4, atol=1e-5)
    for one, other in zip(gradients, their, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-5)
