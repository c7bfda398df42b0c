"""Shift and scale of a codec's latents, measured on training data, and who has made latents."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer

from ddpm_lightning.batch import Moments
from ddpm_lightning.codecs.codec import Codec, Identity
from ddpm_lightning.data.cached_latents import CachedLatents
from ddpm_lightning.data.data_module import DiffusionData, RawBatch
from ddpm_lightning.data.wrapper import layers
from ddpm_lightning.errors import InputError

MOST, AT_A_TIME = 4096, 64
"""Training samples that are measured, spread evenly over the split, and how many at a time."""


def measure_scale(codec: Codec, trainer: Trainer) -> None:
    """Measure shift and scale at the start of a new run, on the first process for all.

    A checkpoint that is resumed is restored before, because its codec is measured.

    Raises InputError: The data is of no module that can give samples outside training, or its
    latents are not finite.
    """
    if isinstance(codec, Identity) or bool(codec.measured):
        return
    data: Any = getattr(trainer, "datamodule", None)
    if not isinstance(data, DiffusionData):
        raise InputError(
            f"{type(codec).__name__} measures its latents on a data module of "
            "ddpm_lightning.data; give fit one, or call module.codec.measure before"
        )
    found: Any = None
    if trainer.is_global_zero:
        try:
            codec.measure(_latents_of(codec, data, trainer.strategy.root_device))
            found = codec.shift.cpu(), codec.scale.cpu()
        except InputError as error:  # which the other processes wait for
            found = str(error)
    found = trainer.strategy.broadcast(found)
    if isinstance(found, str):
        raise InputError(found)
    codec.shift.copy_(found[0])
    codec.scale.copy_(found[1])
    codec.measured.fill_(True)


def check_latents(codec: Codec, data: object) -> None:
    """Refuse latents that another codec has made, those read already and those read later.

    Args:
        codec: With its weights, so that a checkpoint that replaces them is restored before.
        data: A data module; one without CachedLatents, itself or inside, passes.

    Raises InputError: The data is latents of another codec.
    """
    for layer in layers(data):
        if isinstance(layer, CachedLatents):
            layer.expect(codec.digest(), type(codec).__name__)


def _latents_of(codec: Codec, data: DiffusionData, device: torch.device) -> Iterator[Moments]:
    source = data.source("train")
    index = np.unique(np.linspace(0, len(source) - 1, min(MOST, len(source))).astype(np.int64))
    chunks = np.array_split(index, -(-len(index) // AT_A_TIME))
    for chunk, (samples, labels) in zip(chunks, source.batches(chunks), strict=True):
        raw = RawBatch(samples.to(device), labels.to(device), torch.from_numpy(chunk))
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            batch = data.finish(raw)
            yield batch.latents or codec.moments(batch.x0.float())
