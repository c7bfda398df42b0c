"""A survey of a collection: every file decoded, counted and compared with the others."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ddpm_lightning.data.collection import Collection
from ddpm_lightning.data.decoded_files import FEW, Bad, reading, unwarned
from ddpm_lightning.images.decoding import decoded, is_transparent
from ddpm_lightning.images.duplicates import (
    difference_hash,
    near,
    on_white,
    same,
    thumbnail,
)
from ddpm_lightning.images.image_file import FORMATS


class Look(NamedTuple):
    """What a file turned out to be; width and height are those of the upright image."""

    place: int
    kind: str
    mode: str
    width: int
    height: int
    frames: int
    transparent: bool
    length: int
    digest: bytes
    hash: NDArray[np.bool_]
    thumbnail: NDArray[np.uint8]


class _Looks(Dataset[Any]):
    def __init__(self, collection: Collection) -> None:
        self.collection = collection

    def __len__(self) -> int:
        return len(self.collection)

    def __getitem__(self, place: int) -> Look | Bad:
        with unwarned():
            found = reading(self.collection, place, lambda content: look(place, content))
        return {self.collection.names[place]: found} if isinstance(found, str) else found


def look(place: int, content: bytes) -> Look:
    """Decode a file; raise InputError if it is no image, or damaged."""
    upright = decoded(content)
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        kind, mode, transparent = image.format or "", image.mode, is_transparent(image)
        frames = _frames(image)
    exact = upright.convert("RGBA")
    shown = on_white(exact)
    digest = hashlib.sha1(repr(exact.size).encode() + exact.tobytes(), usedforsecurity=False)
    return Look(
        *(place, kind, mode, *upright.size, frames, transparent, len(content), digest.digest()),
        *(difference_hash(shown), thumbnail(shown)),
    )


def _frames(image: Image.Image) -> int:
    """Count the frames; 1 where the file is damaged behind the first, which alone is used."""
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:  # Pillow meets damage with errors of any kind
        return 1


@dataclass(frozen=True, eq=False)
class Survey:
    """What a collection consists of.

    Args:
        collection: The files.
        looks: What the usable ones are, in order.
        bad: What is wrong with the others.
    """

    collection: Collection
    looks: list[Look]
    bad: Bad

    @classmethod
    def of(cls, collection: Collection, workers: int) -> Survey:
        """Decode every file, by worker processes, with a progress bar."""
        looks: list[Look] = []
        bad: Bad = {}
        for found in _looked(collection, workers):
            if isinstance(found, dict):
                bad |= found
            else:
                looks.append(found)
        return cls(collection, looks, bad)

    @cached_property
    def copies(self) -> list[list[str]]:
        """Groups of files of the same pixels, by name."""
        return self._named(same([one.digest for one in self.looks]))

    @cached_property
    def similar(self) -> list[list[str]]:
        """Groups of files that are nearly the same, without copies: the first of each stays."""
        firsts = {one.digest: k for k, one in reversed([*enumerate(self.looks)])}
        kept = sorted(firsts.values())
        if not kept:
            return []
        hashes = np.stack([self.looks[k].hash for k in kept])
        thumbnails = np.stack([self.looks[k].thumbnail for k in kept])
        return self._named([[kept[k] for k in group] for group in near(hashes, thumbnails)])

    @property
    def grey(self) -> bool:
        """Whether no image has a colour."""
        return all((one.thumbnail == one.thumbnail[..., :1]).all() for one in self.looks)

    def _named(self, groups: list[list[int]]) -> list[list[str]]:
        names = self.collection.names
        return [[names[self.looks[k].place] for k in group] for group in groups]


def _looked(collection: Collection, workers: int) -> Iterator[Look | Bad]:
    n = len(collection)
    loader: DataLoader[Any] = DataLoader(
        _Looks(collection),
        batch_size=64,
        num_workers=workers if n > FEW else 0,
        collate_fn=list,
    )
    with tqdm(total=n, desc=f"reading {n:,} images", leave=False, disable=None) as bar:
        for items in loader:
            yield from items
            bar.update(len(items))
