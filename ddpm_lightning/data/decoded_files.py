"""Decoded images of a collection: read by workers, held in memory, or mapped from a file."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ddpm_lightning.data.collection import Collection
from ddpm_lightning.data.data_module import Tensors
from ddpm_lightning.data.stream import Indices
from ddpm_lightning.errors import InputError
from ddpm_lightning.files import atomic_write, check_folder, exclusive, write_json
from ddpm_lightning.images.decoding import Decoding

CHUNK, CHUNK_BYTES = 512, 2**23
"""Most images, and bytes of them, that a worker decodes at a time."""

FEW = 256
"""So many images are decoded without workers, because those take longer to start."""

VERSION = 1
"""Of the file of decoded images: to be raised if decoding changes."""

Bad = dict[str, str]
"""What is wrong with a file, by its name."""


_Result = TypeVar("_Result")


class _Chunk(NamedTuple):
    images: Tensor
    labels: Tensor
    bad: Bad


class _Images(Dataset[Any]):
    """A chunk of images at a time, by their places; a bad one is black."""

    def __init__(self, collection: Collection, decoding: Decoding) -> None:
        self.collection = collection
        self.decoding = decoding

    def __getitems__(self, places: list[int]) -> _Chunk:
        channels, size = self.decoding.channels, self.decoding.size
        images, bad = np.zeros((len(places), channels, *size), np.uint8), Bad()
        with unwarned():
            for image, place in zip(images, places, strict=True):
                found = reading(self.collection, place, self.decoding.image)
                if isinstance(found, str):
                    bad[self.collection.names[place]] = found
                else:  # by no tensor, which takes a third of the time of a small file
                    pixels = np.frombuffer(found.tobytes(), np.uint8)
                    image[:] = pixels.reshape(*size, channels).transpose(2, 0, 1)
        labels = torch.from_numpy(self.collection.labels[places])
        return _Chunk(torch.from_numpy(images), labels, bad)


@contextmanager
def unwarned() -> Iterator[None]:
    """Hide what Pillow remarks on odd files, which it has read all the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def reading(collection: Collection, place: int, read: Callable[[bytes], _Result]) -> _Result | str:
    """Apply a reader to the bytes of a file; whatever is wrong with it is returned as text."""
    try:
        return read(collection.read(place))
    except InputError as error:
        return str(error)
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return error.strerror or str(error)


@dataclass(frozen=True, eq=False)
class Files:
    """Images decoded as they are needed, by worker processes.

    Args:
        collection: The files.
        decoding: What is made of them.
        workers: Number of processes; 0 decodes in the main one.
    """

    collection: Collection
    decoding: Decoding
    workers: int

    def __len__(self) -> int:
        return len(self.collection)

    def batches(self, indices: Iterable[Indices]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images uint8 [B, C, H, W] and labels int64 [B]; raise InputError at a bad file."""
        for chunk in self._chunks(indices, self.workers):
            if chunk.bad:
                raise bad_files(chunk.bad)
            yield chunk.images, chunk.labels

    def all(self, progress: str) -> Iterator[_Chunk]:
        """Decode every image once, in order, with a progress bar of this title."""
        n = len(self)
        bytes_each = self.decoding.channels * math.prod(self.decoding.size)
        a_worker = n // (8 * max(1, self.workers))  # so that all end at about the same time
        size = max(1, min(CHUNK, CHUNK_BYTES // bytes_each, a_worker))
        chunks = np.split(np.arange(n), range(size, n, size))
        workers = self.workers if n > FEW else 0
        # Nothing is drawn where nobody looks: a log file would get a line per chunk.
        with tqdm(total=n, desc=progress, unit="image", leave=False, disable=None) as bar:
            for chunk in self._chunks(chunks, workers):
                yield chunk
                bar.update(len(chunk.images))

    def bad(self) -> Bad:
        """Decode every image once, to find what is wrong with which."""
        found: Bad = {}
        for chunk in self.all(f"checking {len(self):,} images"):
            found |= chunk.bad
        return found

    def _chunks(self, indices: Iterable[Indices], workers: int) -> Iterator[_Chunk]:
        return iter(
            DataLoader(
                _Images(self.collection, self.decoding),
                batch_sampler=(index.tolist() for index in indices),
                num_workers=workers,
                collate_fn=_as_it_is,
            )
        )


def _as_it_is(chunk: Any) -> _Chunk:
    return chunk


@dataclass(frozen=True, eq=False)
class Part:
    """Some images of a store, as it has them: those of a split.

    Args:
        store: Where they are.
        rows: int64 [N] their places in it.
        shape: [C, H, W] of an image that is looked at.
        view: Makes such images of those that are stored.
    """

    store: Tensors | Files
    rows: Indices
    shape: tuple[int, ...]
    view: Callable[[Tensor], Tensor]

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, indices: Iterable[Indices]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield stored images and labels for each array of indices."""
        return self.store.batches(self.rows[index] for index in indices)


@dataclass(frozen=True, eq=False)
class Views:
    """The images of a part as evaluation compares them: see StoredSource."""

    part: Part

    def __len__(self) -> int:
        return len(self.part)

    @property
    def shape(self) -> tuple[int, ...]:
        """[C, H, W] of every image."""
        return self.part.shape

    def batches(self, indices: Iterable[Indices]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images uint8 [B, C, H, W] and labels for each array of indices."""
        return ((self.part.view(x), labels) for x, labels in self.part.batches(indices))

    def read(self, places: Sequence[int]) -> Tensor:
        """Read some images in this process: uint8 [B, C, H, W]."""
        store = self.part.store
        if isinstance(store, Files):  # because workers take longer to start
            store = Files(store.collection, store.decoding, workers=0)
        index = self.part.rows[np.asarray(places, np.int64)]
        return self.part.view(next(iter(store.batches([index])))[0])


@dataclass(frozen=True)
class Cache:
    """Files in which decoding leaves what it found: FOLDER/KEY.npy and KEY.json.

    The key is that of the collection's names, sizes, times of change and of the decoding, so
    another set or setting has another file, and files may be removed at any time.

    Args:
        folder: Where they lie.
        files: What is decoded.
    """

    folder: Path
    files: Files

    @property
    def path(self) -> Path:
        """The file of the pixels, uint8 [N, C, H, W]."""
        settings = {"version": VERSION, **asdict(self.files.decoding)}
        text = json.dumps([self.files.collection.fingerprint, settings], sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.npy"

    @property
    def record(self) -> Path:
        """The file that says which images are bad; written last."""
        return self.path.with_suffix(".json")

    def bad(self) -> Bad | None:
        """Read which images are bad; None: not known yet."""
        try:
            return dict(json.loads(self.record.read_text("utf-8"))["bad"])
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{self.record} is damaged; remove it and run again") from error

    def pixels(self) -> Tensor:
        """Map the pixels, uint8 [N, C, H, W]."""
        decoding = self.files.decoding
        shape = (len(self.files), decoding.channels, *decoding.size)
        try:
            array = np.load(self.path, mmap_mode="c")  # pages are read as needed, never written
            if array.dtype != np.uint8 or array.shape != shape:
                raise ValueError(f"{array.dtype} {array.shape}")
        except (ValueError, EOFError) as error:
            raise InputError(f"{self.path} is damaged; remove it and run again") from error
        return torch.from_numpy(array)

    def complete(self, pixels: bool) -> bool:
        """Tell whether the files are there, with or without the pixels."""
        return self.record.is_file() and (not pixels or self.path.is_file())

    def fill(self, pixels: bool) -> None:
        """Decode every image, unless it was done; of two processes the second waits for the first.

        Args:
            pixels: Write them, too; otherwise only which images are bad.

        Raises:
            InputError: The folder cannot be written to.
            OSError: The disk is full.
        """
        if self.complete(pixels):
            return
        check_folder(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        with exclusive(self.path.with_suffix(".lock")):
            if self.complete(pixels):
                return
            n = len(self.files)
            bad: Bad = {}
            if pixels:
                with atomic_write(self.path) as partial:
                    bad = self._write(partial, n)
                print(
                    f"{n:,} images decoded into {self.path} ({self.path.stat().st_size:,} bytes)"
                )
            else:
                bad = self.files.bad()
            write_json(self.record, {"bad": bad})

    def _write(self, path: Path, n: int) -> Bad:
        """Write all pixels; not by a map, because a full disk kills a process that writes so."""
        bad: Bad = {}
        decoding = self.files.decoding
        shape = (n, decoding.channels, *decoding.size)
        with path.open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            npy.write_array_header_1_0(file, header)
            for chunk in self.files.all(f"decoding {n:,} images"):
                file.write(chunk.images.numpy().data)
                bad |= chunk.bad
        return bad


def decoded_into_memory(files: Files) -> tuple[Tensor, Bad]:
    """Decode every image: uint8 [N, C, H, W], black where it is bad, and which are bad."""
    decoding, n = files.decoding, len(files)
    images = torch.empty((n, decoding.channels, *decoding.size), dtype=torch.uint8)
    bad: Bad = {}
    first = 0
    for chunk in files.all(f"decoding {n:,} images"):
        images[first : first + len(chunk.images)] = chunk.images
        first += len(chunk.images)
        bad |= chunk.bad
    return images, bad


def bad_files(bad: Bad) -> InputError:
    """The error that names all of them."""
    return InputError(
        f"{in_words(bad)}. Mend or remove them, or leave them out by --data.bad_files skip"
    )


def in_words(bad: Bad, most: int = 50) -> str:
    """List bad files and what is wrong with them."""
    named = "; ".join(f"{name}: {reason}" for name, reason in [*bad.items()][:most])
    more = f"; and {len(bad) - most} more" if len(bad) > most else ""
    return f"{len(bad)} file{'s' * (len(bad) > 1)} cannot be used: {named}{more}"
