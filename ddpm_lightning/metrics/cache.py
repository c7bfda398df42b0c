"""Features of real images on disk: computed once, kept in plain files, and found again."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import warnings
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from tempfile import NamedTemporaryFile

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ddpm_lightning.metrics.features import FeatureExtractor, Features

VERSION = 2
"""Raised when the same images and the same extractor would give other features than before."""


def pixels_digest(batches: Iterable[Tensor]) -> str:
    """The sha256 of all pixels of images uint8 [B, C, H, W], as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for images in batches:
        digest.update(images.cpu().contiguous().numpy().data)
    return digest.hexdigest()


def default_cache() -> Path | None:
    """The folder of kept features, in $XDG_CACHE_HOME or ~/.cache; without a home, None."""
    home = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(home) if home else Path.home() / ".cache") / "ddpm_lightning"
    except RuntimeError as error:
        warnings.warn(
            f"no features are kept, and they are computed each time: {error} Set XDG_CACHE_HOME",
            stacklevel=3,
        )
        return None


def cache_path(
    extractor: FeatureExtractor, images: Tensor, cache_dir: str | Path | None = None
) -> Path | None:
    """Name the file after all that decides about the features: the images and the extractor.

    The extractor counts with its description, the sha256 of its weights, the source files of its
    class and base classes, and the versions of torch and torch-fidelity, but not with modules
    that these files import. None, so no cache, without a home folder, or for an extractor without
    a source file (in a notebook), because a change of its code could not be detected.
    """
    source = _source(type(extractor))
    if source is None:
        return None
    origin = {
        "version": VERSION,
        "pixels": pixels_digest([images]),
        "shape": list(images.shape),
        "extractor": extractor.describe(),
        "digest": extractor.digest,
        "resize": extractor.resize,
        "source": source,
        "versions": {name: version(name) for name in ("torch", "torch-fidelity")},
    }
    key = hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()
    folder = Path(cache_dir).expanduser() if cache_dir else default_cache()
    return folder and folder / f"{extractor.name}-{key[:32]}.safetensors"


def lookup(path: Path | None) -> Features | None:
    """Read kept features, without pickle; None if there are none, with a warning if damaged."""
    if path is None or not path.exists():
        return None
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in set(file.keys())}
        features, logits = tensors["features"], tensors.get("logits")
        if features.ndim != 2 or (logits is not None and len(logits) != len(features)):
            raise ValueError("the tensors are of other shapes")
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        warnings.warn(
            f"{path} is no readable file of features ({type(error).__name__}: {error}); they are "
            "computed again",
            stacklevel=2,
        )
        return None
    return Features(features, logits)


def store(features: Features, path: Path | None) -> None:
    """Keep features as plain tensors, written at once; warn where they cannot be written."""
    if path is None:
        return
    parts = {"features": features.features, "logits": features.logits}
    tensors = {name: part.contiguous() for name, part in parts.items() if part is not None}
    partial = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own, because another process may write the same features.
        with NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            partial = Path(file.name)
        safetensors.torch.save_file(tensors, partial)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        warnings.warn(
            f"cannot write the features to {path}: {error}; choose another folder, or they are "
            "computed each time",
            stacklevel=2,
        )
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)


def _source(cls: type) -> str | None:
    """The sha256 of the files that define an extractor's classes; None without files."""
    digest = hashlib.sha256()
    for base in cls.__mro__:
        if issubclass(base, FeatureExtractor):
            try:
                digest.update(Path(inspect.getfile(base)).read_bytes())
            except (OSError, TypeError):
                return None
    return digest.hexdigest()
