"""Features of a set of images: computed once, kept in plain files, and found again."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm.auto import tqdm

from ddpm_lightning.errors import InputError
from ddpm_lightning.metrics.features import FeatureExtractor

VERSION = 1
"""Raised when the same images and the same extractor would give other features than before."""


@dataclass(frozen=True, eq=False)
class Features:
    """What every metric is computed from, and where it comes from.

    Attributes:
        features: float32 [n, d], on the CPU.
        logits: float32 [n, K] of the extractor's classes, or None.
        extractor: Description of the extractor, as in config files.
        digest: sha256 of its weights.
        resize: How it brings images to its size.
    """

    features: Tensor
    logits: Tensor | None
    extractor: dict[str, Any]
    digest: str
    resize: str

    @classmethod
    def compute(
        cls,
        extractor: FeatureExtractor,
        images: Tensor | Iterable[Tensor],
        device: torch.device | str = "cpu",
        batch_size: int = 256,
        progress: bool = False,
    ) -> Features:
        """Run the extractor once over images; only features and logits are kept.

        Args:
            extractor: Whose features.
            images: uint8 [n, C, H, W], or batches of such in any sizes, made one at a time.
            device: Where to compute.
            batch_size: Images at a time, of a tensor and of longer batches.
            progress: Show a progress bar.

        Raises:
            InputError: There are no images, or they do not fit the extractor.
        """
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size}: at least 1")
        batches = images.split(batch_size) if isinstance(images, Tensor) else images
        bar = tqdm(batches, desc=f"{extractor.name} features", leave=False, disable=not progress)
        features: list[Tensor] = []
        logits: list[Tensor] = []
        for batch in bar:
            for part in batch.split(batch_size):
                one = extractor.both(part.to(device))
                features.append(one.features.float().cpu())
                if one.logits is not None:
                    logits.append(one.logits.float().cpu())
        if not features:
            raise InputError(f"{type(extractor).__name__} was given no images; give one or more")
        return cls.of(extractor, torch.cat(features), torch.cat(logits) if logits else None)

    @classmethod
    def of(cls, extractor: FeatureExtractor, features: Tensor, logits: Tensor | None) -> Features:
        """Label what this extractor has computed."""
        origin = (extractor.describe(), extractor.digest, extractor.resize)
        return cls(features, logits, *origin)

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: Tensor | slice) -> Features:
        """Choose some of the images."""
        logits = None if self.logits is None else self.logits[rows]
        return Features(self.features[rows], logits, self.extractor, self.digest, self.resize)

    def save(self, path: str | Path) -> None:
        """Write plain tensors (safetensors); a stopped write never leaves half a file.

        Raises:
            InputError: The file cannot be written.
        """
        path = Path(path)
        tensors = {"features": self.features.contiguous()}
        if self.logits is not None:
            tensors["logits"] = self.logits.contiguous()
        origin = {"extractor": self.extractor, "digest": self.digest, "resize": self.resize}
        metadata = {name: json.dumps(value) for name, value in origin.items()}
        partial = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # A name of its own, as another process may write the same features.
            with NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
                partial = Path(file.name)
            safetensors.torch.save_file(tensors, partial, metadata)
            partial.replace(path)
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"cannot write the features to {path}: {error}; choose another folder"
            ) from error
        finally:
            if partial is not None:
                partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> Features:
        """Read what :meth:`save` wrote; no pickle is involved.

        Raises:
            InputError: The file is missing, damaged or another kind of file.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                names, metadata = set(file.keys()), file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in names}
            origin = [json.loads(metadata[name]) for name in ("extractor", "digest", "resize")]
            features, logits = tensors["features"], tensors.get("logits")
            if features.ndim != 2 or (logits is not None and len(logits) != len(features)):
                raise ValueError("the tensors are of other shapes")
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise InputError(
                f"{path} is no readable file of features: {type(error).__name__} {error}; delete "
                "it and compute them again"
            ) from error
        return cls(features, logits, *origin)


def reference_features(
    extractor: FeatureExtractor,
    images_uint8: Tensor,
    cache_dir: str | Path | None = None,
    device: torch.device | str = "cpu",
    batch_size: int = 256,
    progress: bool = False,
) -> Features:
    """Give the features of images that are compared with again and again, from disk if possible.

    Args:
        extractor: Whose features.
        images_uint8: uint8 [n, C, H, W].
        cache_dir: Folder of the kept features; default: :func:`default_cache`. A folder that
            cannot be written to costs a warning and the time.
        device: Where to compute.
        batch_size: Images at a time.
        progress: Show a progress bar.

    Raises:
        InputError: The images do not fit the extractor, or its weights are missing.
    """
    path = cache_path(extractor, images_uint8, cache_dir)
    found = lookup(path)
    if found is None:
        found = Features.compute(extractor, images_uint8, device, batch_size, progress)
        store(found, path)
    return found


def default_cache() -> Path:
    """Find the folder of kept features: ddpm_lightning in $XDG_CACHE_HOME, else in ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "ddpm_lightning"


def cache_path(
    extractor: FeatureExtractor, images: Tensor, cache_dir: str | Path | None = None
) -> Path:
    """Name the file after all that decides about the features: the images and the extractor.

    The extractor counts with its description, the sha256 of its weights and its source code.
    """
    key = hashlib.sha256(images.cpu().contiguous().numpy().data)
    origin = {
        "version": VERSION,
        "shape": list(images.shape),
        "extractor": extractor.describe(),
        "digest": extractor.digest,
        "resize": extractor.resize,
        "source": _source(type(extractor)),
    }
    key.update(json.dumps(origin, sort_keys=True).encode())
    folder = Path(cache_dir).expanduser() if cache_dir else default_cache()
    return folder / f"{extractor.name}-{key.hexdigest()[:32]}.safetensors"


def lookup(path: Path) -> Features | None:
    """Read kept features; None if there are none, with a warning if they are damaged."""
    if not path.exists():
        return None
    try:
        return Features.load(path)
    except InputError as error:
        warnings.warn(f"{error} (done now)", stacklevel=2)
        return None


def store(features: Features, path: Path) -> None:
    """Keep features, or warn that they will have to be computed again."""
    try:
        features.save(path)
    except InputError as error:
        warnings.warn(f"{error}, or compute them each time", stacklevel=2)


def _source(cls: type) -> str:
    """The sha256 of the files that define an extractor and its base classes."""
    digest = hashlib.sha256()
    for base in cls.__mro__:
        if issubclass(base, FeatureExtractor):
            try:
                digest.update(inspect.getsource(inspect.getmodule(base) or base).encode())
            except (OSError, TypeError):  # a notebook keeps no file
                digest.update(base.__qualname__.encode())
    return digest.hexdigest()
