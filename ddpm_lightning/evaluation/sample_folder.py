"""Samples of a checkpoint on disk, so that a stopped evaluation goes on where it was."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ddpm_lightning.checkpoint import weights_digest
from ddpm_lightning.configurable import plain
from ddpm_lightning.diffusion.denoiser import Guidance
from ddpm_lightning.diffusion.samplers import Sampler
from ddpm_lightning.errors import InputError
from ddpm_lightning.files import PARTIAL, write_json
from ddpm_lightning.images import to_uint8, write_png
from ddpm_lightning.module import DiffusionModule

SETTINGS = "samples.json"
"""Name of the file beside the images that says how they were drawn."""


@dataclass(frozen=True)
class Drawing:
    """How samples are drawn from a checkpoint: all that decides image k, and not how many.

    Args:
        sampler: The sampler.
        guidance: Classifier-free guidance.
        labels: int64 [M] labels, repeated along the index; None: without, or one class after the
            other.
        ema: Averaged weights, or those in training.
        seed: Seed of the noise.
        condition: float32 [M, K, H, W] images for a model that is given one beside x_t, repeated
            along the index; None for any other.
        condition_of: Where these images come from, as plain data.
    """

    sampler: Sampler
    guidance: Guidance
    labels: Tensor | None
    ema: bool
    seed: int
    condition: Tensor | None = None
    condition_of: dict[str, Any] | None = None

    def settings(self, module: DiffusionModule) -> dict[str, Any]:
        """State it as plain data, with the digest of the weights and not the checkpoint's name."""
        denoiser = module.denoiser(self.ema)
        guidance = {f"guidance_{name}": value for name, value in asdict(self.guidance).items()}
        return plain(
            {
                "network": weights_digest(denoiser.net),
                "schedule": module.schedule,
                "parameterization": module.parameterization,
                "variance": module.variance,
                "sampler": self.sampler.clipped(module.data_range),
                **guidance,
                "labels": None if self.labels is None else _stated(self.labels.long()),
                "condition": self.condition_of,
                "weights": "ema" if self.ema else "raw",
                "seed": self.seed,
            },
            "settings",
        )


def _stated(labels: Tensor) -> list[int] | str:
    """State a short list of labels as it is, a long one by its digest."""
    if len(labels) <= 100:
        return labels.tolist()
    return "sha256 " + hashlib.sha256(labels.contiguous().numpy().tobytes()).hexdigest()


def draw_into(
    folder: Path,
    module: DiffusionModule,
    drawing: Drawing,
    n: int,
    batch_size: int = 256,
    progress: bool = True,
) -> None:
    """Draw samples 0…n−1 as PNG files into a folder, but for those that are there already.

    Args:
        folder: New, empty, or holding samples of the very same drawing.
        module: The model, on its device.
        drawing: How to draw.
        n: Number of samples.
        batch_size: Samples at a time: the most that a stop loses.
        progress: Show a bar, with the time left.

    Raises:
        InputError: The folder holds something else.
    """
    _claim(folder, drawing.settings(module))
    files = [folder / f"{k:06d}.png" for k in range(n)]
    batches = torch.arange(n).split(batch_size)
    todo = [batch for batch in batches if not all(files[k].is_file() for k in batch.tolist())]
    remaining = sum(map(len, todo))
    with tqdm(total=n, initial=n - remaining, desc="samples", disable=not progress) as bar:
        for batch in todo:
            images = module.generate(
                batch,
                drawing.sampler,
                drawing.labels,
                drawing.guidance,
                drawing.seed,
                drawing.ema,
                drawing.condition,
                batch_size=batch_size,
                progress=progress,
            ).x
            for k, image in zip(batch.tolist(), to_uint8(images), strict=True):
                write_png(files[k], image)
            bar.update(len(batch))


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    path = folder / SETTINGS
    if path.is_file():
        try:
            found = json.loads(path.read_text())
        except ValueError as error:
            raise InputError(f"{path} is damaged ({error}); remove {folder}") from error
        differing = [key for key in settings if found.get(key) != settings[key]]
        if differing:
            raise InputError(
                f"{folder} holds samples that were drawn with another {', '.join(differing)}; "
                "choose another --out, or remove it"
            )
        return
    # A stop just here leaves nothing but the file's beginning.
    others = (file for file in folder.glob("*") if file.name != SETTINGS + PARTIAL)
    if folder.exists() and (not folder.is_dir() or any(others)):
        raise InputError(f"{folder} holds other files; choose another --out")
    write_json(path, settings)
