"""Whole chains against diffusers: every x_t that the network is given, and the sample.

Their schedulers get our float64 levels in place of their float32 tables. Heun and UniPC then agree
to 1e-9; Euler and DPM-Solver++ cast x to float32 in each step whatever they are given, hence 1e-5.
Intended differences, all by their settings: trailing spacing (theirs starts below T by default)
and a last step to clean data (some of theirs stop at level 1).
"""

from functools import partial

import pytest
import torch

from ddpm_lightning.batch import Condition
from ddpm_lightning.diffusion.denoiser import Denoiser
from ddpm_lightning.diffusion.parameterizations import Eps, V
from ddpm_lightning.diffusion.samplers import DPMSolverPP, DPMSolverPPSDE, Euler, Heun, UniPC, heun
from ddpm_lightning.diffusion.schedules import Cosine, Linear
from ddpm_lightning.networks import Network
from tests.core import keyed, named, normal

diffusers = pytest.importorskip("diffusers")

PREDICTION_TYPE = {Eps: "epsilon", V: "v_prediction"}
STEPS = [1, 3, 10, 30, 150]  # theirs treats fewer than 15 in a way of its own; 3 does not divide


class Bends(Network):
    """A smooth function of x and level that keeps what it was given."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x, c_noise, condition=Condition()):
        self.seen.append((int(c_noise[0]), x))
        return torch.tanh(x) + 0.3 * torch.cos(c_noise / 300).view(-1, 1, 1)


def their_run(scheduler, schedule, steps, x_T, noisy):
    """Run their scheduler with our levels: what the network was given, and the sample."""
    net, noise = Bends(), (schedule.sigma / schedule.alpha)
    scheduler.alphas_cumprod = schedule.alpha[1:] ** 2
    scheduler.set_timesteps(steps)
    # sigma/alpha at their timesteps, which count levels from 0; Heun visits all but one twice.
    levels = (scheduler.timesteps.long() + 1).unique().flip(0).tolist()
    table = noise[[*levels, 0]]
    if isinstance(scheduler, diffusers.HeunDiscreteScheduler):
        table = torch.cat([table[:1], table[1:-1].repeat_interleave(2), table[-1:]])
    torch.testing.assert_close(scheduler.sigmas.double(), table, rtol=1e-6, atol=0)
    scheduler.sigmas = table
    # Euler and Heun there work in x/alpha and scale the network's input by alpha.
    if isinstance(scheduler, (diffusers.HeunDiscreteScheduler, diffusers.EulerDiscreteScheduler)):
        x_T = x_T / schedule.alpha[-1]
    x = x_T
    for i, t in enumerate(scheduler.timesteps, start=1):
        given = scheduler.scale_model_input(x, t).double()
        output = net(given, torch.full((2,), float(t), dtype=torch.float64))
        extra = {"variance_noise": keyed(i, (3, 4))} if noisy else {}
        x = scheduler.step(output, t, x, **extra).prev_sample
    return net.seen, x


DPM = partial(
    diffusers.DPMSolverMultistepScheduler, solver_type="midpoint", final_sigmas_type="zero"
)
SDE = partial(DPM, algorithm_type="sde-dpmsolver++")
THEIRS_AND_OURS = {
    "dpm_solver_pp, order 1": (partial(DPM, solver_order=1), partial(DPMSolverPP, order=1), 1e-5),
    "dpm_solver_pp": (partial(DPM, solver_order=2), DPMSolverPP, 1e-5),
    "sde, order 1": (partial(SDE, solver_order=1), partial(DPMSolverPPSDE, order=1), 1e-5),
    "sde": (partial(SDE, solver_order=2), DPMSolverPPSDE, 1e-5),
    "unipc": (
        partial(
            diffusers.UniPCMultistepScheduler,
            solver_order=2,
            solver_type="bh2",
            final_sigmas_type="zero",
        ),
        UniPC,
        1e-9,
    ),
    "heun": (diffusers.HeunDiscreteScheduler, Heun, 1e-9),
    "euler": (diffusers.EulerDiscreteScheduler, Euler, 1e-5),
}


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("schedule", [Linear(), Cosine()], ids=named)
@pytest.mark.parametrize("parameterization", [Eps(), V()], ids=named)
@pytest.mark.parametrize("name", THEIRS_AND_OURS)
def test_a_chain_is_that_of_diffusers(name, parameterization, schedule, steps, monkeypatch):
    # We leave out Heun's correction of a step across most of the noise (20,291 to a few in one
    # step of the cosine schedule), with which diffusers misses the distribution: test_samplers.
    monkeypatch.setattr(heun, "LONG_STEP", float("inf"))
    make, sampler, tolerance = THEIRS_AND_OURS[name]
    scheduler = make(
        timestep_spacing="trailing", prediction_type=PREDICTION_TYPE[type(parameterization)]
    )
    x_T = normal(2, 3, 4)
    their_seen, theirs = their_run(scheduler, schedule, steps, x_T, noisy=name.startswith("sde"))
    net = Bends()
    ours = sampler(steps)(Denoiser(net, schedule, parameterization), x_T, noise=keyed)
    assert [t for t, _ in net.seen] == [t for t, _ in their_seen]
    for (_, a), (_, b) in zip([*net.seen, (0, ours)], [*their_seen, (0, theirs)], strict=True):
        torch.testing.assert_close(a, b.double(), rtol=tolerance, atol=tolerance)
