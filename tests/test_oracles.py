"""Exact denoisers against numpy, numerical integration and automatic differentiation."""

import numpy as np
import pytest
import torch
from scipy import stats

from ddpm_lightning.batch import Condition
from ddpm_lightning.diffusion.guidance import Guided
from ddpm_lightning.diffusion.oracles import Empirical, Gaussian, Mixture
from ddpm_lightning.diffusion.prediction import FixedLarge, FixedSmall
from ddpm_lightning.diffusion.samplers import DDIM
from ddpm_lightning.diffusion.schedules import Karras, Linear
from ddpm_lightning.errors import InputError
from tests.core import normal
from tests.small import labels

LINEAR = Linear()
LEVELS = [1, 200, 1000]


MEAN = torch.tensor([1.0, -0.5, 0.25])
FACTOR = normal(3, 3, seed=1)
COV = FACTOR @ FACTOR.T
MEANS, VARIANCES = normal(4, 3, seed=2), torch.tensor([0.1, 0.5, 0.02, 1.0])
WEIGHTS, LABELS = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0, 1, 1, 2])


def gaussian():
    return Gaussian(LINEAR, MEAN, COV)


def mixture(labels=LABELS):
    return Mixture(LINEAR, MEANS, VARIANCES, WEIGHTS, labels)


def empirical():
    return Empirical(LINEAR, MEANS, LABELS)


EVERY = pytest.mark.parametrize("make", [gaussian, mixture, empirical])


@pytest.mark.parametrize("t", LEVELS)
def test_gaussian_is_the_regression_of_x0_on_x_t(t):
    alpha, sigma = LINEAR.alpha[t].item(), LINEAR.sigma[t].item()
    x_t = normal(5, 3)
    mean, cov = MEAN.numpy(), COV.numpy()
    gain = alpha * cov @ np.linalg.inv(alpha**2 * cov + sigma**2 * np.eye(3))
    expected = mean + (x_t.numpy() - alpha * mean) @ gain.T
    np.testing.assert_allclose(gaussian()(x_t, t).x0, expected, atol=1e-10)


def test_a_direction_that_rounding_left_with_a_variance_below_0_has_none():
    # As the covariance of images with constant corners; −1e-6 is a quarter of sigma_1².
    schedule, x = Karras(100), normal(5, 2)
    mean = torch.tensor([1.0, -0.5])
    rounded = Gaussian(schedule, mean, torch.tensor([[1e4, 0.0], [0.0, -1e-6]]))
    sigma2 = schedule.sigma[1].item() ** 2
    assert torch.equal(rounded(x, 1).x0[:, 1], torch.full((5,), -0.5, dtype=torch.float64))
    expected = stats.multivariate_normal(mean, np.diag([1e4 + sigma2, sigma2])).logpdf(x)
    np.testing.assert_allclose(rounded.log_density(x, 1), expected, rtol=1e-12)


@pytest.mark.parametrize("t", [200, 1000])
@pytest.mark.parametrize("y", [None, -1, 0, 1])
def test_mixture_is_the_posterior_mean_by_numerical_integration(t, y):
    means, variances = np.array([-1.0, 0.3, 1.0]), np.array([0.1, 0.05, 0.2])
    weights, labels = np.array([0.2, 0.5, 0.3]), np.array([0, 1, 1])
    oracle = Mixture(LINEAR, *map(torch.tensor, (means[:, None], variances, weights, labels)))
    x_t = np.array([-1.5, 0.1, 0.8])
    x0 = np.linspace(-8, 8, 200_001)
    chosen = weights * (labels == y) if y in (0, 1) else weights
    prior = sum(
        w * stats.norm.pdf(x0, m, np.sqrt(v))
        for w, m, v in zip(chosen, means, variances, strict=True)
    )
    alpha, sigma = LINEAR.alpha[t].item(), LINEAR.sigma[t].item()
    joint = prior * stats.norm.pdf(x_t[:, None], alpha * x0, sigma)
    expected = (joint * x0).sum(1) / joint.sum(1)
    labels_asked = None if y is None else torch.full((3,), y)
    ours = oracle(torch.tensor(x_t)[:, None], t, Condition(labels_asked)).x0[:, 0]
    np.testing.assert_allclose(ours, expected, atol=1e-9)


@pytest.mark.parametrize("t", [1, 300, 1000])
def test_empirical_is_the_softmax_over_the_data(t):
    alpha, sigma = LINEAR.alpha[t].item(), LINEAR.sigma[t].item()
    x_t, data = alpha * MEANS[:2] + sigma * normal(2, 3), MEANS.numpy()
    logits = -((x_t.numpy()[:, None] - alpha * data) ** 2).sum(2) / (2 * sigma**2)
    share = np.exp(logits - logits.max(1, keepdims=True))
    expected = share / share.sum(1, keepdims=True) @ data
    np.testing.assert_allclose(empirical()(x_t, t).x0, expected, atol=1e-10)


@pytest.mark.parametrize("t", [1, 5])
def test_empirical_tells_close_images_apart_in_float32(t):
    # From 26 images on torch prefers the inner-product form of the distance, which in float32
    # cannot tell images 0.002 apart: x0 would be wrong by 2e-4 and more.
    data = 0.9 + 0.002 * torch.arange(31.0).view(-1, 1, 1, 1).expand(-1, 1, 28, 28)
    oracle = Empirical(LINEAR, data)
    noisy = LINEAR.add_noise(data, t, normal(31, 1, 28, 28).float())
    x0 = oracle(noisy, t).x0
    assert x0.dtype == torch.float32
    torch.testing.assert_close(x0.double(), oracle(noisy.double(), t).x0, atol=4e-6, rtol=0)


@pytest.mark.parametrize("t", [0, *LEVELS])
def test_log_densities_are_scipys(t):
    alpha, sigma = LINEAR.alpha[t].item(), LINEAR.sigma[t].item()
    x = normal(5, 3).numpy()
    cov = alpha**2 * COV.numpy() + sigma**2 * np.eye(3)
    expected = stats.multivariate_normal(alpha * MEAN.numpy(), cov).logpdf(x)
    np.testing.assert_allclose(gaussian().log_density(torch.tensor(x), t), expected)
    spreads = alpha**2 * VARIANCES.numpy() + sigma**2
    parts = zip(WEIGHTS.numpy() / 10, alpha * MEANS.numpy(), spreads, strict=True)
    densities = [w * stats.multivariate_normal(m, v * np.eye(3)).pdf(x) for w, m, v in parts]
    ours = mixture().log_density(torch.tensor(x), t)
    np.testing.assert_allclose(ours, np.log(sum(densities)))
    of_1 = mixture().log_density(torch.tensor(x), t, labels(1, 1, 1, 1, 1))
    np.testing.assert_allclose(of_1, np.log(sum(densities[1:3]) / (WEIGHTS[1:3].sum() / 10)))
    unlabelled = mixture(labels=None).log_density(torch.tensor(x), t, labels(1, 1, 1, 1, 1))
    assert torch.equal(unlabelled, ours)


@EVERY
@pytest.mark.parametrize("t", [20, 200, 1000])
@pytest.mark.parametrize("y", [None, [1, 0, -1, 2, 1]])
def test_the_score_is_the_gradient_of_the_log_density(make, t, y):
    oracle, x_t = make(), normal(5, 3).requires_grad_()
    condition = Condition(None if y is None else torch.tensor(y))
    (gradient,) = torch.autograd.grad(oracle.log_density(x_t, t, condition).sum(), x_t)
    level, x_t = oracle.schedule.level(t), x_t.detach()
    tweedie = (level.alpha * oracle(x_t, t, condition).x0 - x_t) / level.sigma**2
    torch.testing.assert_close(tweedie, gradient)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_level_per_row_gives_each_row_its_own(make, dtype):
    oracle, x_t, y = make(), normal(4, 3).to(dtype), Condition(torch.tensor([0, 1, -1, 2]))
    t = torch.tensor([1, 1000, 200, 1])
    x0 = oracle(x_t, t, y).x0
    assert x0.dtype == dtype
    for k in range(4):
        alone = oracle(x_t[k : k + 1], int(t[k]), y.rows(slice(k, k + 1))).x0
        torch.testing.assert_close(x0[k : k + 1], alone)
    assert oracle.log_density(x_t, t, y).shape == (4,)


def test_data_may_have_any_shape():
    images = normal(6, 1, 4, 5)
    flat = Empirical(LINEAR, images.flatten(1))
    x_t = normal(2, 1, 4, 5, seed=3)
    ours = Empirical(LINEAR, images)(x_t, 300).x0
    assert ours.shape == x_t.shape
    assert torch.equal(ours.flatten(1), flat(x_t.flatten(1), 300).x0)
    image = Gaussian(LINEAR, images[0], torch.eye(20))
    assert image(x_t, 300).x0.shape == x_t.shape


def test_an_oracle_can_be_guided_and_sampled_and_states_its_reverse_variance():
    assert mixture().net is None
    assert DDIM(5)(Guided(mixture(), 2.0), normal(2, 3), labels(0, 2)).isfinite().all()
    large = Gaussian(LINEAR, MEAN, COV, FixedLarge())
    for oracle, fixed in ((gaussian(), FixedSmall()), (large, FixedLarge())):
        prediction = oracle(normal(2, 3), 500)
        assert prediction.variance(100) == fixed(prediction, LINEAR.level(100))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gaussian(LINEAR, MEAN, torch.eye(2)), r"give a symmetric \[3, 3\]"),
        (lambda: Gaussian(LINEAR, MEAN, FACTOR), "give a symmetric"),
        (lambda: Mixture(LINEAR, MEANS, VARIANCES[:3]), r"variances of shape \[3\] for 4"),
        (lambda: Empirical(LINEAR, MEANS, LABELS[:2]), r"labels of shape \[2\] for 4"),
        (
            lambda: mixture()(normal(2, 3), 5, labels(0, 7)),
            "has no component",
        ),
    ],
)
def test_tables_that_do_not_fit_are_an_error(make, message):
    with pytest.raises(InputError, match=message):
        make()
