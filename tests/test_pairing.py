"""Pairing of the noise of a training batch with its samples."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from ddpm_lightning import DiffusionModule
from ddpm_lightning.batch import Batch, Condition, DataSpec
from ddpm_lightning.diffusion import Independent, OptimalTransport
from ddpm_lightning.errors import InputError
from ddpm_lightning.networks import MLP

pytestmark = pytest.mark.core


def cost(x0: torch.Tensor, eps: torch.Tensor) -> float:
    return float((x0 - eps).square().sum())


def test_the_assignment_is_the_cheapest_of_all():
    torch.manual_seed(0)
    x0, eps = torch.randn(5, 2), torch.randn(5, 2)
    cheapest = min(cost(x0, eps[list(order)]) for order in permutations(range(5)))
    assert cost(x0, OptimalTransport()(x0, eps, None)) == pytest.approx(cheapest)


def test_each_class_is_paired_for_itself():
    torch.manual_seed(1)
    x0, eps, label = torch.randn(8, 3), torch.randn(8, 3), torch.tensor([1, 0, 1, -1, 0, 1, -1, 0])
    paired = OptimalTransport()(x0, eps, label)
    for one in (-1, 0, 1):
        rows = label == one
        expected = OptimalTransport()(x0[rows], eps[rows], None)
        torch.testing.assert_close(paired[rows], expected)


def test_training_pairs_and_evaluation_does_not(monkeypatch):
    data = DataSpec((2,), None)
    modules = [DiffusionModule(data, MLP, pairing=p) for p in (Independent(), OptimalTransport())]
    batch = Batch(torch.randn(16, 2), Condition(), torch.arange(16), torch.arange(16))
    seen = {}
    for module in modules:
        t, noise = torch.full((16,), 5), module_noise(module, batch)
        given = module._noised(batch, t, noise, Condition(), module.pairing)
        seen[type(module.pairing)] = given.eps
        plain = module._noised(batch, t, noise, Condition())
        torch.testing.assert_close(plain.eps, noise(0, (2,)))
    x0 = batch.x0
    assert cost(x0, seen[OptimalTransport]) < cost(x0, seen[Independent])


def module_noise(module, batch):
    from ddpm_lightning.randomness import BatchNoise

    return BatchNoise(module.seed, 0, batch.row, len(batch.x0))


def test_the_pairing_is_stored_with_the_model():
    module = DiffusionModule(DataSpec((2,), None), MLP, pairing=OptimalTransport())
    assert module.hparams["pairing"]["class_path"].endswith("diffusion.OptimalTransport")


def test_products_of_the_assignment_are_exact_in_mixed_precision():
    torch.manual_seed(2)
    x0, eps = torch.randn(16, 3), torch.randn(16, 3)
    with torch.autocast("cpu", torch.bfloat16):
        paired = OptimalTransport()(x0, eps, None)
    assert torch.equal(paired, OptimalTransport()(x0, eps, None))


def test_data_that_is_not_finite_is_left_for_the_loss_to_tell():
    x0, eps = torch.full((3, 2), torch.nan), torch.randn(3, 2)
    assert torch.equal(OptimalTransport()(x0, eps, None), eps)


def test_conditions_beside_a_class_are_refused():
    data = DataSpec((3, 8, 8), image_channels=1)
    with pytest.raises(InputError, match="pairs noise within classes"):
        DiffusionModule(data, pairing=OptimalTransport())
