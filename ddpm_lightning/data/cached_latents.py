"""Latents that were encoded once, in place of the images of a data set."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from typing_extensions import override

from ddpm_lightning.batch import Batch, Condition, Moments
from ddpm_lightning.data.data_module import RawBatch, Split, Tensors, identity
from ddpm_lightning.data.image_set import ImageSet
from ddpm_lightning.data.wrapper import DataWrapper
from ddpm_lightning.errors import InputError
from ddpm_lightning.files import atomic_write

KEY = "ddpm_lightning"
"""Entry of a file's metadata that says what was encoded, and by which codec."""


@dataclass(frozen=True)
class Origin:
    """Where latents come from.

    Args:
        data: The data set as plain data, without places; see :func:`identity`.
        codec: Digest of the codec that has encoded it.
        name: Class of that codec.
    """

    data: Any
    codec: str
    name: str


class CachedLatents(DataWrapper, ImageSet):
    """A data set whose images were encoded by the encode command: fit reads no image.

    Mean and deviation of each image's latents, and of the mirrored image's where the data is
    mirrored. The images themselves are read for metrics alone.

    Args:
        data: The images, with the batch size, seed and other settings.
        folder: What encode has written.

    Raises:
        InputError: The folder holds latents of other data, or of no mirrored images.
    """

    def __init__(self, data: ImageSet, folder: Path) -> None:
        super().__init__(data)
        if data.crop_draws:
            raise InputError(
                "CachedLatents: random crops differ in every epoch, so they cannot be encoded "
                "once; leave out the crop (--data.data.crop), or train on the images"
            )
        self.places = (*data.places, "folder")
        self.folder = Path(folder)
        self._sources: dict[Split, Tensors] = {}
        self._origins: dict[Split, Origin] = {}
        self._expected: tuple[str, str] | None = None

    @override
    def prepare_data(self) -> None:
        """Prepare nothing, because latents are read in place of the images."""

    @override
    def source(self, split: Split) -> Tensors:
        if split not in self._sources:
            latents, labels, origin = read_latents(self.folder, split)
            if origin.data != identity(self.data):
                raise InputError(
                    f"{self.folder} holds latents of {origin.data}, not of {identity(self.data)}; "
                    "encode this data into another folder"
                )
            if split == "train" and self.flip and latents.shape[1] == 1:
                raise InputError(
                    f"{self.folder} holds no mirrored images; encode with --data.flip true, or "
                    "train with --data.data.flip false"
                )
            self._check_codec(origin)
            # As bytes, because Lightning casts what it takes for input to the run's precision.
            stored = latents.float().contiguous().view(torch.uint8)
            self._sources[split], self._origins[split] = Tensors(stored, labels), origin
        return self._sources[split]

    def expect(self, digest: str, name: str) -> None:
        """Refuse latents of another codec from now on, and those that were read before.

        Args:
            digest: Digest of the model's codec.
            name: Class of the model's codec.

        Raises:
            InputError: Another codec has made what was read.
        """
        self._expected = digest, name
        for origin in self._origins.values():
            self._check_codec(origin)

    def _check_codec(self, origin: Origin) -> None:
        if self._expected is not None and self._expected[0] != origin.codec:
            raise InputError(
                f"{self.folder} was encoded by another codec than the model's "
                f"{self._expected[1]}; give --data.folder the latents of the model's codec, or "
                "encode them: python -m ddpm_lightning encode --ckpt AUTOENCODER --out FOLDER"
            )

    @override
    def finish(self, raw: RawBatch) -> Batch:
        # [B, 1 or 2 images, 1 or 2 moments, c, h, w]
        stacked = raw.samples.view(torch.float32)
        chosen = stacked[:, 0]
        if raw.flip is not None:
            chosen = torch.where(raw.flip.view(-1, 1, 1, 1, 1), stacked[:, -1], chosen)
        mean = chosen[:, 0]
        latents = Moments(mean, chosen[:, 1] if chosen.shape[1] > 1 else None)
        return Batch(mean, Condition(raw.labels), raw.index, raw.row, latents)


def write_latents(
    folder: Path, split: Split, latents: Tensor, labels: Tensor, origin: Origin
) -> None:
    """Write a split as SPLIT.safetensors.

    Args:
        folder: Where.
        split: Which.
        latents: float [N, 1 or 2 images, 1 or 2 moments, c, h, w]: of the image and its mirror
            image, mean and deviation.
        labels: int64 [N].
        origin: Where they come from.
    """
    metadata = {"format": "pt", KEY: json.dumps(asdict(origin))}
    with atomic_write(folder / f"{split}.safetensors") as partial:
        # Not save_file, because its files are nobody else's to read.
        partial.write_bytes(save({"latents": latents, "labels": labels}, metadata=metadata))


def read_latents(folder: Path, split: Split) -> tuple[Tensor, Tensor, Origin]:
    """Read a split: latents and labels as of :func:`write_latents`, and where they come from.

    Raises InputError: There is no such file, or it is damaged.
    """
    path = folder / f"{split}.safetensors"
    if not path.is_file():
        raise InputError(
            f"no latents at {path}; if they have moved, say where they are now by --data.folder "
            "FOLDER, or encode them: python -m ddpm_lightning encode --ckpt AUTOENCODER --out "
            f"{folder}"
        )
    try:
        with safe_open(path, framework="pt") as file:
            origin = Origin(**json.loads((file.metadata() or {})[KEY]))
            latents, labels = file.get_tensor("latents"), file.get_tensor("labels")
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged, or not of encode ({error}); encode anew") from error
    if latents.ndim != 6 or labels.shape != latents.shape[:1]:
        raise InputError(f"{path} holds latents of shape {list(latents.shape)}; encode anew")
    return latents, labels, origin
