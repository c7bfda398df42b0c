"""The analytic_variance command: how far off the prediction of x0 is, level by level."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddpm_lightning.batch import Condition
from ddpm_lightning.checkpoint import weights_digest
from ddpm_lightning.diffusion.denoiser import Denoises
from ddpm_lightning.errors import at_least
from ddpm_lightning.files import atomic_write, check_folder
from ddpm_lightning.loaded import DataPlace, Loaded
from ddpm_lightning.processes import Processes
from ddpm_lightning.progress import show_progress
from ddpm_lightning.randomness import IndexedNoise, Stream, check_seed
from ddpm_lightning.sampling import Weights


def analytic_variance(
    ckpt: Path,
    data: DataPlace = DataPlace(),
    n: int = 64,
    seed: int = 0,
    batch_size: int = 256,
    weights: Weights = "ema",
    device: str = "auto",
) -> None:
    """Estimate the optimal reverse variance of a checkpoint (Analytic-DPM, Bao et al. 2022).

    Measures the mean squared error of x0_hat at every level on training data and stores the table
    beside the checkpoint, as NAME.x0_error.npz, for sampling by DDPM in few steps:
    sample --variance AnalyticVariance --variance.table FILE. It holds for these weights, without
    guidance; after further training, sample refuses it: estimate it anew.

    Args:
        ckpt: The checkpoint; it describes its model and data itself. Of a model that comes with
            the package (mnist_quick) the table goes into the working directory.
        data: Where the data is now, if it has moved.
        n: Training samples per level; the work is n × T evaluations of the network.
        seed: Seed of noise and choice of samples.
        batch_size: Samples at a time.
        weights: ema (averaged) or raw (as the optimizer left them).
        device: cpu, cuda, cuda:1, mps, or auto.

    Raises:
        InputError: The checkpoint, its folder, its data or a setting does not work.
    """
    check_seed(seed)
    at_least(1, n=n, batch_size=batch_size)
    first = Processes.current().first
    if first:
        check_folder(ckpt.parent)
    loaded = Loaded.read(ckpt, data, device)
    module = loaded.module
    denoiser = module.denoiser(weights)
    batch = loaded.data.finished("train")
    if batch.latents is None:
        encoded = module.codec.encode_all(batch.x0, batch_size, module.device)
    else:
        encoded = module.codec.scaled(batch.latents.to(module.device)).cpu()
    table = x0_errors(
        denoiser,
        encoded,
        module.known(batch),
        n=n,
        data_range=module.latent.data_range,
        seed=seed,
        batch_size=batch_size,
        device=module.device,
    )
    if not first:
        return
    path = ckpt.with_suffix(".x0_error.npz")
    network = weights_digest(denoiser.net)
    with atomic_write(path) as partial, partial.open("wb") as file:
        np.savez(file, x0_error=table.numpy(), n=n, seed=seed, weights=weights, network=network)
    T = module.schedule.T
    levels = sorted({1, *(max(1, round(share * T)) for share in (0.05, 0.25, 0.5, 0.75, 1))})
    print("mean squared error of x0_hat: " + ", ".join(f"t={t}: {table[t]:.4g}" for t in levels))
    print(
        f"{path} holds the table. Sample with it: python -m ddpm_lightning sample --ckpt {ckpt} "
        "--out FOLDER --sampler DDPM --sampler.steps 50 --variance AnalyticVariance "
        f"--variance.table {path}"
    )


@torch.no_grad()
def x0_errors(
    denoiser: Denoises,
    x0: Tensor,
    condition: Condition = Condition(),
    *,
    n: int = 64,
    data_range: tuple[float, float] | None = None,
    seed: int = 0,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Measure the mean squared error of x0_hat at every level, clipped as in sampling.

    float64 [T + 1] on the CPU, 0 at level 0, from n samples of the data x0 [N, ...] a level, each
    with noise of its own. The denoiser is in evaluation mode; batch_size changes memory only. Of
    several processes that share the work the first has the result.
    """
    T = denoiser.schedule.T
    processes, work = Processes.current(), torch.arange(n * T)
    own = processes.share(n * T, batch_size)
    errors = [torch.empty(0, dtype=torch.float64)]
    order = torch.randperm(len(x0), generator=torch.Generator().manual_seed(seed))
    with show_progress(
        total=len(own),
        desc="x0_hat at every level",
        unit="sample",
        leave=False,
        disable=not processes.first,
    ) as bar:
        for index in own.split(batch_size):
            t = 1 + index // n
            chosen = order[index % len(x0)]
            x = x0[chosen].to(device)
            noise = IndexedNoise(seed, index, Stream.VALIDATION, device)
            x_t = denoiser.schedule.add_noise(x, t.to(device), noise(0, tuple(x.shape[1:])))
            beside = condition.rows(chosen).to(device)
            prediction = denoiser(x_t, t.to(device), beside).clip(data_range)
            error = (prediction.x0 - x).double().square().flatten(1).mean(1)
            errors.append(error.cpu())
            bar.update(len(index))
    every = processes.gather(torch.cat(errors), n * T, batch_size)
    total = torch.zeros(T + 1, dtype=torch.float64)
    return total.index_add_(0, 1 + work[: len(every)] // n, every) / n
