"""The museum: known failures of public diffusion code, and what this library does instead.

A comment names the failures as they are committed, and the file that tests the rest of them; below
stand the tests, named after the right behaviour. References are closed forms and float64 numpy,
never the library again.
"""

import warnings
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from ddpm_lightning.diffusion.denoiser import Denoiser
from ddpm_lightning.diffusion.label_dropout import LabelDropout
from ddpm_lightning.diffusion.losses import MSE, NoisedBatch, VariationalBound
from ddpm_lightning.diffusion.parameterizations import (
    X0,
    Eps,
)
from ddpm_lightning.diffusion.prediction import FixedLarge, FixedSmall
from ddpm_lightning.diffusion.samplers import (
    DDIM,
    DDPM,
    Levels,
)
from ddpm_lightning.diffusion.schedules import Cosine, Linear
from ddpm_lightning.diffusion.timesteps import Uniform
from ddpm_lightning.diffusion.weightings import MinSNR
from ddpm_lightning.errors import InputError
from ddpm_lightning.networks.layers import ResidualBlock
from tests.core import (
    PARAMETERIZATIONS,
    Says,
    Waves,
    keyed,
    linear_betas,
    named,
    normal,
    sigma_squared,
)
from tests.small import TinyUNet, labels, tiny_data, tiny_module, trainer

# The linear schedule, level 0 first.
BETA = np.concatenate([[0.0], linear_betas()])
VARIANCE = sigma_squared(linear_betas())  # 1 − alpha_bar
ALPHA, SIGMA = np.sqrt(np.cumprod(1 - BETA)), np.sqrt(VARIANCE)


# ---- Levels at the ends ---------------------------------------------------------------------
# The first or last level is never trained: torch.randint(1, T) for tables that count from 0, or
# `t -= 1` in place. A last step is not taken or ends at alpha_bar of the first noisy level, pairs
# end in (0, 0), levels start at T/2, 300 steps become 334, 1 step divides by zero: test_samplers.


@pytest.mark.parametrize("T", [21, 1000])
def test_the_first_and_the_last_level_are_trained_as_often_as_any_other(T):
    quantiles = (torch.arange(7 * T) + 0.5) / (7 * T)
    t, weight = Uniform()(Linear(T), SimpleNamespace(uniform=lambda draw: quantiles))
    assert torch.bincount(t, minlength=T + 1).tolist() == [0] + [7] * T
    assert torch.equal(weight, torch.ones(7 * T))


def test_the_callers_levels_are_not_counted_down_behind_its_back():
    t, x0, eps = torch.tensor([1, 500, 1000]), normal(3, 2), normal(3, 2, seed=1)
    denoiser = Denoiser(Says(0.9 * eps), Linear(), Eps())
    batch = NoisedBatch(x0, eps, t, denoiser.schedule.add_noise(x0, t, eps))
    MSE(MinSNR())(denoiser, batch)
    VariationalBound()(denoiser, batch)
    assert t.tolist() == [1, 500, 1000]


# ---- Tables and their digits ----------------------------------------------------------------
# The tables are plain attributes and stay on the CPU; they are cast with the module, so that
# 1 − alpha_bar is 0 at ten levels in bf16. beta_tilde_3, derived in float32, is off by 1.6e-4:
# test_posterior. They swell checkpoints: test_module.


def test_tables_move_with_the_module_around_them():
    module = nn.ModuleDict({"schedule": Linear()}).to("meta", torch.bfloat16)
    assert {(b.device.type, b.dtype) for b in module.buffers()} == {("meta", torch.float32)}


@pytest.mark.parametrize("cast", [nn.Module.half, nn.Module.bfloat16, nn.Module.double])
def test_casting_the_module_around_them_leaves_the_tables_alone(cast):
    schedule = cast(nn.ModuleDict({"schedule": Linear()}))["schedule"]
    t, one = torch.arange(1001), torch.ones(1001, 1)
    noise, data = schedule.add_noise(0 * one, t, one), schedule.add_noise(one, t, 0 * one)
    np.testing.assert_allclose(noise.flatten(), SIGMA, rtol=1e-6)
    np.testing.assert_allclose(data.flatten(), ALPHA, rtol=1e-6)


def test_half_precision_data_is_noised_and_denoised_in_float32():
    t, x0, eps = torch.arange(1, 11), normal(10, 3).bfloat16(), normal(10, 3, seed=1).bfloat16()
    x_t = Linear().add_noise(x0, t, eps)
    alpha, sigma = ALPHA[1:11, None], SIGMA[1:11, None]
    expected = alpha * x0.double().numpy() + sigma * eps.double().numpy()
    np.testing.assert_allclose(x_t, expected, rtol=0, atol=1e-6)
    prediction = Denoiser(Says(eps), Linear(), Eps())(x_t, t)
    np.testing.assert_allclose(prediction.x0, x0.float(), rtol=0, atol=1e-6)


# ---- Schedules ------------------------------------------------------------------------------
# The linear end points of 1000 levels are kept at T = 200 or 300, where sqrt(alpha_bar_T) is 0.364
# or 0.219: x_T is not noise. Too few levels, betas squared twice, or a cosine that clips them from
# below and at 0.9999: test_schedules.


@pytest.mark.parametrize("T", [21, 200, 300, 4000])
def test_linear_ends_in_noise_at_every_number_of_levels(T):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedule = Linear(T)
    assert float(schedule.alpha[-1] / schedule.sigma[-1]) < 0.01


@pytest.mark.parametrize("T", [200, 300])
def test_a_schedule_that_does_not_end_in_noise_warns_with_the_number(T):
    alpha_bar = np.prod(1 - np.linspace(1e-4, 0.02, T))
    ratio = np.sqrt(alpha_bar / (1 - alpha_bar))
    with pytest.warns(UserWarning, match=f"x_T is not noise.* = {ratio:.3g} "):
        Linear(T, rescale=False)


# ---- Predictions ----------------------------------------------------------------------------
# Coefficients [B] meet [B, C, H, W] without complaint where W = B. x0 is clipped, but the step
# takes the network's eps, or the result is dropped. At the last cosine level an error of eps grows
# 20,291-fold in x0, and without a cap on its betas x0 is a division by alpha_T = 0. Eps at zero
# terminal SNR: test_parameterizations. Min-SNR as a maximum, and with another weight for v:
# test_objectives.


def test_each_row_of_a_batch_is_denoised_at_its_own_level():
    t, x_t, eps = torch.tensor([1, 300, 700, 1000]), normal(4, 2, 4, 4), normal(4, 2, 4, 4, seed=1)
    expected = [(x_t[i] - SIGMA[k] * eps[i]) / ALPHA[k] for i, k in enumerate(t)]
    x0 = Denoiser(Says(eps), Linear(), Eps())(x_t, t).x0
    np.testing.assert_allclose(x0, np.stack(expected), rtol=1e-9)


def test_steps_take_the_clipped_x0_and_the_eps_that_belongs_to_it():
    x_t, eps = normal(2, 4), normal(2, 4, seed=1)
    x0 = np.clip((x_t.numpy() - SIGMA[1000] * eps.numpy()) / ALPHA[1000], -0.25, 0.5)
    eps_of_x0 = (x_t.numpy() - ALPHA[1000] * x0) / SIGMA[1000]
    clipped = Denoiser(Says(eps), Linear(), Eps())(x_t, 1000).clip((-0.25, 0.5))
    np.testing.assert_allclose(clipped.x0, x0, rtol=1e-12)
    np.testing.assert_allclose(clipped.eps, eps_of_x0, rtol=1e-12)
    ddim = DDIM().step(clipped, 500, lambda: 0 * x_t)
    np.testing.assert_allclose(ddim, ALPHA[500] * x0 + SIGMA[500] * eps_of_x0, rtol=1e-9)
    ratio = (ALPHA[1000] / ALPHA[500]) ** 2
    mean = ALPHA[500] * (1 - ratio) * x0 + np.sqrt(ratio) * VARIANCE[500] * x_t.numpy()
    ddpm = DDPM().step(clipped, 500, lambda: 0 * x_t)
    np.testing.assert_allclose(ddpm, mean / VARIANCE[1000], rtol=1e-9)


def test_an_error_of_eps_at_the_last_cosine_level_grows_20291_fold_and_no_more():
    x_t = normal(1, 1)
    for schedule, gain in ((Cosine(), 20_291), (Linear(), 157.4)):
        a, b = (Denoiser(Says(x_t + e), schedule, Eps())(x_t, 1000).x0 for e in (0, 1))
        assert float(a - b) == pytest.approx(gain, rel=5e-4)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS, ids=named)
def test_float32_predictions_are_finite_at_every_cosine_level(parameterization):
    x_t = normal(1000, 2).float()
    free = Denoiser(Says(-x_t), Cosine(), parameterization)(x_t, torch.arange(1, 1001))
    for prediction in (free, free.clip((-1, 1))):
        assert prediction.x0.isfinite().all()
        assert prediction.eps.isfinite().all()


def test_a_network_with_the_wrong_number_of_channels_is_refused_instead_of_broadcast():
    with pytest.raises(InputError, match=r"gives 2 channels.*needs 1"):
        Denoiser(Says(torch.zeros(3, 2, 4, 4)), Linear(), X0())(torch.zeros(3, 1, 4, 4), 5)


# ---- Variance of the reverse step -----------------------------------------------------------
# beta_t where levels are skipped; one draw of noise for all rows. Noise in the last step:
# test_sampler_order. A log-variance for a variance: test_variances. A bound off by T or ln 2,
# without its decoder or infinite with beta_tilde_1 = 0: test_bound and test_likelihood.


@pytest.mark.parametrize(("s", "t"), [(0, 1), (1, 2), (999, 1000), (0, 1000), (400, 700)])
def test_fixed_variances_are_those_of_all_levels_skipped(s, t):
    beta = -np.expm1(np.log1p(-BETA[s + 1 : t + 1]).sum())  # 1 − alpha_bar_t/alpha_bar_s
    expected = {FixedLarge(): beta, FixedSmall(): beta * VARIANCE[s] / VARIANCE[t]}
    for variance, value in expected.items():
        prediction = Denoiser(Says(normal(1, 1)), Linear(), Eps(), variance)(normal(1, 1), t)
        assert prediction.variance(s) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("sampler", [DDPM, partial(DDIM, eta=1.0)], ids=["DDPM", "DDIM(eta=1)"])
@pytest.mark.parametrize("levels", [range(100, -1, -1), [100, 81, 49, 16, 1, 0]], ids=len)
def test_ancestral_sampling_is_the_papers_algorithm_on_all_levels_and_on_some(sampler, levels):
    variance = sigma_squared(linear_betas(100))
    x_T = normal(2, 3)
    expected = x_T.numpy()
    for i, (t, s) in enumerate(pairwise(levels), start=1):
        ratio = np.prod(1 - linear_betas(100)[s:t])  # alpha_bar_t/alpha_bar_s
        eps = np.sin(2 * expected + (t - 1) / 300)
        mean = (expected - (1 - ratio) / np.sqrt(variance[t]) * eps) / np.sqrt(ratio)  # eq. 11
        std = np.sqrt((1 - ratio) * variance[s] / variance[t])
        expected = mean + std * keyed(i, (3,)).numpy()
    ours = sampler(None, spacing=Levels(levels))
    x0 = ours(Denoiser(Waves(), Linear(100), Eps()), x_T, noise=keyed)
    np.testing.assert_allclose(x0, expected, rtol=1e-8, atol=1e-9)


def test_each_row_of_a_batch_gets_noise_of_its_own():
    x_T = torch.zeros(4000, 1, dtype=torch.float64)  # the same for all rows
    std = np.sqrt((1 - (ALPHA[1000] / ALPHA[500]) ** 2) * VARIANCE[500] / VARIANCE[1000])
    torch.manual_seed(0)
    states = list(DDPM(2).trajectory(Denoiser(Says(x_T), Linear(), Eps()), x_T))
    # The standard deviation of 4,000 normal numbers is known to 1.1 %.
    assert float(states[1].x_t.std()) == pytest.approx(std, rel=0.05)


# ---- Guidance -------------------------------------------------------------------------------
# Labels are dropped a batch at a time, and in validation. Scale 0 is conditional, scale 1 + w is
# taken for w, only the first three channels are guided: test_guidance. A label times a mask of 0
# and 1 teaches the first class to be no class: test_networks.


@pytest.mark.slow
def test_labels_are_dropped_row_by_row_at_the_asked_rate_and_in_training_only(tmp_path):
    module = tiny_module(conditional=True, label_dropout=LabelDropout(0.3))
    seen, objective = [], module.objective

    def recording(denoiser, batch):
        seen.append(batch.condition.label)
        return objective(denoiser, batch)

    module.objective = recording
    data = tiny_data(global_batch_size=200, subset=1.0)
    run = trainer(tmp_path, 5, limit_val_batches=None, num_sanity_val_steps=0)
    run.fit(module, data)
    dropped = torch.stack(seen) == -1  # [5, 200]
    # The standard deviation of a share of 0.3 is 0.0145 in 1,000 rows and 0.032 in 200.
    assert abs(dropped.float().mean() - 0.3) < 4 * 0.0145
    assert (dropped.float().mean(1) - 0.3).abs().max() < 4 * 0.032
    seen.clear()
    run.validate(module, data, verbose=False)
    assert len(seen) > 0
    assert (torch.cat(seen) >= 0).all()


# ---- Networks -------------------------------------------------------------------------------
# Dropout is active while sampling, or off ever after; shortcuts start with a variance of 1e-10.
# Output fixed at 3 channels, groups that do not divide, sizes that cannot be halved:
# test_networks.


def test_dropout_is_off_while_sampling_with_guidance_and_on_again_after():
    module = tiny_module(conditional=True, net=partial(TinyUNet, dropout=0.5))
    for parameter in module.net.parameters():
        nn.init.normal_(parameter, std=0.1)
    samples = [module.sample(2, DDIM(3), [0, 1], 2.0, weights="raw") for _ in range(2)]
    assert torch.equal(*samples)
    x = torch.randn(2, 1, 8, 8)
    assert not torch.equal(*(module.net(x, torch.zeros(2), labels(0, 1)) for _ in range(2)))


def test_shortcuts_start_at_full_strength():
    torch.manual_seed(0)
    block = ResidualBlock(64, 128, embedding=8, groups=4)
    out = block(torch.randn(8, 64, 16, 16), torch.randn(8, 8))
    # Glorot: weights of variance 2/(64 + 128), so 64 inputs of variance 1 add up to 2/3.
    assert out.std().item() == pytest.approx(np.sqrt(2 / 3), rel=0.05)
