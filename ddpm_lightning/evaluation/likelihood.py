"""Bits a dimension of real images under a model, with the terms level by level."""

from __future__ import annotations

from pathlib import Path

import torch
from tqdm.auto import tqdm

from ddpm_lightning.data.conditioned import condition_source
from ddpm_lightning.data.identity import identity
from ddpm_lightning.data.in_memory import InMemoryData
from ddpm_lightning.diffusion.bound import decoder_of, variational_bound
from ddpm_lightning.diffusion.denoiser import given
from ddpm_lightning.metrics import Score
from ddpm_lightning.module import DiffusionModule
from ddpm_lightning.plots.figure import write_figure
from ddpm_lightning.plots.terms import terms_figure
from ddpm_lightning.randomness import IndexedNoise, Stream

EVALUATIONS = 32
"""Network evaluations an image: one level of each of as many strata."""


def bits_per_dimension(
    module: DiffusionModule,
    data: InMemoryData,
    ema: bool,
    seed: int,
    batch_size: int,
    out: Path,
) -> Score:
    """Bound −log p of the whole test split (DDPM eq. 5) and draw its terms as bound.png.

    Args:
        module: The model.
        data: Its data.
        ema: Averaged weights, or those in training.
        seed: Seed of noise and levels.
        batch_size: Images at a time.
        out: Folder for the picture.

    Returns:
        The mean over images with its standard error; its parts are the terms and their edges, as
        of :class:`~ddpm_lightning.diffusion.bound.Bound`.
    """
    x0, y = data.finished("test")
    source = condition_source(data, module.condition_channels)
    condition = None if source is None else source.conditions("test")
    bounds = [
        variational_bound(
            given(
                module.denoiser(ema),
                None if condition is None else condition[index].to(module.device),
            ),
            x0[index].to(module.device),
            IndexedNoise(seed, index, Stream.LIKELIHOOD, module.device),
            y[index].to(module.device) if module.num_classes is not None else None,
            clip=module.data_range,
            evaluations=EVALUATIONS,
        )
        for index in tqdm(torch.arange(len(x0)).split(batch_size), desc="bound", leave=False)
    ]
    terms = torch.cat([bound.terms.cpu().double() for bound in bounds])
    means, edges = terms.mean(0).tolist(), bounds[0].edges
    write_figure(out / "bound.png", terms_figure(means, edges, f"{bounds[0].unit} a dimension"))
    total = terms.sum(1)
    return Score(
        float(total.mean()),
        "bpd",
        smaller_is_better=True,
        error=float(total.std()) / len(total) ** 0.5,
        settings={
            "data": identity(data),
            "split": "test",
            "count": len(total),
            "evaluations": len(edges) - 1,
            "T": module.schedule.T,
            "decoder": decoder_of(module.data_range).describe(),
        },
        parts={"edges": edges, "terms": means},
    )
