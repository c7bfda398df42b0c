"""The MLP with a tail for each noise level, and the log-variance that it learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ddpm_lightning.batch import DataSpec
from ddpm_lightning.diffusion import LearnedDiagonal, LearnedLogVariance, SohlDickstein
from ddpm_lightning.diffusion.posterior import transition_variance
from ddpm_lightning.diffusion.prediction import Prediction
from ddpm_lightning.errors import InputError
from ddpm_lightning.networks import PerStepMLP
from tests.core import pair
from tests.small import randomized

POINTS = DataSpec((2,))


def random_net(**arguments) -> PerStepMLP:
    return randomized(PerStepMLP(POINTS, 4, **{"width": 8, "tails": 5} | arguments))


def by_hand(net: PerStepMLP, x: np.ndarray, step: int) -> np.ndarray:
    """The layers in numpy, one row."""
    layers = [net.head[0], net.head[2], net.tails[step][0], net.tails[step][2]]
    for layer in layers:
        x = layer.weight.detach().numpy() @ x + layer.bias.detach().numpy()
        x = x if layer is layers[-1] else np.maximum(x, 0)
    return x


def test_each_row_goes_through_the_tail_of_its_level():
    net, steps = random_net(), [4, 0, 2, 4, 2, 2]
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    output = net(x, torch.tensor(steps, dtype=torch.float32))
    expected = [by_hand(net, row.numpy(), step) for row, step in zip(x, steps, strict=True)]
    np.testing.assert_allclose(output.detach(), np.stack(expected), atol=1e-5)


def test_tails_without_rows_have_a_gradient_of_zero():
    net = random_net()
    net(torch.randn(3, 2), torch.tensor([1.0, 1.0, 3.0])).square().sum().backward()
    norms = [float(tail[0].weight.grad.norm()) for tail in net.tails]
    assert [norm > 0 for norm in norms] == [False, True, False, True, False]


def test_it_starts_from_zero():
    assert not PerStepMLP(POINTS, 4)(torch.randn(3, 2), torch.arange(3.0)).any()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: random_net()(torch.zeros(1, 2), torch.tensor([5.0])), "--model.net.tails 40"),
        (lambda: random_net()(torch.zeros(1, 2), torch.tensor([0.5])), "noise coordinates 0, 1"),
        (lambda: random_net()(torch.zeros(1, 2), torch.tensor([-1.0])), "noise coordinates 0, 1"),
        (lambda: random_net(tails=0), "tails"),
        (lambda: PerStepMLP(DataSpec((1, 8, 8)), 2), "--model.net UNet"),
        (lambda: PerStepMLP(DataSpec((2,), num_classes=3), 2), "--model.conditional false"),
    ],
    ids=["level", "between levels", "below", "no tails", "images", "classes"],
)
def test_what_does_not_fit_is_refused(call, words):
    with pytest.raises(InputError, match=words):
        call()


def variance_of(variance, t, s, *extra):
    said = torch.tensor(extra, dtype=torch.float64).view(-1, 1)
    level = SohlDickstein().level(t, like=said)
    zero = torch.zeros_like(said)
    return Prediction(zero, zero, level, variance, extra=said).variance(s)


def test_the_learned_log_variance_is_that_of_the_step():
    np.testing.assert_allclose(
        variance_of(LearnedLogVariance(), 30, 29, -3.0, 0.5).flatten(), np.exp([-3.0, 0.5])
    )


def test_in_units_of_beta_it_is_the_learned_diagonal_on_any_steps():
    schedule = SohlDickstein()
    for t, s in ((40, 39), (40, 20), (20, 0), (1, 0)):
        beta = float(transition_variance(*pair(schedule, t - 1, t)))
        ours = variance_of(LearnedLogVariance(), t, s, np.log(beta) + 0.3)
        np.testing.assert_allclose(ours, variance_of(LearnedDiagonal(), t, s, 0.3), rtol=1e-9)
