"""Features of a set of images: computed once, kept in plain files, and found again."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import NamedTemporaryFile

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm.auto import tqdm

from ddpm_lightning.errors import InputError
from ddpm_lightning.metrics.features import FeatureExtractor

VERSION = 2
"""Raised when the same images and the same extractor would give other features than before."""


@dataclass(frozen=True, eq=False)
class Features:
    """What every metric is computed from.

    Attributes:
        features: float32 [n, d], on the CPU.
        logits: float32 [n, K] of the extractor's classes, or None.
    """

    features: Tensor
    logits: Tensor | None = None

    @classmethod
    def compute(
        cls,
        extractor: FeatureExtractor,
        images: Tensor | Iterable[Tensor],
        device: torch.device | str = "cpu",
        batch_size: int = 256,
        progress: bool = False,
        total: int | None = None,
    ) -> Features:
        """Run the extractor once over images; only features and logits are kept.

        Args:
            extractor: Whose features.
            images: uint8 [n, C, H, W], or batches of such in any sizes, made one at a time.
            device: Where to compute.
            batch_size: Images at a time, of a tensor and of longer batches.
            progress: Show a progress bar.
            total: Number of images, where they are batches, for the time left.

        Raises:
            InputError: There are no images, or they do not fit the extractor.
        """
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size}: at least 1")
        batches: Iterable[Tensor] = (images,) if isinstance(images, Tensor) else images
        total = len(images) if isinstance(images, Tensor) else total
        features: list[Tensor] = []
        logits: list[Tensor] = []
        with tqdm(
            total=total,
            desc=f"{extractor.name} features",
            unit="image",
            leave=False,
            disable=not progress,
        ) as bar:
            for batch in batches:
                for part in batch.split(batch_size):
                    one = extractor.both(part.to(device))
                    features.append(one.features.float().cpu())
                    if one.logits is not None:
                        logits.append(one.logits.float().cpu())
                    bar.update(len(part))
        if not features:
            raise InputError(f"{type(extractor).__name__} was given no images; give one or more")
        return cls(torch.cat(features), torch.cat(logits) if logits else None)

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: Tensor | slice) -> Features:
        """Choose some of the images."""
        logits = None if self.logits is None else self.logits[rows]
        return Features(self.features[rows], logits)

    def save(self, path: str | Path) -> None:
        """Write plain tensors (safetensors); a stopped write never leaves half a file.

        Raises:
            InputError: The file cannot be written.
        """
        path = Path(path)
        tensors = {"features": self.features.contiguous()}
        if self.logits is not None:
            tensors["logits"] = self.logits.contiguous()
        partial = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # A name of its own, as another process may write the same features.
            with NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
                partial = Path(file.name)
            safetensors.torch.save_file(tensors, partial)
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
                tensors = {name: file.get_tensor(name) for name in set(file.keys())}
            features, logits = tensors["features"], tensors.get("logits")
            if features.ndim != 2 or (logits is not None and len(logits) != len(features)):
                raise ValueError("the tensors are of other shapes")
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise InputError(
                f"{path} is no readable file of features: {type(error).__name__} {error}; delete "
                "it and compute them again"
            ) from error
        return cls(features, logits)


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
) -> Path | None:
    """Name the file after all that decides about the features: the images and the extractor.

    The extractor counts with its description, the sha256 of its weights, the source files of its
    class and base classes, and the versions of torch and torch-fidelity. Modules of your own
    that these files import do not count: after a change there, delete the kept features.

    Returns:
        None for an extractor without a source file (of a notebook, of standard input), whose
        changes could not be told: its features are not kept.
    """
    source = _source(type(extractor))
    if source is None:
        return None
    key = hashlib.sha256(images.cpu().contiguous().numpy().data)
    origin = {
        "version": VERSION,
        "shape": list(images.shape),
        "extractor": extractor.describe(),
        "digest": extractor.digest,
        "resize": extractor.resize,
        "source": source,
        "versions": {name: version(name) for name in ("torch", "torch-fidelity")},
    }
    key.update(json.dumps(origin, sort_keys=True).encode())
    folder = Path(cache_dir).expanduser() if cache_dir else default_cache()
    return folder / f"{extractor.name}-{key.hexdigest()[:32]}.safetensors"


def lookup(path: Path | None) -> Features | None:
    """Read kept features; None if there are none, with a warning if they are damaged."""
    if path is None or not path.exists():
        return None
    try:
        return Features.load(path)
    except InputError as error:
        warnings.warn(f"{error} (done now)", stacklevel=2)
        return None


def store(features: Features, path: Path | None) -> None:
    """Keep features, or warn that they will have to be computed again; no path: keep nothing."""
    if path is None:
        return
    try:
        features.save(path)
    except InputError as error:
        warnings.warn(f"{error}, or compute them each time", stacklevel=2)


def _source(cls: type) -> str | None:
    """The sha256 of the files that define an extractor and its base classes, if there are such."""
    digest = hashlib.sha256()
    for base in cls.__mro__:
        if issubclass(base, FeatureExtractor):
            try:
                digest.update(Path(inspect.getfile(base)).read_bytes())
            except (OSError, TypeError):
                return None
    return digest.hexdigest()
