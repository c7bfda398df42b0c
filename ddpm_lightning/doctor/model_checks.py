"""Checks of the model: noise at the last level, EMA, dropout, overfitting one batch."""

from __future__ import annotations

import math
import time

import torch
from torch import nn

from ddpm_lightning.doctor.finding import Finding, Run, failed, ok, unknown
from ddpm_lightning.doctor.trial import Trial, most_rows
from ddpm_lightning.progress import show_progress

TERMINAL_SNR = 1e-2
"""Signal-to-noise ratio up to which the last level counts as noise; of DDPM's Linear 4e-5."""

SECONDS = 60.0
"""Time for learning a batch by heart."""

ENOUGH, FEW = 300, 20
"""Steps that are enough for it, and that are too few to begin."""

LEARNED = 0.01
"""Share of the first loss at which the batch counts as learned."""


def terminal_snr(run: Run) -> Finding:
    """Whether the last level is noise, which is where sampling starts (Lin et al. 2024)."""
    schedule = run.module.schedule
    alpha, sigma = float(schedule.alpha[-1]), float(schedule.sigma[-1])
    x0 = run.module.latents(run.batch)
    snr = (alpha / sigma) ** 2 * x0.double().square().mean().item()
    found = f"signal-to-noise ratio {snr:.1e} at level {schedule.T}"
    if snr > TERMINAL_SNR:
        return failed(
            f"{found}, above {TERMINAL_SNR:g}: sampling starts from noise without signal, which "
            "the model is not trained on; use more noise, e.g. ZeroTerminalSNR"
        )
    return ok(found)


def ema_moves(run: Run) -> Finding:
    """Whether the average follows the weights, and lags behind them."""
    trial = Trial(run, 1)
    ema = trial.module.ema
    network = trial.module.net
    before = [[p.clone() for p in net.parameters()] for net in (ema.net, network)]
    for _ in range(2):
        trial.step()
    averages, weights = list(ema.net.parameters()), list(network.parameters())
    if not all(bool(weight.isfinite().all()) for weight in weights):
        return failed("the weights are not finite after two steps; try a smaller learning rate")
    trained = [not torch.equal(a, b) for a, b in zip(weights, before[1], strict=True)]
    moved = [not torch.equal(a, b) for a, b in zip(averages, before[0], strict=True)]
    follow = sum(a and b for a, b in zip(trained, moved, strict=True))
    behind = sum(not torch.equal(a, b) for a, b in zip(averages, weights, strict=True))
    found = f"{follow} of the {sum(trained)} averages whose weights moved in two steps moved, too"
    decay = ema.decay_at(1)
    if follow < sum(trained) / 2:  # rounding may hold back a few
        return failed(f"{found}: the EMA does not follow the network")
    if decay > 0 and not behind:
        return failed(f"{found}, but equal the weights: nothing is averaged")
    return ok(f"{found}; decay {decay:.3g} at step 2, {ema.decay_at(10**9):g} in the end")


def dropout_off(run: Run) -> Finding:
    """Whether two evaluations of the same input are equal, with both kinds of weights."""
    trial = Trial(run, min(2, len(run.batch.x0)))
    for _ in range(2):  # because layers that begin at zero would hide it
        trial.step()
    module = trial.module
    layers = [m for m in module.net.modules() if isinstance(m, nn.Dropout) and m.p > 0]
    module.eval()
    t = torch.full((len(trial.batch.x0),), module.schedule.T // 2 or 1, device=module.device)
    known, x0 = module.known(trial.batch), module.latents(trial.batch)
    for weights in ("ema", "raw"):
        denoiser = module.denoiser(weights)
        with torch.no_grad(), trial.precision.forward_context():
            first, second = (denoiser(x0, t, known).x0 for _ in range(2))
        if not torch.equal(first.nan_to_num(), second.nan_to_num()):
            return failed(f"two evaluations of the {weights} weights differ")
    module.train()
    if on := [m for m in module.ema.net.modules() if m.training]:
        return failed(f"{len(on)} layers of the EMA are in training mode while training")
    return ok(f"two evaluations are equal; {len(layers)} layers of dropout are on in training")


def overfits(run: Run) -> Finding:
    """Whether the loss of one batch, with the same noise every time, can be brought down."""
    start = time.perf_counter()
    rows, seconds = most_rows(run, 64, SECONDS / ENOUGH)
    if seconds * FEW > SECONDS:
        return unknown(f"not tried: {seconds:.1f} s a step")
    trial = Trial(run, rows)
    bar = show_progress(range(ENOUGH), desc="overfit one batch", leave=False)
    losses = []
    for _ in bar:
        losses.append(trial.step())
        learned = losses[-1] < LEARNED * losses[0]
        if learned or not math.isfinite(losses[-1]) or time.perf_counter() - start > SECONDS:
            break
    bar.close()
    first, last = losses[0], losses[-1]
    found = f"loss {first:.4g} → {last:.4g} in {len(losses)} steps on {rows} rows"
    if last < 0.5 * first:
        return ok(found)
    if math.isfinite(last) and len(losses) < ENOUGH:
        return unknown(f"{found}, too few to tell")
    return failed(f"{found}: the network does not learn; try another learning rate")
