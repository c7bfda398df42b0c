"""Bits a dimension of real images under a model, with the terms level by level."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ddpm_lightning.codecs import Identity
from ddpm_lightning.data.data_module import identity
from ddpm_lightning.diffusion.bound import decoder_of, variational_bound
from ddpm_lightning.diffusion.decoders import Decoder
from ddpm_lightning.diffusion.samplers import QuadraticSpacing, Spacing
from ddpm_lightning.errors import InputError
from ddpm_lightning.loaded import Loaded
from ddpm_lightning.metrics import Result, Score
from ddpm_lightning.metrics.jackknife import BLOCKS, means_left_out
from ddpm_lightning.plots.figure import terms_figure, write_figure
from ddpm_lightning.processes import Processes
from ddpm_lightning.progress import show_progress
from ddpm_lightning.randomness import IndexedNoise, Stream
from ddpm_lightning.sampling import Request

EVALUATIONS = 32
"""Network evaluations an image: one level of each of as many strata."""


def bits_per_dimension(loaded: Loaded, request: Request, out: Path) -> list[Result]:
    """Bound −log p of the whole test split (DDPM eq. 5) and draw its terms as bound.png.

    The mean over images with its standard error; its parts are the terms and their edges, as of
    :class:`~ddpm_lightning.diffusion.bound.Bound`. Of several processes that share the work the
    first has this one result, and draws.
    """
    module, data = loaded.module, loaded.data
    if not isinstance(module.codec, Identity):
        raise InputError(
            f"bpd is of pixels, and {loaded.path} works on latents; measure their density in nats "
            f"by test --ckpt_path {loaded.path}, and leave bpd out of --metrics"
        )
    batch, data_range = data.finished("test"), module.data.data_range
    condition, denoiser = module.known(batch), request.denoiser(module)
    processes, n = Processes.current(), len(batch.index)
    batches = batch.index[processes.share(n, request.batch_size)].split(request.batch_size)
    bounds = [
        variational_bound(
            denoiser,
            batch.x0[index].to(module.device),
            IndexedNoise(request.seed, index, Stream.LIKELIHOOD, module.device),
            condition.rows(index).to(module.device),
            clip=data_range,
            evaluations=EVALUATIONS,
        )
        for index in show_progress(batches, desc="bound", leave=False, disable=not processes.first)
    ]
    if not bounds:
        return []
    terms = torch.cat([bound.terms.cpu().double() for bound in bounds])
    terms = processes.gather(terms, n, request.batch_size)
    if not processes.first:
        return []
    means, edges = terms.mean(0).tolist(), bounds[0].edges
    write_figure(out / "bound.png", terms_figure(means, edges, f"{bounds[0].unit} a dimension"))
    total = terms.sum(1)
    decoder, parts = decoder_of(data_range), {"edges": edges, "terms": means}
    settings = bound_settings(data, len(total), edges, QuadraticSpacing(), decoder)
    error = float(total.std()) / len(total) ** 0.5
    left_out = means_left_out(total, request.seed) if len(total) >= 2 * BLOCKS else None
    score = Score(float(total.mean()), error, None, settings, parts, left_out=left_out)
    model = {
        "checkpoint": str(loaded.path),
        "variance": denoiser.variance.describe(),
        "weights": request.weights,
        "seed": request.seed,
    }
    return [Result("bpd", score, model, step=loaded.step)]


def bound_settings(
    data: object, count: int, edges: list[int], spacing: Spacing, decoder: Decoder
) -> dict[str, Any]:
    """State how a bound on ``count`` test samples was measured, as plain data."""
    return {
        "data": identity(data),
        "split": "test",
        "count": count,
        "evaluations": len(edges) - 1,
        "T": edges[-1],
        "spacing": spacing.describe(),
        "decoder": decoder.describe(),
    }
