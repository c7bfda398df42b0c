"""Score matching: what the network predicts, and how the loss is weighted."""

import pytest
import torch

from ddpm_lightning.batch import Condition
from ddpm_lightning.diffusion import (
    MSE,
    VP,
    Denoiser,
    Eps,
    EpsMSE,
    Karras,
    NoisedBatch,
    Score,
    ScoreMSE,
)
from ddpm_lightning.diffusion.oracles import Mixture
from ddpm_lightning.networks import Network
from tests.core import named, normal

T = torch.tensor([1.0, 20.5, 400.0, 999.5], dtype=torch.float64)


class Curve(Network):
    """A function of x, and its multiple by the sigma of a schedule to a power."""

    def __init__(self, schedule, sign=1.0, power=0):
        super().__init__()
        self.schedule, self.sign, self.power = schedule, sign, power
        self.slope = torch.nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def forward(self, x, c_noise, condition=Condition()):
        sigma = self.schedule.level(c_noise + 1, like=x).sigma
        return self.sign * torch.sin(self.slope * x) * sigma**self.power


def noised(schedule):
    x0, eps = normal(len(T), 3), normal(len(T), 3, seed=1)
    return NoisedBatch(x0, eps, T, schedule.add_noise(x0, T, eps))


@pytest.mark.parametrize("schedule", [VP(), Karras()], ids=named)
@pytest.mark.parametrize(
    ("score", "power"), [(Score(), 0), (Score(scaled=False), -1)], ids=["scaled", "plain"]
)
def test_a_score_network_is_an_eps_network_with_the_other_sign(schedule, score, power):
    batch = noised(schedule)
    eps = Denoiser(Curve(schedule), schedule, Eps())(batch.x_t, T)
    other = Denoiser(Curve(schedule, -1.0, power), schedule, score)(batch.x_t, T)
    torch.testing.assert_close(other.x0, eps.x0)
    torch.testing.assert_close(other.eps, eps.eps, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("score", [Score(), Score(scaled=False)], ids=["scaled", "plain"])
def test_weighted_by_sigma_squared_score_matching_is_l_simple_with_its_gradient(score):
    batch = noised(VP())
    power = 0 if score.scaled else -1
    of_eps = Denoiser(Curve(VP()), VP(), Eps())
    of_score = Denoiser(Curve(VP(), -1.0, power), VP(), score)
    losses = MSE()(of_eps, batch)["loss"], MSE(EpsMSE())(of_score, batch)["loss"]
    torch.testing.assert_close(losses[1], losses[0])
    gradients = [
        torch.autograd.grad(loss.sum(), denoiser.net.slope)[0]
        for loss, denoiser in zip(losses, (of_eps, of_score), strict=True)
    ]
    torch.testing.assert_close(gradients[1], gradients[0])


def test_weighted_by_one_it_is_the_squared_error_of_the_score():
    batch, net = noised(VP()), Curve(VP(), -1.0, -1)
    level = VP().level(T, like=batch.x0)
    error = net(batch.x_t, T - 1) + batch.eps / level.sigma
    expected = error.square().mean(1)
    for parameterization, power in ((Score(scaled=False), -1), (Score(), 0)):
        denoiser = Denoiser(Curve(VP(), -1.0, power), VP(), parameterization)
        torch.testing.assert_close(MSE(ScoreMSE())(denoiser, batch)["loss"], expected)


def test_the_targets_mean_is_the_score_of_the_noised_data():
    # Denoising score matching: E[−eps/sigma | x_t] is the gradient of log q(x_t).
    means = torch.tensor([[-1.2], [0.3], [1.1]], dtype=torch.float64)
    oracle = Mixture(VP(), means, torch.tensor([0.02, 0.09, 0.01]))
    x = torch.linspace(-3, 3, 50, dtype=torch.float64)[:, None].requires_grad_()
    for t in (3.5, 200.25, 800.0):
        (score,) = torch.autograd.grad(oracle.log_density(x, t).sum(), x)
        level = VP().level(t)
        c = Score(scaled=False).coefficients(level)
        output = (oracle(x, t).x0 - c.c_skip * x) / c.c_out  # what the best network says
        torch.testing.assert_close(output, score, rtol=1e-6, atol=1e-6)
