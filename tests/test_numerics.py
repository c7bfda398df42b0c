"""Precision: which dtype every operation computes in; steps whose gradients are not finite."""

from __future__ import annotations

import math

import pytest
import torch

from ddpm_lightning.diffusion import (
    L1,
    MSE,
    DiscretizedGaussian,
    Hybrid,
    Huber,
    LearnedRange,
    Linear,
    MinSNR,
    VariationalBound,
)
from ddpm_lightning.diffusion.samplers import DDIM, DDPM, LMS, DPMSolverPP, Euler, Heun, UniPC
from ddpm_lightning.networks.layers import Attention
from tests.dtypes import LOW, lively_module, record_sampling, record_training, small_networks

# What must not round to 8 bits, in the forward and the backward pass.
SENSITIVE = ("norm", "softmax", "var_mean", "sin", "cos", "pow", "exp", "rsqrt", "arange")
IMAGES = [name for name in small_networks() if name != "MLP"]


def low(found: dict[str, set[torch.dtype]], *words: str) -> list[str]:
    """The operations, of names with one of these words, that compute in half precision."""
    named = [op for op in found if any(word in op for word in words)]
    return [op for op in named if found[op] & set(LOW)]


# ----------------------------------------------------------------- dtypes under autocast


@pytest.mark.parametrize("name", small_networks())
def test_norms_softmax_and_tables_of_a_network_compute_in_float32_under_autocast(name):
    inside = record_training(lively_module(name)).inside
    assert "sin" in inside
    assert low(inside, *SENSITIVE) == []


@pytest.mark.parametrize("name", IMAGES)
def test_the_record_holds_the_norm_of_every_network_with_one(name):
    assert any("norm" in op for op in record_training(lively_module(name)).inside)


def test_the_record_holds_the_softmax_of_linear_attention_and_standardized_weights():
    assert "_softmax" in record_training(lively_module("UNet, linear attention")).inside
    assert "var_mean" in record_training(lively_module("UNet, weight_standardized")).inside


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
