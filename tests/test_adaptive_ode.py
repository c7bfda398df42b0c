"""The adaptive ODE solver, as a sampler and for the likelihood."""

import json

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from ddpm_lightning import DiffusionModule
from ddpm_lightning.callbacks import Likelihood
from ddpm_lightning.cli import main
from ddpm_lightning.diffusion import VE, VP, Cosine, Linear, RealTimes, Straight, Stratified
from ddpm_lightning.diffusion.flow import adaptive_flow_likelihood, flow_likelihood
from ddpm_lightning.diffusion.guidance import Guidance
from ddpm_lightning.diffusion.oracles import Gaussian, Mixture
from ddpm_lightning.diffusion.runge_kutta import RungeKutta45
from ddpm_lightning.diffusion.samplers import DDIM, AdaptiveODE, Heun
from ddpm_lightning.errors import InputError
from ddpm_lightning.evaluation.sweep import Sweep
from ddpm_lightning.sampling import Request
from tests.core import named, noise_of, normal
from tests.small import tiny_data, tiny_module, trainer
from tests.test_flow_likelihood import MEANS, SPREADS, curved_mixture, exact_nll, points
from tests.test_sampler_order import BOTTOM, exact_flow

SCHEDULES = [VP(), VE(sigma_max=20.0), Cosine(), Straight(), Linear()]


def bent(a, y):
    """A slope that differs from row to row, and along the way."""
    return torch.sin(3 * y) * torch.cos(a)[:, None] - a[:, None] * y.flip(1) / (1 + y**2)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-6, 1e-9])
@pytest.mark.parametrize("end", [4.0, -2.5])
def test_each_row_takes_the_very_steps_of_scipys_rk45(tolerance, end):
    y = 2 * normal(5, 3)
    solver = RungeKutta45(bent, 1.0, y, tolerance, tolerance, 10_000)
    solver.advance(end)
    most = 0
    for row, start in zip(solver.y, y, strict=True):

        def slope(a, state):
            return bent(torch.tensor([a]).double(), torch.from_numpy(state)[None])[0].numpy()

        one = solve_ivp(slope, (1.0, end), start.numpy(), rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(row, one.y[:, -1], rtol=1e-8)
        most = max(most, one.nfev)
    assert solver.evaluations == most


def test_going_on_from_a_place_in_between_keeps_the_accuracy():
    y = normal(4, 3)
    whole, parts = (RungeKutta45(bent, 0.0, y, 1e-8, 1e-8, 10_000) for _ in range(2))
    whole.advance(3.0)
    for place in (0.5, 0.5, 2.0, 3.0):
        parts.advance(place)
    torch.testing.assert_close(parts.y, whole.y, rtol=0, atol=1e-6)


def test_a_slope_without_an_end_is_given_up():
    with pytest.raises(InputError, match="within 100 evaluations; give larger tolerances"):
        RungeKutta45(lambda a, y: y**2, 0.0, torch.ones(1, 1), 1e-6, 1e-6, 100).advance(2.0)


# The sampler


def two_bumps(schedule):
    means = torch.tensor([[-1.0, 0.3], [0.8, 0.5]], dtype=torch.float64)
    return Mixture(schedule, means, torch.tensor([0.02, 0.05]))


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
def test_it_follows_the_exact_flow_to_its_tolerance(schedule):
    oracle = two_bumps(schedule)
    x = schedule.prior_std * normal(20, 2)
    coarse, fine = (AdaptiveODE(rtol=r, atol=r)(oracle, x) for r in (1e-3, 1e-5))
    exact = Heun(None)(oracle, x)  # of all levels, its own error is below 2e-4
    assert float((fine - exact).abs().max()) < 5e-4 < float((coarse - exact).abs().max())


@pytest.mark.slow
def test_on_levels_it_is_the_flow_that_scipy_integrates_without_them():
    schedule = VP()
    oracle = Mixture(
        schedule,
        torch.tensor([[-1.0, 0.5], [1.0, -0.3], [0.2, 1.0]], dtype=torch.float64),
        torch.tensor([0.05, 0.1, 0.08], dtype=torch.float64),
        torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64),
    )
    x = normal(5, 2)
    whole, shown = (AdaptiveODE(steps, rtol=1e-7, atol=1e-7) for steps in (1, 25))
    state = next(s for s in shown.trajectory(oracle, x) if s.t == BOTTOM)
    expected = exact_flow(x, schedule) * schedule.alpha[BOTTOM].item()
    np.testing.assert_allclose(state.x_t, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(state.x0, oracle(state.x_t, BOTTOM).x0, rtol=0, atol=1e-6)
    np.testing.assert_allclose(whole(oracle, x), shown(oracle, x), rtol=0, atol=1e-5)


def test_a_sample_does_not_depend_on_its_batch():
    oracle, x = two_bumps(VP()), normal(30, 2)
    together = AdaptiveODE()(oracle, x)
    torch.testing.assert_close(AdaptiveODE()(oracle, x[3:4]), together[3:4], rtol=0, atol=1e-12)


def test_it_leaves_standard_normal_data_where_it_is():
    x = normal(10, 4)
    samples = AdaptiveODE()(Gaussian(VP(), torch.zeros(4), torch.eye(4)), x)
    torch.testing.assert_close(samples, x, rtol=0, atol=2e-4)  # but for the step from level 1


def test_float32_from_zero_terminal_signal_stays_finite():
    samples = AdaptiveODE(clip=(-1, 1))(two_bumps(Straight()), normal(10, 2).float())
    assert samples.dtype == torch.float32
    assert bool((samples.abs() <= 1 + 1e-5).all())


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"rtol": 0}, "rtol"), ({"atol": -1.0}, "atol"), ({"most": 3}, "most")],
)
def test_settings_out_of_range_are_refused(settings, words):
    with pytest.raises(InputError, match=words):
        AdaptiveODE(**settings)


def test_a_sweep_at_equal_evaluations_refuses_it():
    with pytest.raises(InputError, match="as its tolerance asks for"):
        Sweep(samplers=[AdaptiveODE()]).points(Linear())


@pytest.mark.slow
def test_sample_prints_what_it_cost(tiny_checkpoint, tmp_path, capsys):
    words = ["sample", f"--ckpt={tiny_checkpoint}", "--n=2", "--device=cpu"]
    main([*words, f"--out={tmp_path / 'ddim'}", "--sampler=DDIM", "--sampler.steps=4"])
    assert "NFE 4 each" in capsys.readouterr().out
    flags = ["--sampler=AdaptiveODE", "--sampler.rtol=0.01", "--sampler.atol=0.01"]
    main([*words, f"--out={tmp_path / 'ode'}", *flags])
    evaluations = float(capsys.readouterr().out.split("NFE ")[1].split()[0])
    assert evaluations >= 8
    assert evaluations % 6 == 2  # two to start, and six a step


def test_guidance_counts_twice(lively_checkpoint):
    module = DiffusionModule.load_from_checkpoint(lively_checkpoint)
    plain, guided = (
        module.generate(torch.arange(2), Request(DDIM(3), guidance=scale)).evaluations
        for scale in (1.0, 2.0)
    )
    assert (plain, guided) == (3, 6)


# The likelihood


def test_its_likelihood_is_exact_to_its_tolerance():
    x = points()
    oracle = Mixture(Straight(), MEANS, SPREADS)
    errors, cost = [], []
    for tolerance in (1e-3, 1e-5, 1e-7):
        flow = adaptive_flow_likelihood(oracle, x, noise_of(len(x)), tolerance=tolerance)
        errors.append(np.abs(flow.nll.numpy() - exact_nll(x.numpy())).max())
        cost.append(flow.evaluations)
    assert errors[2] < 3e-5 < errors[1] < 1e-3 < errors[0]
    assert cost[0] < cost[1] < cost[2] < 200


def test_its_probes_are_those_of_fixed_steps():
    oracle, x = curved_mixture(6)
    fixed = flow_likelihood(oracle, x, noise_of(60), bins=256, probes=3)
    adaptive = adaptive_flow_likelihood(oracle, x, noise_of(60), bins=256, probes=3)
    assert adaptive.unit == "bits"
    torch.testing.assert_close(adaptive.nll, fixed.nll, rtol=0, atol=2e-2)
    torch.testing.assert_close(adaptive.standard_error, fixed.standard_error, rtol=0, atol=2e-2)


def test_test_measures_it_and_says_what_it_cost(tmp_path, capsys):
    callback = Likelihood(0, flow_n=2, flow_tolerance=1e-2)
    run = trainer(tmp_path, 1, callbacks=[callback], limit_test_batches=1)
    run.test(tiny_module(), tiny_data(), verbose=False)
    printed = capsys.readouterr().out
    (result,) = json.loads((tmp_path / "metrics.json").read_text())
    assert result["settings"]["tolerance"] == 1e-2
    assert f"{result['value']:.4f}" in printed
    assert int(printed.split("NFE ")[1].split()[0]) > 8


def test_its_likelihood_starts_at_the_lowest_time_learned():
    # The data is narrower than the noise of level 1, whose sigma is 0.03.
    schedule = VP(100)
    means = torch.tensor([[0.5, 0.5], [-0.5, -0.2]], dtype=torch.float64)
    oracle = Mixture(schedule, means, torch.tensor([0.005**2] * 2))
    x = means[torch.arange(100) % 2] + 0.005 * normal(100, 2)
    exact = -oracle.log_density(x, 0).mean() / 2
    at_level, at_time = (
        adaptive_flow_likelihood(oracle, x, noise_of(100), lowest=lowest).nll.mean()
        for lowest in (1, Stratified(RealTimes(1e-5)).lowest(schedule))
    )
    assert abs(at_time - exact) < 0.1 < abs(at_level - exact)


def test_a_guidance_interval_is_refused_with_it():
    with pytest.raises(InputError, match=r"leave out --guidance\.interval"):
        Request(AdaptiveODE(), Guidance(2.0, (0.2, 0.8)))
