"""Self-conditioning: what a network is shown of its own estimates in training and sampling."""

import inspect
from functools import partial

import pytest
import torch
from PIL import Image

from ddpm_lightning import DiffusionModule
from ddpm_lightning.batch import Condition
from ddpm_lightning.commands.edits import Interpolate, edit_images
from ddpm_lightning.diffusion.editing import repaint
from ddpm_lightning.diffusion.guidance import guide
from ddpm_lightning.diffusion.samplers import DDIM, DDPM, AdaptiveODE, Heun
from ddpm_lightning.diffusion.self_conditioning import self_conditioned
from ddpm_lightning.errors import InputError
from ddpm_lightning.networks import AnnotatedUNet, Network
from ddpm_lightning.randomness import BatchNoise, IndexedNoise
from ddpm_lightning.sampling import Request
from tests.dtypes import small_networks, spec_of
from tests.small import (
    TinyUNet,
    assert_same_weights,
    fit,
    image_spec,
    inputs,
    lively,
    randomized,
)

Tiny = partial(AnnotatedUNet, channels=4, multipliers=[1, 2], heads=1, self_conditioning=True)
Blind = partial(AnnotatedUNet, channels=4, multipliers=[1, 2], heads=1)
SHOWN = 1  # a step of seed 0 that is chosen; step 0 is not


CALLS: list[tuple[bool, bool]] = []


class Recorded(AnnotatedUNet):
    """Keeps of every pass in training whether it has a gradient, and whether an estimate."""

    def forward(self, x, c_noise, condition=Condition()):
        if self.training:
            CALLS.append((torch.is_grad_enabled(), condition.estimate is not None))
        return super().forward(x, c_noise, condition)


def module(net=Tiny, **arguments) -> DiffusionModule:
    return lively(DiffusionModule(image_spec(**arguments), net=net, conditional=bool(arguments)))


def noise_of(step: int, *rows: int) -> BatchNoise:
    return BatchNoise(0, step, torch.tensor(rows or (0, 1)), 8)


def estimates(network: Network) -> list[torch.Tensor | None]:
    """The estimates that a network is shown from now on."""
    seen: list[torch.Tensor | None] = []
    network.register_forward_pre_hook(lambda _, given: seen.append(given[2].estimate))
    return seen


# ---------------------------------------------------------------------------- the network


@torch.no_grad()
def test_without_an_estimate_the_network_is_shown_zeros_and_another_changes_its_output():
    net = module().net
    x, t = inputs(2, 1, 8, 8)
    none, zeros, other = (
        net(x, t, Condition(estimate=e)) for e in (None, torch.zeros_like(x), x.flip(0))
    )
    assert torch.equal(none, zeros)
    assert not torch.allclose(none, other)


@torch.no_grad()
def test_the_estimate_is_stacked_behind_x_and_the_conditions_image():
    net = Tiny(image_spec(2, image_channels=1), 2)
    x, _ = inputs(2, 2, 8, 8)
    condition = Condition(image=x[:, :1], estimate=-x)
    assert torch.equal(net.stack_image(x, condition), torch.cat([x, x[:, :1], -x], dim=1))


@torch.no_grad()
@pytest.mark.parametrize("name", small_networks())
def test_any_network_here_takes_the_estimate_by_an_argument_or_in_a_subclass(name):
    net = small_networks()[name]
    shown, arguments = net.func, {**net.keywords, "self_conditioning": True}
    if "self_conditioning" not in inspect.signature(net.func).parameters:
        shown, arguments = type("Shown", (net.func,), {"self_conditioning": True}), net.keywords
    spec = spec_of(name)
    one = randomized(shown(spec, spec.shape[0], **arguments))
    x, t = inputs(2, *spec.shape)
    outputs = [one(x, t, Condition(estimate=e)) for e in (None, x.flip(0))]
    assert [output.shape for output in outputs] == [x.shape] * 2
    assert not torch.allclose(*outputs)


# ------------------------------------------------------------------------------- training


def test_half_of_the_steps_show_the_estimate_to_all_rows_of_all_processes():
    denoiser = module().denoiser("raw")
    x_t, t = inputs(2, 1, 8, 8)[0], torch.tensor([3, 700])

    def is_shown(step, *rows):
        noise = noise_of(step, *rows)
        return self_conditioned(denoiser, x_t, t, Condition(), noise).estimate is not None

    shown = [is_shown(step) for step in range(100)]
    assert 30 <= sum(shown) <= 70  # 4 standard deviations
    assert shown[:20] == [is_shown(step, 5, 6) for step in range(20)]


def test_the_estimate_in_training_is_the_clipped_prediction_without_one_and_has_no_gradient():
    denoiser = module(num_classes=3).denoiser("raw")
    x_t, t, known = inputs(2, 1, 8, 8)[0], torch.tensor([3, 990]), Condition(torch.tensor([0, -1]))
    given = self_conditioned(denoiser, x_t, t, known, noise_of(SHOWN))
    expected = denoiser(x_t, t, known).x0
    assert expected.abs().max() > 1  # so that clipping matters
    torch.testing.assert_close(given.estimate, expected.detach().clamp(-1, 1), rtol=0, atol=0)
    assert not given.estimate.requires_grad
    assert given.label is known.label


def test_a_training_step_is_told_its_estimate_and_only_then(tmp_path):
    CALLS.clear()
    net = partial(Recorded, channels=4, multipliers=[1, 2], heads=1, self_conditioning=True)
    fit(tmp_path, 2, net=net, conditional=False)
    # Step 0 is not chosen, step 1 is: a pass without gradient and estimate comes first.
    assert CALLS == [(True, False), (False, False), (True, True)]


def test_under_autocast_every_weight_learns_at_a_step_that_is_shown_the_estimate():
    one = module()
    denoiser = one.denoiser("raw")
    x_t, t = inputs(2, 1, 8, 8)[0], torch.tensor([3, 700])
    with torch.autocast("cpu", torch.bfloat16):
        known = self_conditioned(denoiser, x_t, t, Condition(), noise_of(SHOWN))
        denoiser(x_t, t, known).output.square().mean().backward()
    assert [name for name, p in one.net.named_parameters() if p.grad is None] == []


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    settings = {"net": Tiny, "conditional": False}
    whole = fit(tmp_path / "whole", 6, **settings)
    fit(tmp_path / "parts", 3, **settings)
    assert_same_weights(fit(tmp_path / "parts", 6, resume=True, **settings), whole)


def test_other_networks_are_not_evaluated_for_an_estimate_and_told_none():
    one = DiffusionModule(image_spec(), net=TinyUNet)
    seen = estimates(one.net)
    given = Condition()
    x_t, t = inputs(2, 1, 8, 8)[0], torch.tensor([3, 700])
    known = self_conditioned(one.denoiser("raw"), x_t, t, given, noise_of(SHOWN))
    assert known is given
    assert seen == []
    one.sample(2, DDIM(3), weights="raw")
    assert seen == [None, None, None]


# ------------------------------------------------------------------------------- sampling


@torch.no_grad()
def test_each_step_is_shown_the_clipped_estimate_of_the_step_before():
    one = module()
    seen = estimates(one.ema.net)
    noise = IndexedNoise(0, torch.arange(2))
    sampler = DDPM(4, clip=(-1, 1))
    states = list(sampler.trajectory(one.denoiser(), noise(0, (1, 8, 8)), noise=noise))
    assert seen[0] is None
    assert max(state.x0.abs().max() for state in states[:-1]) == 1  # clipped
    for state, estimate in zip(states[:3], seen[1:], strict=True):
        assert torch.equal(state.x0, estimate)


@torch.no_grad()
def test_a_corrector_is_shown_the_estimate_of_its_predictor():
    one = module()
    seen = estimates(one.ema.net)
    list(Heun(20).trajectory(one.denoiser(), inputs(2, 1, 8, 8)[0]))
    assert len(seen) > 20
    assert [k for k, estimate in enumerate(seen) if estimate is None] == [0]


@torch.no_grad()
def test_an_adaptive_solver_whose_slope_must_be_a_function_is_shown_none():
    one = module()
    seen = estimates(one.ema.net)
    list(AdaptiveODE(rtol=0.3, atol=0.3).trajectory(one.denoiser(), inputs(2, 1, 8, 8)[0]))
    assert len(seen) > 6
    assert all(estimate is None for estimate in seen)


@torch.no_grad()
def test_under_guidance_both_predictions_are_shown_the_guided_estimate():
    one = module(num_classes=3)
    seen = estimates(one.ema.net)
    known = Condition(torch.tensor([0, 2]))
    guided = guide(one.denoiser(), 2.0)
    states = list(DDIM(3, clip=(-1, 1)).trajectory(guided, inputs(2, 1, 8, 8)[0], known))
    assert torch.equal(seen[1], torch.cat([states[0].x0] * 2))


@torch.no_grad()
def test_two_trajectories_do_not_share_their_estimates():
    one = module()
    first = one.sample(2, DDIM(3))
    assert torch.equal(one.sample(2, DDIM(3)), first)
    torch.testing.assert_close(one.sample(1, DDIM(3)), first[:1])


@torch.no_grad()
def test_painting_everything_anew_is_sampling():
    one = module()
    sampler, x0 = DDPM(5, clip=(-1, 1)), torch.zeros(2, 1, 8, 8)
    noise = IndexedNoise(0, torch.arange(2))
    everything = torch.ones(1, 8, 8, dtype=torch.bool)
    painted = repaint(one.denoiser(), x0, everything, sampler=sampler, resamplings=1, noise=noise)
    *_, last = painted
    expected = sampler(one.denoiser(), noise(0, (1, 8, 8)), noise=noise)
    assert torch.equal(last.x_t, expected)


def test_interpolation_which_needs_steps_that_forget_is_refused(tmp_path):
    for name in ("a", "b"):
        Image.new("L", (8, 8)).save(tmp_path / f"{name}.png")
    edit = Interpolate(tmp_path / "a.png", tmp_path / "b.png")
    few = Request(DDIM(3))
    with pytest.raises(InputError, match=r"inexact with self-conditioning.*--edit SDEdit"):
        edit_images(module(), edit, 3, few)
    assert len(edit_images(module(Blind), edit, 3, few).x) == 3
