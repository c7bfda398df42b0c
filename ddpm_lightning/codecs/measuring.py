"""Shift and scale of a codec's latents, measured on the training set."""

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
from ddpm_lightning.errors import InputError

MOST, AT_A_TIME = 4096, 64
"""Training samples that are measured, spread evenly over the split, and how many at a time."""


def measure_scale(codec: Codec, trainer: Trainer) -> None:
    """Measure shift and scale at the start of a new run, on the first process for all.

    Raises InputError: The data is of no module that can give samples outside training.
    """
    data: Any = getattr(trainer, "datamodule", None)
    if isinstance(data, CachedLatents) and not data.encoded_by(codec.digest()):
        raise InputError(
            f"{data.folder} was encoded by another codec than this run's {type(codec).__name__}; "
            "encode by the checkpoint that --model.codec.ckpt names"
        )
    if isinstance(codec, Identity) or bool(codec.measured) or trainer.ckpt_path is not None:
        return
    if not isinstance(data, DiffusionData):
        raise InputError(
            f"{type(codec).__name__} measures its latents on a data module of "
            "ddpm_lightning.data; give fit one, or call module.codec.measure before"
        )
    codec.measure(_latents_of(codec, data, trainer.strategy.root_device))
    for buffer in (codec.shift, codec.scale):
        buffer.copy_(trainer.strategy.broadcast(buffer))


def _latents_of(codec: Codec, data: DiffusionData, device: torch.device) -> Iterator[Moments]:
    source = data.source("train")
    index = np.unique(np.linspace(0, len(source) - 1, min(MOST, len(source))).astype(np.int64))
    chunks = np.array_split(index, -(-len(index) // AT_A_TIME))
    for chunk, (samples, labels) in zip(chunks, source.batches(chunks), strict=True):
        raw = RawBatch(samples.to(device), labels.to(device), torch.from_numpy(chunk))
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            batch = data.finish(raw)
            yield batch.latents or codec.moments(batch.x0.float())
