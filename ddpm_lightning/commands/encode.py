"""The encode command: the latents of a data set, encoded once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddpm_lightning.batch import Moments
from ddpm_lightning.checkpoint import KEY, read_checkpoint
from ddpm_lightning.codecs import AutoencoderCodec, Codec
from ddpm_lightning.data.cached_latents import Origin, write_latents
from ddpm_lightning.data.data_module import DiffusionData, RawBatch, Split, identity
from ddpm_lightning.data.image_set import ImageSet
from ddpm_lightning.errors import InputError, at_least
from ddpm_lightning.files import check_folder, contents
from ddpm_lightning.loaded import DataPlace, described_data, device_named
from ddpm_lightning.progress import show_progress
from ddpm_lightning.terminal.parser import PROGRAM


def encode(
    out: Path,
    ckpt: Path | None = None,
    data: ImageSet | DataPlace | None = None,
    codec: Codec | None = None,
    batch_size: int = 128,
    device: str = "cpu",
) -> None:
    """Encode a data set's images by an autoencoder, for training that decodes no picture.

    Mean and deviation of every image's latents, of mirrored ones, too, where the data is mirrored
    (--data.flip true), as train, val and test.safetensors.

    Args:
        out: A new or empty folder.
        ckpt: The checkpoint of an autoencoder that fit has trained.
        data: The images, e.g. --data MNIST --data.root FOLDER. Default: those that the autoencoder
            was trained on, for which --data.root alone says where they are now.
        codec: Another codec in place of ckpt, e.g. --codec DiffusersAutoencoder.
        batch_size: Images at a time.
        device: cpu, cuda, cuda:1, mps, or auto.

    Raises:
        InputError: The checkpoint, the folder, the data or a setting does not work.
    """
    at_least(1, batch_size=batch_size)
    if (ckpt is None) == (codec is None):
        raise InputError("encode by what? Give --ckpt AUTOENCODER or --codec CLASS, one of them")
    if out.is_dir() and contents(out):
        raise InputError(f"{out} is not an empty folder; choose another, or remove it")
    check_folder(out)
    target, codec = device_named(device), codec or AutoencoderCodec(ckpt)
    images = data if isinstance(data, DiffusionData) else _data_of(ckpt, data or DataPlace())
    if not isinstance(images, ImageSet) or images.crop_draws:
        raise InputError(
            f"{type(images).__name__} cannot be encoded once: give images that are not cropped at "
            "random and have no condition image, e.g. --data MNIST"
        )
    codec.attach(images.spec)
    codec.to(target)
    origin = Origin(identity(images), codec.digest(), type(codec).__name__)
    splits: tuple[Split, ...] = ("train", "val", "test")
    if empty := [split for split in splits if not len(images.source(split))]:
        raise InputError(
            f"{type(images).__name__} has no {empty[0]} images, and all splits are encoded; let "
            "its settings (--data) leave some for each"
        )
    out.mkdir(parents=True, exist_ok=True)
    for split in splits:
        flips = (False, True) if images.flip and split == "train" else (False,)
        latents, labels = _encoded(codec, images, split, flips, batch_size)
        write_latents(out, split, latents, labels, origin)
    size = latents[0, 0, 0].numel()
    print(f"{out} holds the latents of {identity(images)['class_path']}, {size} numbers an image")
    print(
        f"Train on them: {PROGRAM} fit --config CONFIG --data CachedLatents --data.folder {out} "
        "--data.data NAME (the same data and its settings)"
    )


def _data_of(ckpt: Path | None, place: DataPlace) -> DiffusionData:
    if ckpt is None:
        raise InputError("which data? Give --data NAME, e.g. --data MNIST --data.root FOLDER")
    return described_data(ckpt, read_checkpoint(ckpt)[KEY]["data"], place)


def _encoded(
    codec: Codec, data: ImageSet, split: Split, flips: tuple[bool, ...], batch_size: int
) -> tuple[Tensor, Tensor]:
    """Latents and labels of a split, as write_latents takes them."""
    source = data.source(split)
    chunks = np.array_split(np.arange(len(source)), -(-len(source) // batch_size))
    latents, labels = [], []
    for moments, classes in show_progress(
        _moments(codec, data, split, flips, chunks), desc=split, total=len(chunks), leave=False
    ):
        stacked = [[m for m in one if m is not None] for one in moments]
        latents.append(torch.stack([torch.stack(one, 1) for one in stacked], 1).cpu())
        labels.append(classes)
    return torch.cat(latents), torch.cat(labels)


@torch.no_grad()
def _moments(
    codec: Codec, data: ImageSet, split: Split, flips: tuple[bool, ...], chunks: list[np.ndarray]
) -> Iterator[tuple[list[Moments], Tensor]]:
    device = next(codec.buffers()).device
    for chunk, (samples, labels) in zip(chunks, data.source(split).batches(chunks), strict=True):
        index, found = torch.from_numpy(chunk), []
        for flip in flips:
            flipped = torch.full((len(chunk),), flip, device=device)
            raw = RawBatch(samples.to(device), labels.to(device), index, flipped)
            found.append(codec.moments(data.finish(raw).x0.float()))
        yield found, labels
