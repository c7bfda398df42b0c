"""Images in one .npz file, uint8 [N, H, W, C], as published sets of samples come."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from ddpm_lightning.errors import InputError, at_least
from ddpm_lightning.files import atomic_write
from ddpm_lightning.images.image_file import MODES
from ddpm_lightning.images.uniform_folder import UniformFolder

IMAGES, LABELS = "arr_0", "arr_1"
"""Names of the arrays in the file: numpy's for unnamed ones."""

BATCH = 256
"""Images that are read and written at a time."""

CHUNK = 2**24
"""Bytes that are read at a time."""


class ImageArchive:
    """The images of an .npz, held in memory; used like a UniformFolder.

    The file has arr_0, uint8 [N, H, W, C] of 1, 3 or 4 channels, as OpenAI's guided-diffusion
    publishes its samples; whatever else it has (labels) is not read.

    Args:
        path: The file.
        n: Take the first n; None: all.

    Attributes:
        files: The images' places.
        shape: [C, H, W] of every image.

    Raises:
        InputError: The file is missing, damaged, holds something else or fewer images, or n is
            below 1.
    """

    def __init__(self, path: Path, n: int | None = None) -> None:
        at_least(1, n=n)
        self._images = _read(path)  # [N, H, W, C]
        if n is not None and n > len(self._images):
            raise InputError(f"{path} holds {len(self._images)} images, fewer than n = {n}")
        self.files = range(len(self._images) if n is None else n)
        height, width, channels = self._images.shape[1:]
        self.shape = channels, height, width

    def __len__(self) -> int:
        return len(self.files)

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """Yield the images in batches uint8 [B, C, H, W]."""
        for start in range(0, len(self), batch_size):
            yield self.read(self.files[start : start + batch_size])

    def read(self, files: Sequence[Any]) -> Tensor:
        """Take the images of these places: uint8 [B, C, H, W]."""
        chosen = torch.from_numpy(self._images[list(files)])
        return chosen.permute(0, 3, 1, 2).contiguous()


def images_at(path: Path, n: int | None = None) -> UniformFolder | ImageArchive:
    """Open a folder of image files, or an .npz of images; n as theirs."""
    return ImageArchive(path, n) if path.suffix.lower() == ".npz" else UniformFolder(path, n)


def write_npz(
    path: Path, images: Tensor | UniformFolder | ImageArchive, labels: Tensor | None = None
) -> None:
    """Write images as an .npz, atomically; those of a folder batch by batch.

    Args:
        path: The new file.
        images: uint8 [N, C, H, W], or a folder of such.
        labels: int64 [N], if known.
    """
    batches: Iterable[Tensor]
    if isinstance(images, Tensor):
        shape, batches = tuple(images.shape[1:]), images.split(BATCH)
    else:
        shape, batches = images.shape, images.batches(BATCH)
    header = {"shape": (len(images), *shape[1:], shape[0]), "fortran_order": False}
    with atomic_write(path) as partial, zipfile.ZipFile(partial, "w") as archive:
        with archive.open(f"{IMAGES}.npy", "w", force_zip64=True) as file:
            npy.write_array_header_1_0(file, {**header, "descr": "|u1"})
            for batch in batches:
                file.write(batch.permute(0, 2, 3, 1).contiguous().numpy().data)
        if labels is not None:
            with archive.open(f"{LABELS}.npy", "w") as file:
                npy.write_array(file, labels.numpy(), allow_pickle=False)


def _read(path: Path) -> np.ndarray:
    """Read arr_0, whose size is checked against the file's before memory is asked for."""
    if not path.is_file():
        raise InputError(f"no file {path}")
    fix = f"give an .npz with {IMAGES}, uint8 [N, height, width, channels]"
    try:
        with zipfile.ZipFile(path) as archive:
            entry = f"{IMAGES}.npy"
            if entry not in archive.namelist():
                raise InputError(f"{path} has no {IMAGES}; {fix}")
            with archive.open(entry) as file:
                shape, dtype = _header(file)
                if dtype != np.uint8 or len(shape) != 4 or shape[3] not in MODES or not shape[0]:
                    raise InputError(f"{path} holds {dtype} {list(shape)}; {fix}")
                if math.prod(shape) > archive.getinfo(entry).file_size:
                    raise InputError(f"{path} is damaged: it is shorter than it says")
                return _array(file, shape)
    except InputError:
        raise
    except Exception as error:  # zipfile and numpy meet damage with errors of any kind
        raise InputError(f"{path} is damaged or no .npz ({error}); get it again") from error


def _array(file: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Read uint8 [...] in chunks, and to the file's end, where zipfile compares the CRC."""
    array, start = np.empty(math.prod(shape), np.uint8), 0
    while chunk := file.read(CHUNK):
        part = np.frombuffer(chunk, np.uint8)[: len(array) - start]
        array[start : start + len(part)] = part
        start += len(part)
    if start < len(array):
        raise ValueError("it is cut off")
    return array.reshape(shape)


def _header(file: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Read an array's shape and type, without pickle."""
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    shape, fortran, dtype = readers[npy.read_magic(file)](file)
    if fortran:
        raise ValueError("its array is in Fortran order")
    return shape, dtype
