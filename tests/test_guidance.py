"""Guidance against the distribution it samples from, its interval and its rescaling."""

import numpy as np
import pytest
import torch
from torch import distributions as dist

from ddpm_lightning.batch import Condition
from ddpm_lightning.diffusion.guidance import ROWS_APART, Guidance, Guided, guide
from ddpm_lightning.diffusion.oracles import Mixture
from ddpm_lightning.diffusion.prediction import FixedSmall, Prediction
from ddpm_lightning.diffusion.samplers import DDIM
from ddpm_lightning.diffusion.schedules import Linear
from ddpm_lightning.errors import InputError
from tests.core import Watched, normal
from tests.small import labels

LINEAR = Linear()
MEANS = torch.tensor([[-1.0, 0.5], [1.0, 0.0], [0.5, -1.0]], dtype=torch.float64)
VARIANCES = torch.tensor([0.1, 0.2, 0.05], dtype=torch.float64)
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
LABELS = torch.tensor([0, 1, 1])
Y = Condition(torch.tensor([0, 1, 1, 0]))


def watched():
    return Watched(Mixture(LINEAR, MEANS, VARIANCES, WEIGHTS, LABELS))


def rows(denoiser):
    """The number of rows of each evaluation."""
    return [len(x_t) for _, x_t in denoiser.seen]


class Two:
    """Predicts one array for rows with a label and another without."""

    net = None

    def __init__(self, conditional, unconditional, schedule=LINEAR):
        self.values, self.schedule = (conditional, unconditional), schedule

    def __call__(self, x_t, t, condition=Condition()):
        parts = (v.repeat(len(x_t) // len(v), *[1] * (v.ndim - 1)) for v in self.values)
        labelled = (condition.label >= 0).view(-1, *[1] * (x_t.ndim - 1))
        x0 = torch.where(labelled, *parts)
        return Prediction(x0, x_t, self.schedule.level(t, x_t), FixedSmall())


def log_density(x, t, chosen):
    """Log q(x_t) of the chosen components, by torch's own distributions."""
    alpha, sigma = LINEAR.alpha[t], LINEAR.sigma[t]
    std = (alpha**2 * VARIANCES[chosen] + sigma**2).sqrt()[:, None].expand(-1, 2)
    components = dist.Independent(dist.Normal(alpha * MEANS[chosen], std), 1)
    return dist.MixtureSameFamily(dist.Categorical(WEIGHTS[chosen]), components).log_prob(x)


@pytest.mark.parametrize("t", [30, 1000])
@pytest.mark.parametrize("guidance", [0.0, 1.0, 3.0, -1.0])
@pytest.mark.parametrize("label", [0, 1])
def test_guidance_follows_the_score_of_the_tilted_distribution(t, guidance, label):
    # q(x_t)·(q(x_t | y) / q(x_t))^guidance: 0 is unconditional, 1 conditional.
    x = normal(6, 2).requires_grad_()
    unconditional = log_density(x, t, LABELS >= 0)
    conditional = log_density(x, t, label == LABELS)
    tilted = unconditional + guidance * (conditional - unconditional)
    (score,) = torch.autograd.grad(tilted.sum(), x)
    oracle = Mixture(LINEAR, MEANS, VARIANCES, WEIGHTS, LABELS)
    prediction = guide(oracle, guidance)(x.detach(), t, Condition(torch.full((6,), label)))
    torch.testing.assert_close(-prediction.eps / LINEAR.sigma[t], score)


# The interval


def test_outside_the_interval_a_step_costs_half():
    denoiser = watched()
    DDIM(10)(guide(denoiser, Guidance(3.0, interval=(0.25, 0.75))), normal(4, 2), Y)
    assert rows(denoiser) == [4, 4, 4, 8, 8, 8, 8, 8, 4, 4]


# Rescaling


@pytest.mark.parametrize("t", [500, torch.tensor([1, 500, 1000])])
@pytest.mark.parametrize("phi", [0.0, 0.7, 1.0])
def test_guidance_of_scale_1_plus_w_and_its_rescaling_are_the_papers(phi, t):
    conditional, unconditional = normal(3, 5, 4, 4), normal(3, 5, 4, 4, seed=1)
    ours = guide(Two(conditional, unconditional), Guidance(4.0, rescale=phi))(
        normal(3, 5, 4, 4, seed=2), t, labels(0, 1, 0)
    )
    for k in range(3):
        cond, null = conditional[k].numpy(), unconditional[k].numpy()
        guided = 4 * cond - 3 * null  # (1 + w)·cond − w·null (Ho & Salimans 2022, eq. 6)
        rescaled = guided * (np.std(cond) / np.std(guided))
        np.testing.assert_allclose(ours.x0[k], phi * rescaled + (1 - phi) * guided, rtol=1e-12)


def test_rescaling_leaves_a_constant_prediction_alone():
    flat = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    ours = guide(Two(2 * flat, flat), Guidance(3.0, rescale=1.0))(flat, 5, labels(0))
    assert torch.equal(ours.x0, 4 * flat)


@pytest.mark.parametrize(
    ("t", "heard"), [(200, Y), (201, Condition()), (800, Condition()), (801, Y)]
)
def test_scale_0_leaves_the_labels_out_at_the_cost_of_one_inside_its_interval(t, heard):
    denoiser, x_t = watched(), normal(4, 2)
    ours = guide(denoiser, Guidance(0.0, interval=(0.2, 0.8)))(x_t, t, Y)
    assert rows(denoiser) == [4]
    assert torch.equal(ours.x0, denoiser.denoiser(x_t, t, heard).x0)


def test_scale_0_with_a_rescale_still_looks_at_the_labelled_prediction():
    labelled, unlabelled = normal(3, 2, 4, 4), 5 * normal(3, 2, 4, 4, seed=1)
    ours = guide(Two(labelled, unlabelled), Guidance(0.0, rescale=1.0))(
        normal(3, 2, 4, 4, seed=2), 500, labels(0, 1, 0)
    )
    spread = labelled.std((1, 2, 3), correction=0)
    torch.testing.assert_close(ours.x0.std((1, 2, 3), correction=0), spread)


def test_scale_1_leaves_the_denoiser_as_it_is():
    denoiser = watched()
    assert guide(denoiser, 1.0) is denoiser
    assert guide(denoiser, Guidance(1.0)) is denoiser
    assert isinstance(guide(denoiser, 2.0), Guided)


@pytest.mark.parametrize(
    ("guidance", "tag"),
    [
        (Guidance(), ""),
        (Guidance(3), "guidance3"),
        (Guidance(1.5, (0.2, 0.8), 0.7), "guidance1.5_interval0.2-0.8_rescale0.7"),
    ],
)
def test_the_tag_names_what_differs_from_no_guidance(guidance, tag):
    assert guidance.tag == tag


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((1.0, (0.2, 0.8)), "another scale"),
        ((1.0, None, 0.7), "another scale"),
        ((3.0, (0.5, 0.5)), "0 ≤ low < high ≤ 1"),
        ((3.0, (0.8, 0.2)), "0 ≤ low < high ≤ 1"),
        ((3.0, (-0.1, 0.5)), "0 ≤ low < high ≤ 1"),
        ((3.0, (0.5, 1.1)), "0 ≤ low < high ≤ 1"),
        ((3.0, None, -0.1), "between 0"),
        ((3.0, None, 1.1), "between 0"),
    ],
)
def test_settings_that_make_no_guidance_are_an_error(settings, message):
    with pytest.raises(InputError, match=message):
        Guidance(*settings)


@pytest.mark.parametrize("T", [40, 100, 1000])
def test_an_interval_in_hundredths_ends_at_whole_levels_however_it_is_asked(T):
    # In floating point 0.29·100 is less than 29, and 0.07·100 is more than 7.
    one = torch.ones(1, 1)
    denoiser, levels = Two(one, -one, Linear(T)), torch.arange(1, T + 1)
    x, y = torch.zeros(T, 1), Condition(torch.ones(T, dtype=torch.int64))
    for hundredths in range(100):
        above = 100 * levels > hundredths * T
        edge = hundredths * T // 100
        for low, high, guided in [(hundredths, 100, above), (0, hundredths, ~above)]:
            if low == high:
                continue
            ours = guide(denoiser, Guidance(2.0, interval=(low / 100, high / 100)))
            together = ours(x, levels, y).x0[:, 0]
            assert torch.equal(together == 3, guided)  # −1 + 2·(1 + 1), elsewhere 1
            for t in {max(edge, 1), edge + 1}:
                assert ours(x[:1], t, y.rows(slice(1))).x0 == together[t - 1]


def test_many_rows_on_a_cpu_are_predicted_in_two_passes_with_the_result_of_one():
    x, y = normal(ROWS_APART, 2), Condition(torch.arange(ROWS_APART) % 2)
    apart, together = watched(), watched()
    found = guide(apart, 3.0)(x, 500, y).x0
    assert rows(apart) == [ROWS_APART, ROWS_APART]
    few = [
        guide(together, 3.0)(x[i : i + 8], 500, y.rows(slice(i, i + 8))).x0 for i in (0, 8, 16, 24)
    ]
    assert rows(together) == [16] * 4
    torch.testing.assert_close(found, torch.cat(few))
