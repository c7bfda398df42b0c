"""FastKernels changes strides and the kind of float32 products, and nothing else."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from ddpm_lightning.callbacks import FastKernels
from tests.small import TinyUNet, fit

Net = partial(TinyUNet, dropout=0.0)


@pytest.fixture(autouse=True)
def precision():
    """Give other tests their precision back."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def is_channels_last(tensor):
    return tensor.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
def test_a_plain_run_goes_on_channels_last_and_back_on_its_way(tmp_path):
    plain = fit(tmp_path / "plain", 6, net=Net)
    fit(tmp_path / "mixed", 3, net=Net)
    optimizers = []

    class Seen(FastKernels):
        def on_train_end(self, trainer, *_):
            optimizers.extend(trainer.optimizers)

    mixed = fit(tmp_path / "mixed", 6, Seen(), resume=True, net=Net)
    moment = optimizers[0].state[mixed.net.stem.weight]["exp_avg"]
    kept = [mixed.net.stem.weight, mixed.ema.net.stem.weight, moment]
    assert all(map(is_channels_last, kept))
    for a, b in zip(mixed.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)


@pytest.mark.slow
def test_a_channels_last_run_goes_on_as_a_plain_one_on_its_way(tmp_path):
    plain = fit(tmp_path / "plain", 6, net=Net)
    fit(tmp_path / "mixed", 3, FastKernels(), net=Net)
    mixed = fit(tmp_path / "mixed", 6, resume=True, net=Net)
    for a, b in zip(mixed.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("name", ["highest", "high"])
def test_the_precision_of_products_is_set(name, tmp_path):
    fit(tmp_path, 1, FastKernels(channels_last=False, float32_matmul_precision=name))
    assert torch.get_float32_matmul_precision() == name
